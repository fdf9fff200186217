"""The judgements of models: the runs of `toolkit judge`, each a source of ratings beside people's votes."""

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from toolkit.app.judgements.judgement import Judgement, complete_judgement
from toolkit.app.judgements.leaderboard import Board, leaderboard
from toolkit.app.judgements.store import COLUMNS, as_row, from_row
from toolkit.errors import DatasetError
from toolkit.reading import parse_json, read_bytes
from toolkit.runs.listing import list_runs

FILE = "judgements.jsonl"
MAX_BYTES = 64 << 20


def write_judgements(folder: Path, judgements: Iterable[Judgement]) -> None:
    """Write a judge's judgements into its run; the file is replaced as a whole."""
    temporary = folder / f".{FILE}.{os.getpid()}"
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(as_row(judgement)) + "\n" for judgement in judgements)
    os.replace(temporary, folder / FILE)


def read_judgements(file: Path) -> list[Judgement]:
    """The judgements in a file of `write_judgements`. The file is not trusted.

    Raises: DatasetError if it is damaged or too large.
    """
    try:
        lines = read_bytes(file, at_most=MAX_BYTES).splitlines()
        return [_checked(from_row([parse_json(line)[c] for c in COLUMNS])) for line in lines]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DatasetError(f"{file}: damaged ({error}); run `toolkit judge` again") from error


def _checked(stored: Judgement) -> Judgement:
    """The judgement, with the checks of a visitor's input."""
    names = [text for reply in stored.replies for text in (reply.name, reply.text)]
    if len(stored.replies) < 2 or not all(isinstance(text, str) for text in names):
        raise ValueError("a judgement needs two answers with names")
    checked = complete_judgement(
        stored, time=stored.time, verdict=stored.verdict, ranks=stored.ranks, labeler=stored.labeler
    )
    return replace(checked, reason=stored.reason)


def judged_boards(runs: Path) -> dict[str, Board | str]:
    """The ratings of each judge's run below a folder, or why they cannot be computed, by the run's path."""
    boards: dict[str, Board | str] = {}
    for run in list_runs(runs)[0]:
        if run.state == "finished" and (run.path / FILE).is_file():
            name = f"{run.path.relative_to(runs)} ({run.results.get('judge', 'unknown')})"
            try:
                boards[name] = leaderboard(read_judgements(run.path / FILE))
            except DatasetError as error:
                boards[name] = str(error).removeprefix(f"{run.path}/")
    return boards
