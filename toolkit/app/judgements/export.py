"""Judgements as the datasets that recipes and TRL train on, each row with where it comes from."""

import json
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.app.judgements.judgement import (
    BATTLE,
    BOTH_BAD,
    RANKING,
    TIE,
    A,
    B,
    Judgement,
    Reply,
)
from toolkit.data.convert import Kind, convert_row
from toolkit.data.messages import Row
from toolkit.data.ranking import group_id, labels_of, pairs_of, read_ranked
from toolkit.data.row_errors import RowError

PREFERENCE, RANKED, UNPAIRED = "preference.jsonl", "ranked.jsonl", "unpaired.jsonl"
TIES, BOTH_BAD_FILE = "ties.jsonl", "both_bad.jsonl"
FILES: Mapping[str, str] = {  # name -> the format that toolkit/data reads it as
    PREFERENCE: "preference",
    RANKED: "ranked",
    UNPAIRED: "unpaired",
    TIES: "ranked",
    BOTH_BAD_FILE: "unpaired",
}

TRAINS_ON: Mapping[str, str] = {"reward": PREFERENCE, "dpo": PREFERENCE, "kto": UNPAIRED}


@dataclass(frozen=True)
class Export:
    """The rows of each file of `FILES` as lines of JSON, and why others were left out (how many)."""

    lines: Mapping[str, Sequence[str]]
    left_out: Mapping[str, int]

    def write(self, folder: Path) -> list[Path]:
        """Write each file that has rows, whole or not at all, and remove those without.

        Raises: OSError where the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for name, lines in self.lines.items():
            file = folder / name
            if not lines:
                file.unlink(missing_ok=True)  # of an earlier export
                continue
            beside = folder / f".{name}.{os.getpid()}"
            with beside.open("w", encoding="utf-8") as out:
                out.writelines(lines)
            os.replace(beside, file)
            written.append(file)
        return written


def export(judgements: Sequence[Judgement]) -> Export:
    """What can be trained on of the judgements, in their order.

    `preference.jsonl` has every decided battle and every pair of a ranking, those of one ranking
    with one `group_id`; `ranked.jsonl` the rankings whole; `unpaired.jsonl` each of these answers
    as good or bad (KTO). Tied battles and those where both were bad are in files of their own, the
    latter as two bad answers. Skipped battles are nowhere. What the recipes would refuse (empty
    answers, two equal ones of which one is better) is left out and counted.
    """
    lines: dict[str, list[str]] = {name: [] for name in FILES}
    left_out: Counter[str] = Counter()
    for judgement in judgements:
        made = _of_battle if judgement.kind == BATTLE else _of_ranking
        try:
            found = made(judgement)
        except RowError as error:
            left_out[error.check] += 1
            continue
        for name, line in found:
            lines[name].append(line)
    return Export(lines, dict(left_out))


def training_commands(
    folder: Path, *, base: Mapping[str, str], parent: Path | None, runs: Path
) -> dict[str, str]:
    """Shell commands that train on an export, by recipe; none without an SFT run to start from.

    Args:
        folder: where the export was written.
        base: the fingerprint of the base that the app serves.
        parent: the SFT run.
        runs: where the new runs go, below `judged/`.
    """
    if parent is None:
        return {}
    return {
        recipe: shlex.join(
            [
                *("python", f"recipes/{recipe}.py", *_base_options(recipe, base)),
                *("--dataset_name", str(folder / file), "--parent", str(parent)),
                *("--output_dir", str(runs / "judged" / recipe)),
                # visitors type what they like; what the template forbids is dropped and listed
                *("--drop_bad_rows", "true"),
            ]
        )
        for recipe, file in TRAINS_ON.items()
    }


def _base_options(recipe: str, base: Mapping[str, str]) -> list[str]:
    """The shipped config for the embedded base; for another its name and quantization."""
    if base["id"] == "world:base":
        return ["--config", f"recipes/configs/world/{recipe}.yaml"]
    bits, *rest = base["quantization"].split("-")  # none, 8bit, 4bit-nf4, 4bit-nf4-double
    options = ["--model_name_or_path", base["id"]]
    if bits != "none":
        options += [f"--load_in_{bits}", "true"]
    if bits == "4bit":
        options += ["--bnb_4bit_quant_type", rest[0]]
    if "double" in rest:
        options += ["--use_bnb_nested_quant", "true"]
    return options


class _Parts:
    """A judgement's parts as JSON, each made once: one of nine answers stands in up to eight pairs."""

    def __init__(self, judgement: Judgement) -> None:
        self.prompt = _json(judgement.prompt)
        self.messages = [
            f'[{{"role": "assistant", "content": {_json(reply.text)}}}]'
            for reply in judgement.replies
        ]
        self.origins = [_origin(reply) for reply in judgement.replies]
        self._provenance = _json(_provenance(judgement)).removesuffix("}")

    def pair(self, chosen: int, rejected: int, **more: str) -> str:
        """The line of two answers, the better one first."""
        sides = {"chosen": self.messages[chosen], "rejected": self.messages[rejected]}
        origin = self._with(chosen=self.origins[chosen], rejected=self.origins[rejected])
        return _line(prompt=self.prompt, **sides, provenance=origin, **more)

    def answer(self, number: int, *, label: bool) -> str:
        """The line of one answer, good or bad."""
        origin = self._with(answer=self.origins[number])
        said = {"completion": self.messages[number], "label": "true" if label else "false"}
        return _line(prompt=self.prompt, **said, provenance=origin)

    def ranked(self, judgement: Judgement, ranks: Sequence[int]) -> str:
        """The line of all answers."""
        said = {"likert": _json(judgement.likert), "flags": _json(judgement.flags)}
        origin = self._with(answers=_listed(self.origins), **said)
        answers = {"completions": _listed(self.messages), "ranks": _json(ranks)}
        return _line(prompt=self.prompt, **answers, provenance=origin)

    def _with(self, **more: str) -> str:
        return f"{self._provenance}, {_columns(more)}}}"


