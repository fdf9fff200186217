"""Exports judgements as datasets for the recipes and TRL; each row contains its origin."""

import json
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.app.judgements.judgement import BATTLE, BOTH_BAD, TIE, A, B, Judgement, Reply
from toolkit.data.convert import Kind, convert_row
from toolkit.data.messages import Row
from toolkit.data.ranking import group_id, labels_of, pairs_of, read_ranked
from toolkit.data.row_errors import RowError
from toolkit.options.config import shipped_configs
from toolkit.recipe import recipes
from toolkit.runs.replacing import remove_leftovers
from toolkit.world import BASE_NAME

PREFERENCE, RANKED, UNPAIRED = "preference.jsonl", "ranked.jsonl", "unpaired.jsonl"
TIES, BOTH_BAD_FILE = "ties.jsonl", "both_bad.jsonl"
FILES: Mapping[str, str] = {  # name -> the format that toolkit/data reads it as
    PREFERENCE: "preference",
    RANKED: "ranked",
    UNPAIRED: "unpaired",
    TIES: "ranked",
    BOTH_BAD_FILE: "unpaired",
}

_json = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True)
class Export:
    """The JSON lines of each file in `FILES`, and the number of judgements left out for each reason."""

    lines: Mapping[str, Sequence[str]]
    left_out: Mapping[str, int]

    def write(self, folder: Path) -> list[Path]:
        """Write the files that have rows and remove the others; each file is replaced as a whole.

        Raises: OSError if the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder, locked=False)
        written = []
        for name, lines in self.lines.items():
            file = folder / name
            if not lines:
                file.unlink(missing_ok=True)  # from an earlier export
                continue
            temporary = folder / f".{name}.{os.getpid()}"
            try:
                with temporary.open("w", encoding="utf-8") as out:
                    out.writelines(lines)
                os.replace(temporary, file)
            finally:
                temporary.unlink(missing_ok=True)
            written.append(file)
        return written


def export(judgements: Sequence[Judgement]) -> Export:
    """Convert judgements to training data, in their order.

    `preference.jsonl` contains each decided battle and each pair of a ranking; the pairs of one ranking
    share a `group_id`. `ranked.jsonl` contains whole rankings. `unpaired.jsonl` contains the same answers,
    each labelled good or bad (KTO). Ties, and battles with two bad answers, are written to separate files;
    skipped battles are not exported. Judgements that the recipes would reject (empty answers, a preference
    between equal answers) are left out and counted.
    """
    lines: dict[str, list[str]] = {name: [] for name in FILES}
    left_out: Counter[str] = Counter()
    for judgement in judgements:
        rows_of = _battle_rows if judgement.kind == BATTLE else _ranking_rows
        try:
            rows = rows_of(judgement)
        except RowError as error:
            left_out[error.check] += 1
            continue
        for name, row in rows:
            lines[name].append(f"{_json(row)}\n")
    return Export(lines, dict(left_out))


def training_files() -> dict[str, str]:
    """recipe -> the exported file that it can train on; the reward model comes first."""
    by_kind = {"preference": PREFERENCE, "unpaired": UNPAIRED}
    ordered = sorted(recipes().values(), key=lambda recipe: recipe.holds == "policy")
    return {recipe.name: by_kind[recipe.rows] for recipe in ordered if recipe.rows in by_kind}


def training_commands(
    folder: Path, *, base: Mapping[str, str], parent: Path | None, runs: Path
) -> dict[str, str]:
    """Shell commands that train on an export, by recipe; empty without an SFT run as the parent.

    Args:
        folder: the exported files.
        base: the fingerprint of the app's base.
        parent: the SFT run.
        runs: the commands write new runs below `judged/` in this folder.
    """
    if parent is None:
        return {}
    return {
        recipe: shlex.join(
            [
                *("toolkit", recipe, *_config(recipe, base)),
                *("--dataset_name", str(folder / file), "--parent", str(parent)),
                *("--output_dir", str(runs / "judged" / recipe)),
                # visitors can type text that the chat template does not allow
                *("--drop_bad_rows", "true"),
            ]
        )
        for recipe, file in training_files().items()
    }


def _config(recipe: str, base: Mapping[str, str]) -> list[str]:
    """The option of the shipped config if the base is the embedded one; a recipe uses its parent's base."""
    config = f"world/{recipe}"
    return ["--config", config] if base["id"] == BASE_NAME and config in shipped_configs() else []


