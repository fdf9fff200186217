"""Writes a report as `report.md` with tables, plots and examples, and as a table of text."""

import os
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.evaluation.failures import warnings
from toolkit.evaluation.plots import draw_all, short_names
from toolkit.evaluation.report import Example, Report, sampling_name, validate
from toolkit.runs.run import write_json

Entry = Mapping[str, Any]
Columns = dict[str, Callable[[Entry], str]]
LONGEST = 600  # characters of an example's answer
TERMINAL = 100  # columns
ABSENT = "–"
PLOTS = {
    "gold_proxy.png": "Mean score of each checkpoint, one panel per scorer",
    "gold_kl.png": "Gain in gold over SFT by the distance from SFT, with the curves of arXiv:2210.10760",
    "win_rates.png": "Win rate over SFT under each sampling",
    "rates.png": "Behaviour of each checkpoint",
    "training.png": "Score, KL and length during PPO",
    "calibration.png": "Agreement of the labels with the reward model, by its probability",
}
# Inside a line only these characters start markup: tags, entities, code, emphasis, links, images,
# maths, strikethrough, columns, headings, mentions. Every renderer shows their entities as text.
SPECIAL = {ord(c): f"&#{ord(c)};" for c in "&<>|`*_[]\\~$#@"}
RATE_NAMES = {  # key -> column of report.md, column of the terminal
    "correct": ("correct", "right"),
    "hallucinated": ("hallucinated", "halluc"),
    "harmful_compliance": ("harmful compliance", "harm"),
    "over_refusal": ("over-refusal", "refuse"),
    "polite": ("polite", "polite"),
}
ACCURACY = "accuracy: the score prefers the chosen answer"
REWARD_MODEL = {
    "pairwise_accuracy": ACCURACY,
    "ceiling": "ceiling: gold prefers the chosen answer",
    "labeler_agreement": "two labelers prefer the same answer",
    "clear_gold_accuracy": "score and gold prefer the same answer, where gold differs by 1 or more",
    "length_accuracy": "the longer answer is the chosen one",
    "length_correlation": "correlation of score and length within a prompt",
    "demonstration_mean": "mean score of the demonstrations",
}
ACCURACY_BY = {
    "accuracy_by_margin": "accuracy by the margin of the label{or_gold}",
    "accuracy_by_length": "accuracy by tokens of the chosen answer minus tokens of the rejected answer",
}


