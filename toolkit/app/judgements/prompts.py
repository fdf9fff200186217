"""Prompts for labelers, from a file that the operator names."""

from pathlib import Path

from toolkit.app.answering.request import MAX_PROMPT_CHARACTERS
from toolkit.data.convert import check_conversion, convert_rows
from toolkit.data.files import read_rows
from toolkit.data.formats import detect_format
from toolkit.errors import DatasetError


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file, each once, in its order.

    A `.txt` file has one to a line; data files (`.jsonl`, `.json`, `.csv`, `.parquet`) have rows of
    any format of toolkit/data/formats.py. Prompts of several messages, and those longer than the
    page takes, are left out.

    Raises: DatasetError where the file cannot be read or none is left.
    """
    if path.suffix == ".txt":
        try:
            found = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"{path}: cannot read the prompts ({error})") from error
    else:
        found = _of_rows(path)
    kept = [text.strip() for text in found if text.strip()]
    kept = [text for text in dict.fromkeys(kept) if len(text) <= MAX_PROMPT_CHARACTERS]
    if not kept:
        raise DatasetError(
            f"{path}: no prompt of one message with at most {MAX_PROMPT_CHARACTERS} characters in it"
        )
    return kept


def _of_rows(path: Path) -> list[str]:
    rows = read_rows(path)
    format = detect_format(rows, place=str(path))
    check_conversion(format=format, kind="prompt-only", place=str(path))
    made = convert_rows(
        rows, place=str(path), format=format, kind="prompt-only", drop_bad_rows=True
    )
    asked = [row["prompt"] for row in made.rows]
    return [p if isinstance(p, str) else p[0]["content"] if len(p) == 1 else "" for p in asked]
