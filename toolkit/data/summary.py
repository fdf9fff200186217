"""What loading prints: what was found in each source, and what became of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.data.duplicates import count_contradictions
from toolkit.data.formats import FORMATS, Kind, common_columns
from toolkit.data.messages import Row
from toolkit.data.reading import Chunk
from toolkit.data.row_errors import Failure, numbers
from toolkit.data.rows import Converted
from toolkit.data.sources import Source
from toolkit.data.splitting import prompt_key

READ_ANYWHERE = {"group_id", "margin"}
MESSAGE_KEYS = {"role", "content", "from", "value"}
MOST_NAMES = 6


@dataclass(frozen=True)
class Found:
    """A source with its rows as they were read, and as they were converted, by split."""

    source: Source
    format: str
    chunks: Mapping[str, Sequence[Chunk]]
    results: Mapping[str, Converted]


def source_line(found: Found, kind: Kind, sizes: Mapping[str, int]) -> str:
    """A source's format and how it is known, and its rows before and after.

    Args:
        found: the source.
        kind: what the rows became.
        sizes: rows of each split afterwards.
    """
    source, format = found.source, found.format
    chunks = [chunk for some in found.chunks.values() for chunk in some]
    read = sum(len(c.rows) for c in chunks)
    if any(c.total is None for c in chunks):
        count = f"the first {read} rows of a stream"
    else:
        total = sum(c.total or 0 for c in chunks)
        count = f"{read} rows" if read == total else f"{read} of {total} rows"
        count = f"the first {count}" if read < total and source.fraction is None else count
    how = "as `dataset_format` says"
    if source.format is None:
        how = f"by its columns {', '.join(FORMATS[format].columns)}"
    made = ", ".join(f"{name} {size}" for name, size in sizes.items())
    line = f"{source.place}: {format} ({how}), {count} -> {kind} ({made})"
    files = [Path(chunk.place).name for chunk in found.chunks["train"]]
    if Path(source.place).is_dir() and not all(n.lower().startswith("train") for n in files):
        line += f"; train is {_names(files)}"
    dropped = sum(len(result.dropped) for result in found.results.values())
    line += f"; {dropped} malformed rows dropped" if dropped else ""
    for result in found.results.values():
        line += "".join(f"; {n} rows {why}" for why, n in result.unused.items())
    line += _turns(found.results.values(), kind)
    unread = _unread(chunks, format)
    line += f"; columns not read: {_names(unread)}" if unread else ""
    keys = _unread_keys(chunks, format)
    line += f"; keys of messages not read: {_names(keys)}" if keys else ""
    return line + (f"; not used: the splits {', '.join(source.unused)}" if source.unused else "")


def _turns(results: Iterable[Converted], kind: Kind) -> str:
    """How many dialogues became how many examples, where that is not the same."""
    made = [len(made.rows) for result in results for made in result.made]
    if kind != "prompt-completion" or sum(made) == len(made):
        return ""
    return f"; {len(made)} dialogues became {sum(made)} examples, one for each assistant turn"


def _unread(chunks: Sequence[Chunk], format: str) -> list[str]:
    """The columns that say nothing to the model."""
    rows = [row for chunk in chunks for row in chunk.rows if isinstance(row, dict)]
    known = {*FORMATS[format].columns, *FORMATS[format].optional} | READ_ANYWHERE
    return sorted(map(str, common_columns(rows) - known))


def _unread_keys(chunks: Sequence[Chunk], format: str) -> list[str]:
    """What messages hold beside speaker and text, such as a weight or the thoughts before them."""
    found: set[str] = set()
    for row in (row for chunk in chunks for row in chunk.rows if isinstance(row, dict)):
        for name in FORMATS[format].columns:
            given = row.get(name)
            for item in given if isinstance(given, list) else [given]:
                if isinstance(item, dict) and item.keys() & {"role", "from"}:
                    found |= {str(key) for key, value in item.items() if value is not None}
    return sorted(found - MESSAGE_KEYS)


def _names(found: Sequence[str]) -> str:
    # spelled out, since a name may hold what cannot be printed
    listed = ", ".join(
        n.encode("unicode_escape").decode() if not n.isprintable() else n
        for n in found[:MOST_NAMES]
    )
    return listed if len(found) <= MOST_NAMES else f"{listed} and {len(found) - MOST_NAMES} more"


def remarks(
    rows: Mapping[str, Sequence[Row]],
    repeats: Mapping[str, Sequence[Failure]],
    *,
    kind: Kind,
    dropped: bool,
) -> str:
    """What a user should know of all rows together, each after a semicolon.

    Args:
        rows: the converted rows by split.
        repeats: rows that repeat an earlier one, by the split they were read in.
        kind: what the rows are.
        dropped: whether the repeated ones were left out.
    """
    line = ""
    for split, found in repeats.items():
        if found:
            what = "row repeats" if len(found) == 1 else "rows repeat"
            left = ", dropped" if dropped else ", which `drop_duplicates: true` would drop"
            line += f"; {len(found)} {split} {what} an earlier one ({numbers(found)}){left}"
    opposed = sum(count_contradictions(some, kind) for some in rows.values())
    if opposed and kind == "preference":
        line += f"; {opposed} comparisons stand there both ways round"
    if opposed and kind == "unpaired":
        line += f"; {opposed} answers are labelled both good and bad"
    if "test" in rows:
        seen = set(map(prompt_key, rows["train"]))
        shared = sum(prompt_key(row) in seen for row in rows["test"])
        line += f"; {shared} test rows have a prompt of the train split" if shared else ""
    return line
