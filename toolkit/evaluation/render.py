"""A report for people: `report.md` with tables, plots and examples, and a table for a terminal."""

import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.evaluation.failures import warnings
from toolkit.evaluation.plots import draw_all, short_name
from toolkit.evaluation.report import Example, Report, sampling_name, validate
from toolkit.runs.run import write_json

Entry = Mapping[str, Any]
Columns = dict[str, Callable[[Entry], str]]
LONGEST = 600  # characters of an example's answer
TERMINAL = 100  # columns
ABSENT = "–"
PLOTS = {
    "gold_proxy.png": "Mean gold utility and mean score of each checkpoint",
    "win_rates.png": "Win rate over SFT under three samplings",
    "rates.png": "How each checkpoint behaves",
    "training.png": "Score, KL and length during PPO",
    "calibration.png": "How often the labels agree with the reward model, by how sure it is",
}
# Inside a line only these can start markup: tags, entities, code, emphasis, links, images, maths,
# strikethrough, columns, headings, mentions. As entities they are text, whoever renders them.
SPECIAL = {ord(c): f"&#{ord(c)};" for c in "&<>|`*_[]\\~$#@"}
REWARD_MODEL = {
    "pairwise_accuracy": "orders a pair as its label says",
    "ceiling": "gold orders a pair as its label says",
    "labeler_agreement": "two labelers order a pair alike",
    "clear_gold_accuracy": "orders a pair as gold does where gold differs by 1 or more",
    "length_accuracy": "the longer answer is the chosen one",
    "length_correlation": "correlation of score and length within a prompt",
    "demonstration_mean": "mean score of the demonstrations",
}
ACCURACY_BY = {
    "accuracy_by_margin": "accuracy by how far the label (or gold) sets a pair apart",
    "accuracy_by_length": "accuracy by tokens that the chosen answer is longer",
}


