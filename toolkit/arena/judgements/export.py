"""Judgements as the datasets that recipes and TRL train on, each row with where it comes from."""

import json
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.arena.judgements.judgement import (
    BATTLE,
    BOTH_BAD,
    RANKING,
    TIE,
    A,
    B,
    Judgement,
    Reply,
)
from toolkit.data.formats import convert_row
from toolkit.data.messages import BadRow, Row
from toolkit.data.ranking import group_id, labels_of, ranked_to_pairs, read_ranked

PREFERENCE, RANKED, UNPAIRED = "preference.jsonl", "ranked.jsonl", "unpaired.jsonl"
TIES, BOTH_BAD_FILE = "ties.jsonl", "both_bad.jsonl"
FILES: Mapping[str, str] = {  # name -> the format that toolkit/data reads it as
    PREFERENCE: "preference",
    RANKED: "ranked",
    UNPAIRED: "unpaired",
    TIES: "ranked",
    BOTH_BAD_FILE: "unpaired",
}


@dataclass(frozen=True)
class Export:
    """The rows of each file of `FILES`, and why rows were left out (reason -> how many)."""

    rows: Mapping[str, Sequence[Row]]
    left_out: Mapping[str, int]

    def write(self, folder: Path) -> list[Path]:
        """Write each file that has rows, whole or not at all, and remove those without.

        Raises: OSError where the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for name, rows in self.rows.items():
            file = folder / name
            if not rows:
                file.unlink(missing_ok=True)  # of an earlier export
                continue
            beside = folder / f".{name}.{os.getpid()}"
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            beside.write_text(text, encoding="utf-8")
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
    rows: dict[str, list[Row]] = {name: [] for name in FILES}
    left_out: Counter[str] = Counter()
    for judgement in judgements:
        made = _of_battle if judgement.kind == BATTLE else _of_ranking
        try:
            found = list(made(judgement))
            for name, row in found:
                convert_row(row, format=FILES[name], kind=_kind(name))
        except BadRow as error:
            left_out[error.check] += 1
            continue
        for name, row in found:
            rows[name].append(row)
    return Export(rows, dict(left_out))


def training_commands(
    dataset: Path, *, base: Mapping[str, str], parent: Path | None, runs: Path
) -> dict[str, str]:
    """Shell commands that train on `dataset`, by recipe; none without an SFT run to start from.

    Args:
        dataset: the preference file.
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
                *("--dataset_name", str(dataset), "--parent", str(parent)),
                *("--output_dir", str(runs / "judged" / recipe)),
                # visitors type what they like; what the template forbids is dropped and listed
                *("--drop_bad_rows", "true"),
            ]
        )
        for recipe in ("reward", "dpo")
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


def _kind(name: str) -> Any:
    return "unpaired" if FILES[name] == "unpaired" else "preference"


def _of_battle(judgement: Judgement) -> Iterator[tuple[str, Row]]:
    if judgement.verdict in (A, B):
        chosen, rejected = judgement.replies[:: 1 if judgement.verdict == A else -1]
        yield PREFERENCE, _pair(judgement, chosen, rejected)
        yield UNPAIRED, _answer(judgement, chosen, label=True)
        yield UNPAIRED, _answer(judgement, rejected, label=False)
    elif judgement.verdict == BOTH_BAD:
        for reply in judgement.replies:
            yield BOTH_BAD_FILE, _answer(judgement, reply, label=False)
    elif judgement.verdict == TIE:
        yield TIES, _ranked(judgement, [1, 1])


def _of_ranking(judgement: Judgement) -> Iterator[tuple[str, Row]]:
    assert judgement.kind == RANKING and judgement.ranks is not None
    row = _ranked(judgement, list(judgement.ranks))
    yield RANKED, row
    by_text = {reply.text.strip(): reply for reply in reversed(judgement.replies)}
    ranked = read_ranked(row)
    group = group_id(ranked)
    for pair in ranked_to_pairs(row):
        chosen, rejected = (by_text[_said(pair[side])] for side in ("chosen", "rejected"))
        yield PREFERENCE, _pair(judgement, chosen, rejected) | {"group_id": group}
    for label in labels_of(ranked, pairs="all"):
        reply = by_text[_said(label["completion"])]
        yield UNPAIRED, _answer(judgement, reply, label=label["label"])


def _said(completion: list[dict[str, str]]) -> str:
    return completion[0]["content"].strip()


def _pair(judgement: Judgement, chosen: Reply, rejected: Reply) -> Row:
    sides = {"chosen": _origin(chosen), "rejected": _origin(rejected)}
    return {
        "prompt": list(judgement.prompt),
        "chosen": _message(chosen),
        "rejected": _message(rejected),
        "provenance": _provenance(judgement) | sides,
    }


def _ranked(judgement: Judgement, ranks: list[int]) -> Row:
    answers = {"answers": [_origin(reply) for reply in judgement.replies]}
    return {
        "prompt": list(judgement.prompt),
        "completions": [_message(reply) for reply in judgement.replies],
        "ranks": ranks,
        "provenance": _provenance(judgement)
        | answers
        | {"likert": judgement.likert, "flags": judgement.flags},
    }


def _answer(judgement: Judgement, reply: Reply, *, label: bool) -> Row:
    return {
        "prompt": list(judgement.prompt),
        "completion": _message(reply),
        "label": label,
        "provenance": _provenance(judgement) | {"answer": _origin(reply)},
    }


def _message(reply: Reply) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": reply.text}]


def _origin(reply: Reply) -> dict[str, Any]:
    return {"checkpoint": reply.name, "adapter_sha256": reply.adapter, "seed": reply.seed}


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