_json = json.JSONEncoder(ensure_ascii=False).encode


def _line(**columns: str) -> str:
    return f"{{{_columns(columns)}}}\n"


def _columns(texts: Mapping[str, str]) -> str:
    return ", ".join([f'"{name}": {text}' for name, text in texts.items()])


def _listed(texts: Sequence[str]) -> str:
    return f"[{', '.join(texts)}]"


def _of_battle(judgement: Judgement) -> list[tuple[str, str]]:
    """Files and lines of a battle.

    Raises: RowError where no recipe would take it.
    """
    asked = {"prompt": list(judgement.prompt)}
    said = [_message(reply) for reply in judgement.replies]
    if judgement.verdict in (A, B):
        chosen, rejected = (0, 1) if judgement.verdict == A else (1, 0)
        _check(PREFERENCE, asked | {"chosen": said[chosen], "rejected": said[rejected]})
        parts = _Parts(judgement)
        good, bad = parts.answer(chosen, label=True), parts.answer(rejected, label=False)
        return [(PREFERENCE, parts.pair(chosen, rejected)), (UNPAIRED, good), (UNPAIRED, bad)]
    if judgement.verdict == BOTH_BAD:
        for one in said:
            _check(BOTH_BAD_FILE, asked | {"completion": one, "label": False})
        parts = _Parts(judgement)
        return [(BOTH_BAD_FILE, parts.answer(number, label=False)) for number in (0, 1)]
    if judgement.verdict == TIE:
        _check(TIES, asked | {"completions": said, "ranks": [1, 1]})
        return [(TIES, _Parts(judgement).ranked(judgement, [1, 1]))]
    return []


def _of_ranking(judgement: Judgement) -> list[tuple[str, str]]:
    """Files and lines of a ranking; what holds of the whole holds of its pairs and answers.

    Raises: RowError where no recipe would take it.
    """
    assert judgement.kind == RANKING and judgement.ranks is not None
    said = [_message(reply) for reply in judgement.replies]
    asked = {"prompt": list(judgement.prompt), "completions": said}
    ranked = read_ranked(asked | {"ranks": list(judgement.ranks)})
    parts, group = _Parts(judgement), str(group_id(ranked))
    number = {_said(one): i for i, one in reversed(list(enumerate(said)))}
    found = [(RANKED, parts.ranked(judgement, judgement.ranks))]
    for pair in pairs_of(ranked, pairs="all"):
        chosen, rejected = (number[_said(pair[side])] for side in ("chosen", "rejected"))
        found.append((PREFERENCE, parts.pair(chosen, rejected, group_id=group)))
    for one in labels_of(ranked, pairs="all"):
        answer = number[_said(one["completion"])]
        found.append((UNPAIRED, parts.answer(answer, label=one["label"])))
    return found


def _check(name: str, row: Row) -> None:
    """Raise RowError where the recipes would refuse a row of a file."""
    kind: Kind = "unpaired" if FILES[name] == "unpaired" else "preference"
    convert_row(row, format=FILES[name], kind=kind)


def _said(completion: list[dict[str, str]]) -> str:
    return completion[0]["content"].strip()


def _message(reply: Reply) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": reply.text}]


def _origin(reply: Reply) -> str:
    adapter = "null" if reply.adapter is None else _json(reply.adapter)
    said = {"checkpoint": _json(reply.name), "adapter_sha256": adapter, "seed": str(reply.seed)}
    return f"{{{_columns(said)}}}"


def _provenance(judgement: Judgement) -> dict[str, Any]:
    return {
        "judgement": judgement.id,
        "kind": judgement.kind,
        "labeler": judgement.labeler,
        "reason": judgement.reason,
        "time": judgement.time,
        "sampling": {name: float(value) for name, value in judgement.sampling.items()},
        "base": dict(judgement.base),
    }
