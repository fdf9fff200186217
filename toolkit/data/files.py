"""Reads local data files as rows with their row numbers."""

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TextIO, cast

from toolkit.data.class_labels import label_names_of_parquet, table_rows
from toolkit.data.row_errors import Unreadable, as_json
from toolkit.errors import DatasetError

NOT_UTF8 = "surrogateescape"  # decodes a byte that is not UTF-8 to one of these code points:
LOST_BYTE = re.compile("[\udc80-\udcff]")
FIELD_LIMIT = 2**31 - 1
TABLES = (".csv", ".tsv")
BLANK = codecs.BOM_UTF8 + b" \t\r\n"
SPACE = re.compile(r"\s*")
# The names under which an object in a .json file has its rows.
WRAPPERS = {"data", "rows", "examples", "instances", "records", "samples"}
SAMPLE = 50  # records from which the separator of a CSV file is found
BATCH = 256  # rows of a Parquet file in memory at a time


def read_rows(path: Path) -> list[Any]:
    """All rows of a data file. See `stream_rows`."""
    return list(stream_rows(path))


def stream_rows(path: Path) -> Iterator[Any]:
    """Read the rows of a data file one by one; the extension determines how.

    A JSON list, UTF-16 text, and a Parquet file in `.gz` are read whole. A line or record that
    cannot be parsed becomes an `Unreadable`, which the checks report. All values of a CSV file are
    texts.

    Raises: DatasetError at the point where the file cannot be read.
    """
    extension = _extension(path)
    try:
        with _open(path) as file:
            if extension in TABLES:
                yield from _csv(_as_text(file), path)
            elif extension in (".jsonl", ".ndjson"):
                yield from _jsonl(file, path)
            elif extension == ".parquet":
                yield from _parquet(io.BytesIO(file.read()) if _is_zipped(path) else file, path)
            else:
                yield from _json(file.read().removeprefix(codecs.BOM_UTF8), path)
    except (OSError, EOFError, zlib.error, UnicodeError) as error:
        raise DatasetError(f"{path}: cannot read the file ({error})") from error


def separator(path: Path) -> str | None:
    """The separator of a CSV file's fields if it is not a comma; otherwise None."""
    if _extension(path) != ".csv" or not path.is_file():
        return None
    with _open(path) as file:
        delimiter = _delimiter(_as_text(file), path)
    return None if delimiter == "," else _name(delimiter)


def _is_zipped(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _extension(path: Path) -> str:
    return Path(path.stem).suffix.lower() if _is_zipped(path) else path.suffix.lower()


def _open(path: Path) -> IO[bytes]:
    """A file's bytes, unzipped; UTF-16 text (Excel's "Unicode text") as UTF-8."""
    zipped, is_table = _is_zipped(path), _extension(path) == ".parquet"
    file = cast("IO[bytes]", gzip.open(path) if zipped else path.open("rb"))  # noqa: SIM115
    start = file.read(2)
    file.seek(0)
    if is_table or start not in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return file
    with file:
        return io.BytesIO(file.read().decode("utf-16").encode())


def _as_text(file: IO[bytes]) -> TextIO:
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors=NOT_UTF8, newline="")


def _jsonl(file: IO[bytes], path: Path) -> Iterator[Any]:
    """Read one row per line; also a JSON list, or rows that span several lines."""
    first = next((line for line in file if line.strip(BLANK)), b"").strip(BLANK)
    file.seek(0)
    if first.startswith(b"[") or _continues(first):
        rows = _whole(file.read(), path)
        if rows is not None:
            yield from rows
            return
        file.seek(0)
        if first.startswith(b"[") and _continues(first):  # its lines are not rows
            yield from _json(file.read().removeprefix(codecs.BOM_UTF8), path)
            return
    # bytes.splitlines() splits at \n and \r only. str.splitlines() also splits at
    # U+2028, which JSON may contain.
    yield from _json_lines(line for part in file for line in part.splitlines())


