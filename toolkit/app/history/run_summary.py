"""Runs in words: their states, which of them are shown first, and the story of one."""

from collections.abc import Mapping

from toolkit.app.history.curves import CHOSEN_AT_FIRST
from toolkit.app.history.history import History, Record, duration, moment

LONGEST_REASON = 110  # characters in the table; the whole stands below


def state_in_words(record: Record) -> str:
    """State and reason for the table, where a long reason is cut."""
    reason = record.detail
    if len(reason) > LONGEST_REASON:
        reason = f"{reason[: LONGEST_REASON - 1]}…"
    return f"{record.state}: {reason}" if reason else record.state


def first_choice(records: Mapping[str, Record]) -> list[str]:
    """The run that trains, or else the latest ones that logged something."""
    logged = [r for r in records.values() if (r.path / "metrics.jsonl").is_file()]
    training = [r.id for r in logged if r.state == "running"]
    return (training or [r.id for r in logged])[:CHOSEN_AT_FIRST]


def reported(records: Mapping[str, Record]) -> str | None:
    """The latest run with a report."""
    return next((k for k, r in records.items() if (r.path / "report.md").is_file()), None)


def story_of(record: Record, history: History) -> str:
    """State, time and ancestors as lines."""
    lines = [f"{record.name}: {record.state}"]
    if record.detail:
        lines.append(record.detail)
    if record.started is not None:
        took = f", took {duration(record.seconds)}" if record.seconds else ""
        lines.append(f"started {moment(record.started)}{took}")
    return "\n".join([*lines, "", history.lineage(record)])


def results_of(record: Record) -> str:
    """The manifest's results and versions as lines."""
    run = record.run
    if run is None:
        return ""
    lines = []
    for title, values in (("", run.results), ("versions", run.versions)):
        if isinstance(values, dict) and values:
            lines += [title] * bool(title)
            lines += [f"{'  ' * bool(title)}{k}: {_short(v)}" for k, v in values.items()]
    return "\n".join(lines) or "nothing was written down"


def _short(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 300 else f"{text[:299]}…"