def _battle_rows(judgement: Judgement) -> list[tuple[str, Row]]:
    """(file, row) for a battle; raises RowError if the recipes would reject a row."""
    rows = []
    if judgement.verdict in (A, B):
        chosen, rejected = (0, 1) if judgement.verdict == A else (1, 0)
        labels = [_label_row(judgement, chosen, True), _label_row(judgement, rejected, False)]
        rows = [(PREFERENCE, _pair_row(judgement, chosen, rejected))]
        rows += [(UNPAIRED, row) for row in labels]
    elif judgement.verdict == BOTH_BAD:
        rows = [(BOTH_BAD_FILE, _label_row(judgement, reply, False)) for reply in (0, 1)]
    elif judgement.verdict == TIE:
        rows = [(TIES, _ranked_row(judgement, (1, 1)))]
    for name, row in rows:
        kind: Kind = "unpaired" if FILES[name] == "unpaired" else "preference"
        convert_row(row, format=FILES[name], kind=kind)
    return rows


def _ranking_rows(judgement: Judgement) -> list[tuple[str, Row]]:
    """(file, row) for a ranking; raises RowError if the recipes would reject the whole ranking."""
    assert judgement.ranks is not None
    row = _ranked_row(judgement, judgement.ranks)
    ranked = read_ranked(row)
    group = group_id(ranked)
    replies = reversed(list(enumerate(judgement.replies)))
    number = {reply.text.strip(): i for i, reply in replies}  # the first of equal answers
    rows = [(RANKED, row)]
    for pair in pairs_of(ranked, pairs="all"):
        chosen, rejected = (number[_text(pair[side])] for side in ("chosen", "rejected"))
        rows.append((PREFERENCE, _pair_row(judgement, chosen, rejected) | {"group_id": group}))
    for label in labels_of(ranked, pairs="all"):
        answer = number[_text(label["completion"])]
        rows.append((UNPAIRED, _label_row(judgement, answer, label["label"])))
    return rows


def _pair_row(judgement: Judgement, chosen: int, rejected: int) -> Row:
    better, worse = judgement.replies[chosen], judgement.replies[rejected]
    columns = {"chosen": _completion(better), "rejected": _completion(worse)}
    return _row(judgement, columns, {"chosen": _origin(better), "rejected": _origin(worse)})


def _label_row(judgement: Judgement, number: int, label: bool) -> Row:
    reply = judgement.replies[number]
    columns = {"completion": _completion(reply), "label": label}
    return _row(judgement, columns, {"answer": _origin(reply)})


def _ranked_row(judgement: Judgement, ranks: Sequence[int]) -> Row:
    replies = judgement.replies
    columns = {"completions": [_completion(reply) for reply in replies], "ranks": list(ranks)}
    details = {"likert": judgement.likert, "flags": judgement.flags}
    return _row(judgement, columns, {"answers": [_origin(reply) for reply in replies]} | details)


def _row(judgement: Judgement, columns: Row, origin: Row) -> Row:
    provenance = {
        "judgement": judgement.id,
        "kind": judgement.kind,
        "labeler": judgement.labeler,
        "reason": judgement.reason,
        "time": judgement.time,
        "sampling": {name: float(value) for name, value in judgement.sampling.items()},
        "base": dict(judgement.base),
    }
    return {"prompt": list(judgement.prompt)} | columns | {"provenance": provenance | origin}


def _completion(reply: Reply) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": reply.text}]


def _text(completion: list[dict[str, str]]) -> str:
    return completion[0]["content"].strip()


def _origin(reply: Reply) -> dict[str, Any]:
    return {"checkpoint": reply.name, "adapter_sha256": reply.adapter, "seed": reply.seed}