def write(
    folder: str | os.PathLike[str],
    report: Report,
    *,
    examples: Sequence[Example] = (),
    training: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write report.json, the plots, report.md and report.txt into a folder.

    Args:
        examples: the result of `report.examples`.
        training: rows of a PPO run's metrics.jsonl, for the training plot.

    Returns: the path of report.md.
    Raises: DatasetError if the report does not match the schema.
    """
    validate(report)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    plots = [file.name for file in draw_all(report, folder, training=training)]
    (folder / "report.txt").write_text(to_text(report), encoding="utf-8")
    page = folder / "report.md"
    page.write_text(to_markdown(report, examples, plots=plots), encoding="utf-8")
    return page


def to_markdown(
    report: Report, examples: Sequence[Example] = (), *, plots: Sequence[str] = ()
) -> str:
    """The page `report.md`; texts of models and users are escaped, so that they add no markup."""
    sampling, entries = report["sampling"], report["checkpoints"]
    columns = _columns(entries) | {
        "KL to SFT": lambda e: _number(e["kl_to_sft"], 2),
        "lm_loss": lambda e: _number(e["lm_loss"], 3),
        "perplexity": lambda e: _number(e.get("base_perplexity"), 1),
    }
    parts = [
        "# Evaluation",
        f"{report['prompts']} prompts, seed {report['seed']}. Both sides of a win rate are sampled at "
        f"T = {sampling['temperature']:g}. Intervals are 95 % bootstrap intervals over prompts.",
        _entries_table(entries, columns),
        "Win rates are over the SFT model's answers to the same prompts, ties counting half. KL is "
        "in nats per answer, length in tokens, and lm_loss in nats per token of pretraining text. "
        "Perplexity is that of the answers under the base without an adapter; a high value means odd text.",
        _base_prompting(report),
    ]
    problems = warnings(report)
    if problems:
        parts += ["## Warnings", "\n".join(f"- {as_text(line)}" for line in problems)]
    parts += [f"![{PLOTS[name]}]({name})" for name in PLOTS if name in plots]
    parts += _reward_model_part(report.get("reward_model") or {})
    others = _other_samplings(entries)
    if others:
        parts += ["## Other samplings", _entries_table(others, _columns(others))]
    if report["timings_s"]:
        rows = [(stage, f"{seconds:.1f}") for stage, seconds in report["timings_s"].items()]
        parts += ["## Time", _table(["stage", "seconds"], rows)]
    if examples:
        parts += ["## Examples", _examples_table(examples)]
    return "\n\n".join(parts) + "\n"


def _base_prompting(report: Report) -> str:
    """How the base without an adapter was prompted."""
    count = report.get("few_shot") or 0
    if count:
        return f"The base answered each prompt after {count} demonstrations."
    return "The base answered each prompt through its chat template, without demonstrations."


def to_text(report: Report) -> str:
    """A table and the warnings for a terminal of 100 columns."""
    entries = report["checkpoints"]
    judge = _judge(entries)
    columns: Columns = {"gold": lambda e: _mean(e["gold"])} if judge == "gold" else {}
    columns |= {
        "score": lambda e: _mean(e.get("proxy")),
        "win vs SFT [95 %]": lambda e: _with_interval(e["win_rate_vs_sft"].get(judge)),
        **{short: _rate(rate) for rate, (_, short) in RATE_NAMES.items()},
        "KL": lambda e: _number(e["kl_to_sft"], 1),
        "len": lambda e: _number(e["length"], 0),
        "ended": lambda e: _number(e["ended"], 2),
        "lm": lambda e: _number(e["lm_loss"], 3),
    }
    rows = [list(columns), *([cell(e) for cell in columns.values()] for e in entries.values())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = max(8, TERMINAL - sum(widths) - len(widths))
    names = short_names([printable(name) for name in ("checkpoint", *entries)], room)
    longest = max(map(len, names))
    lines = [
        " ".join([name.ljust(longest), *(c.rjust(w) for c, w in zip(row, widths, strict=True))])
        for name, row in zip(names, rows, strict=True)
    ]
    lines.insert(1, "-" * len(lines[0]))
    for line in warnings(report):
        lines += textwrap.wrap(f"! {printable(line)}", TERMINAL, subsequent_indent="  ")
    return "\n".join(lines)


def as_text(text: str) -> str:
    """Text escaped for one table cell, so that Markdown and HTML show it literally."""
    lines = [printable(line) for line in text.split("\n")]
    escaped = "<br>".join(line.translate(SPECIAL) for line in lines)
    return escaped.replace("://", "&#58;//").replace("www.", "www&#46;")  # against automatic links


def printable(text: str) -> str:
    """Text with control and invisible characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _columns(entries: Mapping[str, Entry]) -> Columns:
    """The columns that the tables of all samplings share."""
    judge = _judge(entries)
    columns: Columns = {"gold": lambda e: _with_interval(e["gold"])} if judge == "gold" else {}
    columns["score"] = lambda e: _mean(e.get("proxy"))
    win_rate = f"win rate over SFT ({'gold' if judge == 'gold' else 'score'})"
    columns[win_rate] = lambda e: _with_interval(e["win_rate_vs_sft"].get(judge))
    if any(e.get("rates") for e in entries.values()):
        columns |= {name: _rate(rate) for rate, (name, _) in RATE_NAMES.items()}
    return columns | {
        "length": lambda e: _number(e["length"], 1),
        "ended": lambda e: _number(e["ended"], 3),
    }


def _judge(entries: Mapping[str, Entry]) -> str:
    """The scorer that decides a win: gold if all entries have it, else the reward model."""
    return "gold" if all(e.get("gold") for e in entries.values()) else "proxy"


def _other_samplings(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Display name ("ppo, T = 1") -> numbers, sorted by sampling."""
    keys = dict.fromkeys(k for e in entries.values() for k in e.get("other_sampling", {}))
    return {
        f"{name}, {sampling_name(key)}": entry["other_sampling"][key]
        for key in keys
        for name, entry in entries.items()
        if key in entry.get("other_sampling", {})
    }


def _reward_model_part(section: Entry) -> list[str]:
    if not section:
        return []
    has_gold = section.get("ceiling") is not None
    values = {
        label: _number(section[key], 3)
        for key, label in REWARD_MODEL.items()
        if section.get(key) is not None
    }
    tau, ece = ((section.get(key) or {}) for key in ("kendall_tau", "calibration"))
    values["Kendall's τ with the labels, mean over prompts"] = _number(tau.get("mean"), 3)
    values["expected calibration error of σ(score − score)"] = _number(ece.get("ece"), 3)
    if section.get("pairwise_accuracy_ci95"):
        low, high = section["pairwise_accuracy_ci95"]
        values[ACCURACY] += f" [{low:.2f}, {high:.2f}]"
    if "members_agreement" in section:
        agreement = _number(section["members_agreement"], 3)
        values["two members of the ensemble prefer the same answer"] = agreement
    tables = [_table(["on held-out comparisons", ""], values.items())]
    members = section.get("members_accuracy")
    if members:
        rows = [(str(i), _number(accuracy, 3)) for i, accuracy in enumerate(members)]
        tables.append(_table(["member of the ensemble", ACCURACY], rows))
    for key, title in ACCURACY_BY.items():
        title = title.format(or_gold=" (or of gold)" if has_gold else "")
        if section.get(key):
            parts = [
                (f"{p['low']:g} to {p['high']:g}", _number(p["accuracy"], 3), str(p["pairs"]))
                for p in section[key]
            ]
            tables.append(_table([title, "accuracy", "pairs"], parts))
    return ["## Reward model", *tables]


def _examples_table(examples: Sequence[Example]) -> str:
    names = list(dict.fromkeys(name for e in examples for name in e["completions"]))
    rows = [
        (e["prompt"], *(_answer(e["completions"].get(name)) for name in names)) for e in examples
    ]
    return _table(["prompt", *map(as_text, names)], rows)


def _answer(answer: Entry | None) -> str:
    if answer is None:
        return ABSENT
    scores = {"gold": answer.get("gold"), "score": answer.get("proxy")}
    notes = ", ".join(f"{name} {value:.2f}" for name, value in scores.items() if value is not None)
    return as_text(_cut(answer["text"], LONGEST)) + (f"<br><sub>{notes}</sub>" if notes else "")


def _entries_table(entries: Mapping[str, Entry], columns: Columns) -> str:
    rows = [(name, *(cell(e) for cell in columns.values())) for name, e in entries.items()]
    return _table(["checkpoint", *columns], rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first cell of each row is plain text, the other cells are Markdown."""
    lines = [header, ["---"] * len(header)]
    lines += [[as_text(_cut(first, LONGEST)), *cells] for first, *cells in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float | None, digits: int) -> str:
    return ABSENT if value is None else f"{value:.{digits}f}"


def _mean(interval: Entry | None) -> str:
    return ABSENT if interval is None else f"{interval['mean']:.2f}"


def _with_interval(interval: Entry | None) -> str:
    if interval is None:
        return ABSENT
    low, high = interval["ci95"]
    return f"{interval['mean']:.2f} [{low:.2f}, {high:.2f}]"


def _rate(name: str) -> Callable[[Entry], str]:
    return lambda entry: _number((entry.get("rates") or {}).get(name), 2)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