def _continues(line: bytes) -> bool:
    """Whether a line is the beginning of a longer JSON value, such as `{`."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return error.pos >= len(error.doc)
    except (ValueError, RecursionError):
        pass
    return False


def _whole(data: bytes, path: Path) -> list[Any] | None:
    """The rows of a JSON list, of an object, or of consecutive objects; None for anything else."""
    decode = json.JSONDecoder(object_pairs_hook=_object).raw_decode
    values: list[Any] = []
    try:
        text = data.decode("utf-8-sig").strip()
        end = 0
        while end < len(text):
            value, end = decode(text, _skip_space(text, end))
            values.append(value)
            if isinstance(value, list) and end < len(text):
                return None
    except (ValueError, RecursionError):
        return None
    if len(values) == 1:
        return _rows_of(values[0], path)
    return values or None


def _skip_space(text: str, start: int) -> int:
    match = SPACE.match(text, start)
    return start if match is None else match.end()


def _rows_of(value: Any, path: Path) -> list[Any]:
    """The rows in a JSON value: a list, one row, or an object such as `{"data": [rows]}`."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise DatasetError(f"{path}: expected a list of rows, got {type(value).__name__}")
    lists = {name for name, rows in value.items() if _is_rows(rows)}
    if lists & {"train", "test"}:
        raise DatasetError(
            f"{path}: holds the splits {', '.join(sorted(lists))}; write each split into its own "
            "file (train.json, test.json) in one folder"
        )
    wrapped = sorted(lists & WRAPPERS)
    return list(value[wrapped[0]]) if len(wrapped) == 1 else _by_column(value) or [value]


def _by_column(value: dict[str, Any]) -> list[Any]:
    """The rows of an object with a list, or an object of numbered values, for each column."""
    columns = list(value.values())
    if columns and all(isinstance(c, dict) and c and all(map(str.isdigit, c)) for c in columns):
        numbers = dict.fromkeys(number for column in columns for number in column)
        return [{name: c[n] for name, c in value.items() if n in c} for n in numbers]
    are_lists = all(
        isinstance(c, list) and not any(isinstance(v, dict) for v in c) for c in columns
    )
    if not are_lists or len({len(column) for column in columns}) != 1:
        return []
    return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _json_lines(lines: Iterable[bytes]) -> Iterator[Any]:
    for number, line in enumerate(lines, start=1):
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if line.strip():
            try:
                # a comma follows the rows of a list without brackets
                text = line.decode().rstrip().removesuffix(",")
                yield json.loads(text, object_pairs_hook=_object)
            except UnicodeDecodeError as error:
                reason = f"line {number} is not UTF-8 text at byte {error.start + 1}"
                yield Unreadable(reason, line.decode(errors="backslashreplace").strip())
            except (ValueError, RecursionError) as error:
                reason = f"line {number} is not JSON ({_reason(error)})"
                yield Unreadable(reason, line.decode().strip())


