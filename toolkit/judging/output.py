"""The files of a judge's run: training data, report."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from toolkit.app.judgements.export import Export
from toolkit.app.judgements.judgement import BATTLE, MAX_LABELER, RANKING, TIE, A, B, Judgement
from toolkit.data.messages import Row
from toolkit.data.ranking import group_id, labels_of, pairs_of, read_ranked
from toolkit.judging.verdicts import Judged
from toolkit.runs.run import write_json

# in a folder with train.jsonl, the other files are splits that no recipe reads
RANKED, PREFERENCE, UNPAIRED = "train.jsonl", "preference.jsonl", "unpaired.jsonl"
SENTENCES = {
    "first_shown_wins": "the answer that is shown first wins (0.5 without position bias)",
    "same_in_both_orders": "pairs with the same verdict in both orders",
    "longer_wins": "the longer answer wins (0.5 without length bias)",
}


def write_data(items: Sequence[Judged], folder: Path, *, judge: str) -> dict[str, int]:
    """Write the ranked answers in three formats; each file is replaced as a whole.

    Returns: the number of rows of each file.
    """
    rows: dict[str, list[Row]] = {RANKED: [], PREFERENCE: [], UNPAIRED: []}
    for one in items:
        if len(one.scores) < 2:
            continue
        row = {
            "prompt": one.item.prompt,
            "completions": [one.item.completions[i] for i in one.kept],
            "ranks": one.ranks,
        }
        ranked = read_ranked(row)
        origin: Row = {"group_id": group_id(ranked), "judge": judge}
        scores = [one.scores[one.item.texts[i]] for i in one.kept]
        rows[RANKED].append(row | {"scores": scores} | origin)
        rows[PREFERENCE] += [pair | origin for pair in pairs_of(ranked, pairs="all")]
        rows[UNPAIRED] += [label | origin for label in labels_of(ranked, pairs="all")]
    lines = {name: list(map(_line, some)) for name, some in rows.items()}
    Export(lines, {}).write(folder)
    return {name.removesuffix(".jsonl"): len(some) for name, some in rows.items()}


def as_judgements(items: Sequence[Judged], *, judge: str) -> Iterator[Judgement]:
    """The judge's verdicts on answers of known checkpoints, as judgements of the app."""
    time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for number, one in enumerate(items):
        if one.item.sampled is None or len(one.kept) < 2:
            continue
        pair = len(one.kept) == 2
        yield replace(
            one.item.sampled,
            id=f"judge-{number}",
            kind=BATTLE if pair else RANKING,
            replies=tuple(one.item.replies[i] for i in one.kept),
            verdict={(1, 2): A, (2, 1): B, (1, 1): TIE}[one.ranks[0], one.ranks[1]]
            if pair
            else None,
            ranks=None if pair else tuple(one.ranks),
            likert=None,
            flags=None,
            reason="",
            labeler=f"judge {judge}"[:MAX_LABELER],
            time=time,
        )


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_report(report: Mapping[str, Any], folder: Path, *, judge: str) -> str:
    """Write report.json and report.md; return the text for the terminal."""
    write_json(folder / "report.json", {"schema": 1, "judge": judge, **report})
    text = "\n".join(_lines(report))
    (folder / "report.md").write_text(
        f"# Verdicts of the judge {json.dumps(judge)}\n\nA model judged these answers, not people.\n\n"
        f"```\n{text}\n```\n",
        encoding="utf-8",
    )
    return text


def _lines(report: Mapping[str, Any]) -> Iterable[str]:
    yield f"{report['ranked_prompts']} of {report['prompts']} prompts ranked, {report['pairs']} pairs"
    if report["ties"] is not None:
        yield f"{report['ties']:.2f} ties"
    for name, sentence in SENTENCES.items():
        if (interval := report[name]) is not None:
            yield f"{_shown(interval)} {sentence}"
    for aspect, mean in (report["ratings"] or {}).items():
        yield f"{mean:.2f} {aspect}, mean of 1 to 5"
    for name, interval in report["win_rates"].items():
        yield f"{_shown(interval)} wins of {name} over the others, ties half"
    for other, found in report["agreement"].items():
        if found is not None:
            yield (
                f"{found['equal']:.2f} of {found['votes']} verdicts equal those of the {other}: "
                f"kappa {_shown(found['kappa'])}, alpha {_shown(found['alpha'])}"
            )
    left_out = ", ".join(f"{n} {problem}" for problem, n in report["left_out"].items()) or "none"
    yield (
        f"{report['questions']} questions, left out: {left_out}; {report['malformed_replies']} malformed "
        f"replies; {report['prompt_tokens']} + {report['completion_tokens']} tokens"
    )
    if report["left_out"]:
        yield f"the first one that is left out: {report['left_out_example'][:200]!r}"


def _shown(interval: Mapping[str, Any]) -> str:
    low, high = interval["ci95"]
    if interval["mean"] is None:
        return "undefined"
    ends = "" if low is None else f" [{low:.2f}, {high:.2f}]"
    return f"{interval['mean']:.2f}{ends}"