def write(
    folder: str | os.PathLike[str],
    report: Report,
    *,
    examples: Sequence[Example] = (),
    training: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write report.json, the plots and report.md into a folder.

    Args:
        examples: what `report.examples` chose.
        training: rows of a PPO run's metrics.jsonl, for the plot of its training.

    Returns: the path of report.md.
    Raises: DatasetError where the report does not fit the schema.
    """
    validate(report)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    plots = [file.name for file in draw_all(report, folder, training=training)]
    page = folder / "report.md"
    page.write_text(to_markdown(report, examples, plots=plots), encoding="utf-8")
    return page


def to_markdown(
    report: Report, examples: Sequence[Example] = (), *, plots: Sequence[str] = ()
) -> str:
    """The page `report.md`; what a model or a user wrote stands in it as text, not as markup."""
    sampling, entries = report["sampling"], report["checkpoints"]
    parts = [
        "# Evaluation",
        f"{report['prompts']} prompts, seed {report['seed']}, both sides of a win rate sampled at "
        f"T = {sampling['temperature']:g}; intervals are 95 % bootstrap intervals over prompts.",
        _markdown_table("checkpoint", entries, _main_columns(entries)),
        "Win rates are over the SFT model's answers to the same prompts, ties counting half. KL is "
        "in nats per answer, length in tokens, lm_loss in nats per token of pretraining text.",
    ]
    found = warnings(report)
    if found:
        parts += ["## Warnings", "\n".join(f"- {as_text(line)}" for line in found)]
    parts += [f"![{PLOTS[name]}]({name})" for name in PLOTS if name in plots]
    parts += _reward_model_part(report.get("reward_model") or {})
    others = _other_samplings(entries)
    if others:
        parts += [
            "## Other samplings",
            _markdown_table("checkpoint", others, _short_columns(others)),
        ]
    if report["timings_s"]:
        seconds = {stage: {"s": t} for stage, t in report["timings_s"].items()}
        columns: Columns = {"seconds": lambda e: f"{e['s']:.1f}"}
        parts += ["## Time", _markdown_table("stage", seconds, columns)]
    if examples:
        parts += ["## Examples", _examples_table(examples)]
    return "\n\n".join(parts) + "\n"


def to_text(report: Report) -> str:
    """A table and the warnings for a terminal of 100 columns."""
    entries = report["checkpoints"]
    judge = _judge(entries)
    columns: Columns = {"gold": lambda e: _mean(e["gold"])} if judge == "gold" else {}
    columns |= {
        "score": lambda e: _mean(e.get("proxy")),
        "win vs SFT [95 %]": lambda e: _with_interval(e["win_rate_vs_sft"].get(judge)),
        "right": lambda e: _rate(e, "correct"),
        "halluc": lambda e: _rate(e, "hallucinated"),
        "harm": lambda e: _rate(e, "harmful_compliance"),
        "refuse": lambda e: _rate(e, "over_refusal"),
        "polite": lambda e: _rate(e, "polite"),
        "KL": lambda e: _plain(e["kl_to_sft"], 1),
        "len": lambda e: _plain(e["length"], 0),
        "ended": lambda e: _plain(e["ended"], 2),
        "lm": lambda e: _plain(e["lm_loss"], 3),
    }
    rows = [list(columns), *([show(e) for show in columns.values()] for e in entries.values())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    room = max(8, TERMINAL - sum(widths) - len(widths))
    names = [short_name(printable(name), room) for name in ("checkpoint", *entries)]
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
    """Text as Markdown and HTML show it literally, on one line of a table's cell."""
    lines = [printable(line) for line in text.split("\n")]
    escaped = "<br>".join(line.translate(SPECIAL) for line in lines)
    return escaped.replace("://", "&#58;//").replace("www.", "www&#46;")  # GitHub links addresses


def printable(text: str) -> str:
    """Control and invisible characters spelled out, so that none reaches a terminal or a page."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _main_columns(entries: Mapping[str, Entry]) -> Columns:
    columns = _short_columns(entries)
    return columns | {
        "KL to SFT": lambda e: _plain(e["kl_to_sft"], 2),
        "lm_loss": lambda e: _plain(e["lm_loss"], 3),
    }


def _short_columns(entries: Mapping[str, Entry]) -> Columns:
    """What is known under every sampling."""
    judge = _judge(entries)
    columns: Columns = {"gold": lambda e: _with_interval(e["gold"])} if judge == "gold" else {}
    columns |= {
        "score": lambda e: _mean(e.get("proxy")),
        f"win rate over SFT ({'gold' if judge == 'gold' else 'score'})": lambda e: _with_interval(
            e["win_rate_vs_sft"].get(judge)
        ),
    }
    if any(e.get("rates") for e in entries.values()):
        columns |= {
            "correct": lambda e: _rate(e, "correct"),
            "hallucinated": lambda e: _rate(e, "hallucinated"),
            "harmful compliance": lambda e: _rate(e, "harmful_compliance"),
            "over-refusal": lambda e: _rate(e, "over_refusal"),
            "polite": lambda e: _rate(e, "polite"),
        }
    return columns | {
        "length": lambda e: _plain(e["length"], 1),
        "ended": lambda e: _plain(e["ended"], 3),
    }


def _judge(entries: Mapping[str, Entry]) -> str:
    """Who decides a win: gold where it exists, else the reward model."""
    return "gold" if all(e.get("gold") for e in entries.values()) else "proxy"


def _other_samplings(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """ "name, T = 1" -> its numbers, sampling by sampling."""
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
    entries = {what: {"v": section.get(key)} for key, what in REWARD_MODEL.items()}
    tau = section.get("kendall_tau") or {"mean": None}
    entries["Kendall's τ with the labels, mean over prompts"] = {"v": tau["mean"]}
    ece = (section.get("calibration") or {}).get("ece")
    entries["expected calibration error of σ(score − score)"] = {"v": ece}
    low, high = section.get("pairwise_accuracy_ci95") or (None, None)
    if low is not None:
        interval = {"v": section["pairwise_accuracy"], "ci": f" [{low:.2f}, {high:.2f}]"}
        entries[REWARD_MODEL["pairwise_accuracy"]] = interval
    if "members_agreement" in section:
        entries["two members of the ensemble order a pair alike"] = {
            "v": section["members_agreement"]
        }
    columns: Columns = {"": lambda e: _plain(e["v"], 3) + e.get("ci", "")}
    tables = [_markdown_table("on held-out comparisons", entries, columns)]
    members = {str(i): {"v": v} for i, v in enumerate(section.get("members_accuracy") or ())}
    if members:
        right: Columns = {REWARD_MODEL["pairwise_accuracy"]: lambda e: _plain(e["v"], 3)}
        tables.append(_markdown_table("member of the ensemble", members, right))
    for key, title in ACCURACY_BY.items():
        parts = {f"{p['low']:g} to {p['high']:g}": p for p in section.get(key) or ()}
        if parts:
            shown: Columns = {
                "accuracy": lambda e: _plain(e["accuracy"], 3),
                "pairs": lambda e: str(e["pairs"]),
            }
            tables.append(_markdown_table(title, parts, shown))
    return ["## Reward model", *tables]


def _examples_table(examples: Sequence[Example]) -> str:
    names = list(dict.fromkeys(name for e in examples for name in e["completions"]))
    entries = {example["prompt"]: example["completions"] for example in examples}
    columns: Columns = {}
    for name in names:
        columns[as_text(name)] = lambda said, name=name: _answer(said.get(name))  # type: ignore[misc]
    return _markdown_table("prompt", entries, columns)


def _answer(said: Entry | None) -> str:
    if said is None:
        return ABSENT
    known = {"gold": said.get("gold"), "score": said.get("proxy")}
    notes = ", ".join(f"{what} {value:.2f}" for what, value in known.items() if value is not None)
    return as_text(_cut(said["text"], LONGEST)) + (f"<br><sub>{notes}</sub>" if notes else "")


def _markdown_table(first: str, entries: Mapping[str, Entry], columns: Columns) -> str:
    rows = [[first, *columns], ["---"] * (len(columns) + 1)]
    for name, entry in entries.items():
        rows.append([as_text(_cut(name, LONGEST)), *(show(entry) for show in columns.values())])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _plain(value: float | None, digits: int) -> str:
    return ABSENT if value is None else f"{value:.{digits}f}"


def _mean(interval: Entry | None) -> str:
    return ABSENT if interval is None else f"{interval['mean']:.2f}"


def _with_interval(interval: Entry | None) -> str:
    if interval is None:
        return ABSENT
    low, high = interval["ci95"]
    return f"{interval['mean']:.2f} [{low:.2f}, {high:.2f}]"


def _rate(entry: Entry, name: str) -> str:
    return _plain((entry.get("rates") or {}).get(name), 2)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