def _json(data: bytes, path: Path) -> list[Any]:
    """Read a list of rows, or one row per line, which many .json files contain."""
    rows = _whole(data, path)
    if rows is not None:
        return rows
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        reason = f"line {line}: not UTF-8 text at byte {error.start + 1} of the file"
        raise DatasetError(f"{path} {reason}; save the file as UTF-8") from error
    if text.lstrip().startswith("{"):
        return list(_json_lines(data.splitlines()))
    try:
        return _rows_of(json.loads(text, object_pairs_hook=_object), path)
    except (ValueError, RecursionError) as error:
        place = f" line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DatasetError(f"{path}{place}: not JSON ({_reason(error)})") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a repeated key raises an error, where Python would keep the last value."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        key = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key {as_json(key)} twice")
    return row


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _csv(file: TextIO, path: Path) -> Iterator[Any]:
    limit = csv.field_size_limit(FIELD_LIMIT)  # the default is 128 KiB; some texts are longer
    try:
        delimiter = _delimiter(file, path)
        # `a, b` as the header: the spaces are not part of the fields
        start = _records(file, delimiter, 1, skip_spaces=False)
        names = [name for record in start for name in record[1:]]
        spaced = bool(names) and all(name.startswith(" ") for name in names)
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter, skipinitialspace=spaced, strict=True)
        header = [name.strip() for name in next(filter(None, reader), [])]
        if any(map(LOST_BYTE.search, header)):
            raise DatasetError(f"{path} line 1: not UTF-8 text; save the file as UTF-8")
        if header and header[0].startswith("sep="):
            raise DatasetError(f"{path} line 1: got Excel's {header[0]}; remove this line")
        _check_header(header, path, f" (separated by {_name(delimiter)})")
        for fields in reader:
            if any(map(LOST_BYTE.search, fields)):
                reason = f"line {reader.line_num} is not UTF-8 text; save the file as UTF-8"
                raw = ",".join(fields).encode(errors=NOT_UTF8)
                yield Unreadable(reason, raw.decode(errors="backslashreplace"))
            elif len(fields) == len(header):
                yield dict(zip(header, fields, strict=True))
            elif fields:
                reason = f"line {reader.line_num} has {len(fields)} fields"
                reason += f" separated by {_name(delimiter)}"
                yield Unreadable(f"{reason}, the header has {len(header)}", ",".join(fields))
    except csv.Error as error:
        place = f"{path} line {reader.line_num}"
        separated = f"separated by {_name(delimiter)}"
        raise DatasetError(f"{place}: not CSV {separated} ({error})") from error
    finally:
        csv.field_size_limit(limit)


def _check_header(names: list[str], path: Path, note: str = "") -> None:
    if len(set(names)) != len(names):
        raise DatasetError(f"{path}: the header repeats a column: {', '.join(names)}{note}")


def _delimiter(file: TextIO, path: Path) -> str:
    """The delimiter with which most of the first records have as many fields as the header, or a comma.

    With several such separators, quotes decide: `1,"a; b"` has a quote inside a field if `;` separates
    the fields. Then the number of fields decides.
    """
    if _extension(path) == ".tsv":
        return "\t"
    ranks = {}
    for delimiter in ",;\t|":
        records = _records(file, delimiter, SAMPLE)
        lengths = [len(record) for record in records]
        quotes = sum(field.count('"') % 2 for record in records for field in record)
        if lengths and lengths[0] > 1:
            share = lengths.count(lengths[0]) / len(lengths)
            ranks[delimiter] = (share, -quotes, lengths[0])
    return max(ranks, key=lambda delimiter: ranks[delimiter], default=",")


def _records(
    file: TextIO, delimiter: str, count: int, *, skip_spaces: bool = True
) -> list[list[str]]:
    """The first records of a CSV file that are not empty, up to one that cannot be read."""
    file.seek(0)
    reader = csv.reader(file, delimiter=delimiter, skipinitialspace=skip_spaces)
    records: list[list[str]] = []
    with contextlib.suppress(csv.Error):
        records.extend(itertools.islice(filter(None, reader), count))
    return records


def _name(delimiter: str) -> str:
    return {",": "commas", "\t": "tabs"}.get(delimiter, f"'{delimiter}'")


def _parquet(file: Any, path: Path) -> Iterator[Any]:
    import pyarrow  # type: ignore[import-untyped,unused-ignore]
    import pyarrow.parquet  # type: ignore[import-untyped,unused-ignore]

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            _check_header(table.schema_arrow.names, path)
            names = label_names_of_parquet(table.schema_arrow.metadata)
            for batch in table.iter_batches(batch_size=BATCH):
                # Spark writes an object as a map, which would become a list of pairs
                yield from table_rows(batch.to_pylist(maps_as_pydicts="strict"), names)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DatasetError(f"{path}: not a Parquet file ({reason})") from error
    except (KeyError, ValueError) as error:  # a key twice in a map or an object
        raise DatasetError(f"{path}: {error.args[0]}; write each key once") from error
