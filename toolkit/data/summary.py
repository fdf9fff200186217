"""The lines printed at loading: each source's rows, and how many were used or dropped."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.data.checks import count_contradictions
from toolkit.data.convert import Conversion, Kind
from toolkit.data.files import separator
from toolkit.data.folders import split_name
from toolkit.data.formats import FORMATS, common_columns
from toolkit.data.layout import LABEL_COLUMNS, SYSTEM_COLUMNS, Layout
from toolkit.data.messages import LOSS_KEYS, MASK_KEYS, THOUGHT_KEYS, Row
from toolkit.data.reading import Chunk
from toolkit.data.row_errors import FailedRow, row_numbers
from toolkit.data.sources import Source
from toolkit.data.splits import question_key

READ_IN_EVERY_FORMAT = {"group_id", "margin", *SYSTEM_COLUMNS}
MESSAGE_KEYS = {"role", "content", "from", "value", *THOUGHT_KEYS, *LOSS_KEYS, *MASK_KEYS}
MOST_NAMES = 6


@dataclass(frozen=True)
class LoadedSource:
    """A source with the rows of each split, before and after conversion."""

    source: Source
    format: str
    layout: Layout
    chunks: Mapping[str, Sequence[Chunk]]
    conversions: Mapping[str, Conversion]


def print_summary(
    loaded: Sequence[LoadedSource],
    rows: Mapping[str, Sequence[Row]],
    duplicates: Mapping[str, Sequence[FailedRow]],
    *,
    kind: Kind,
    dropped: bool,
) -> None:
    """Print a line for each source, and for a mixture one more about all rows.

    Args:
        loaded: the sources.
        rows: the converted rows of all sources by split, after a test split was held out.
        duplicates: rows that duplicate an earlier one, by the split they were read from.
        kind: the kind of the rows.
        dropped: whether the duplicates were dropped.
    """
    sizes = {split: len(split_rows) for split, split_rows in rows.items()}
    notes = _notes(rows, duplicates, kind, dropped=dropped)
    if len(loaded) == 1:
        print(_source_line(loaded[0], kind, sizes) + notes)
        return
    for source in loaded:
        source_sizes = {split: len(c.rows) for split, c in source.conversions.items()}
        print(_source_line(source, kind, source_sizes))
    print(f"mixture of {len(loaded)} sources: {kind} ({_list_sizes(sizes)}){notes}")


def _source_line(loaded: LoadedSource, kind: Kind, sizes: Mapping[str, int]) -> str:
    """A source's format, how it was determined, and the numbers of rows before and after."""
    source, format = loaded.source, loaded.format
    chunks = [chunk for split_chunks in loaded.chunks.values() for chunk in split_chunks]
    read = sum(len(c.rows) for c in chunks)
    if any(c.total is None for c in chunks):
        count = f"the first {read} rows of a stream"
    else:
        total = sum(c.total or 0 for c in chunks)
        count = f"{read} rows" if read == total else f"{read} of {total} rows"
        count = f"the first {count}" if read < total and source.fraction is None else count
    reason = "set by `dataset_format`"
    if source.format is None:
        reason = f"by its columns {', '.join(FORMATS[format].columns)}"
    line = f"{source.place}: {format} ({reason}), {count} -> {kind} ({_list_sizes(sizes)})"
    for split, split_chunks in loaded.chunks.items():
        files = _files(source.place, split, split_chunks)
        line += f"; the {split} rows are from {_list_names(files)}" if files else ""
    line += "".join(f"; {note}" for note in loaded.layout.notes)
    separators = {separator(Path(chunk.place)) for chunk in chunks} - {None}
    line += "".join(f"; {name} separate the fields" for name in sorted(map(str, separators)))
    dropped = sum(len(result.dropped) for result in loaded.conversions.values())
    line += f"; {dropped} malformed rows dropped" if dropped else ""
    for result in loaded.conversions.values():
        line += "".join(f"; {n} rows {reason}" for reason, n in result.unused.items())
    line += _dialogues(loaded.conversions.values(), kind)
    rows = loaded.layout.try_parse(row for chunk in chunks for row in chunk.rows)
    columns = _unread_columns(rows, format)
    line += f"; columns not read: {_list_names(columns)}" if columns else ""
    keys = _unread_keys(rows, format)
    line += f"; keys of messages not read: {_list_names(keys)}" if keys else ""
    return line + (f"; unused splits: {', '.join(source.unused)}" if source.unused else "")


def _files(place: str, split: str, chunks: Sequence[Chunk]) -> list[str]:
    """The files of a folder that are a split, unless each has the split's name."""
    folder = Path(place).expanduser()
    if not folder.is_dir():
        return []
    paths = [Path(chunk.place) for chunk in chunks if Path(chunk.place).is_file()]
    if all(split in (split_name(path), path.parent.name.lower()) for path in paths):
        return []
    return [str(path.relative_to(folder)) for path in paths]


def _list_sizes(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{split} {size}" for split, size in sizes.items())


def _dialogues(conversions: Iterable[Conversion], kind: Kind) -> str:
    """The number of dialogues and the number of rows made from them, if the two differ."""
    counts = [len(row.rows) for conversion in conversions for row in conversion.converted]
    if kind != "prompt-completion" or sum(counts) == len(counts):
        return ""
    return f"; {len(counts)} dialogues became {sum(counts)} examples, one for each assistant turn"


def _unread_columns(rows: Sequence[Row], format: str) -> list[str]:
    """The columns that the model does not read."""
    known = {*FORMATS[format].columns, *FORMATS[format].optional} | READ_IN_EVERY_FORMAT
    known |= set(LABEL_COLUMNS) if "label" in known else set()
    return sorted(map(str, common_columns(rows) - known))


def _unread_keys(rows: Sequence[Row], format: str) -> list[str]:
    """Keys of messages other than speaker and text, such as a weight."""
    keys: set[str] = set()
    for row in rows:
        for name in FORMATS[format].columns:
            value = row.get(name)
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, dict) and item.keys() & {"role", "from"}:
                    keys |= {str(key) for key, value in item.items() if value is not None}
    return sorted(keys - MESSAGE_KEYS)


def _list_names(names: Sequence[str]) -> str:
    # escaped, because a name may have characters that cannot be printed
    printable = ", ".join(
        n if n.isprintable() else n.encode("unicode_escape").decode() for n in names[:MOST_NAMES]
    )
    more = len(names) - MOST_NAMES
    return printable if more <= 0 else f"{printable} and {more} more"


def _notes(
    rows: Mapping[str, Sequence[Row]],
    duplicates: Mapping[str, Sequence[FailedRow]],
    kind: Kind,
    *,
    dropped: bool,
) -> str:
    """Duplicates, contradictions and shared prompts of all rows; each note starts with "; "."""
    line = ""
    for split, copies in duplicates.items():
        if copies:
            verb = "row duplicates" if len(copies) == 1 else "rows duplicate"
            effect = "dropped" if dropped else "kept unless `drop_duplicates: true` is set"
            line += (
                f"; {len(copies)} {split} {verb} an earlier one ({row_numbers(copies)}), {effect}"
            )
    contradictions = sum(count_contradictions(some, kind) for some in rows.values())
    if contradictions and kind == "preference":
        line += f"; {contradictions} pairs also occur with chosen and rejected swapped"
    if contradictions and kind == "unpaired":
        line += f"; {contradictions} completions are labelled both good and bad"
    if "test" in rows:
        questions = set(map(question_key, rows["train"]))
        shared = sum(question_key(row) in questions for row in rows["test"])
        line += f"; {shared} test rows have a prompt of the train split" if shared else ""
    return line
