"""Local data files: found by split, and read as rows that keep their numbers."""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from toolkit.data.row_errors import Unreadable, as_json
from toolkit.errors import DatasetError

EXTENSIONS = (".jsonl", ".json", ".csv", ".parquet")
# train.jsonl, train-00000-of-00002.parquet (a shard on the hub), test.json.gz
NAME = re.compile(
    r"(?P<split>.+?)(?P<shard>-\d+-of-\d+)?\.(jsonl|json|csv|parquet)(\.gz)?", re.IGNORECASE
)
NOT_UTF8 = "surrogateescape"  # decodes a byte that is not UTF-8 to one of these code points:
LOST_BYTE = re.compile("[\udc80-\udcff]")
FIELD_LIMIT = 2**31 - 1
BATCH = 256  # rows of a Parquet file in memory at a time


def find_files(path: Path) -> dict[str, list[Path]]:
    """The data files of each split.

    A single file is the split "train". In a folder (and its subfolder `data`) a file's name, in
    lower case, is its split; without a "train" and a "test" file, all files are "train".

    Raises: DatasetError if the file or folder does not exist, or the folder has no data file.
    """
    if not path.exists():
        raise DatasetError(f"{path}: no such file or folder")
    if path.is_file():
        if not NAME.fullmatch(path.name):
            raise DatasetError(
                f"{path}: must end in {', '.join(EXTENSIONS)} or .gz; rename the file"
            )
        return {"train": [path]}
    splits: dict[str, list[Path]] = {}
    for file in sorted([*path.glob("*"), *path.glob("data/*")]):
        match = NAME.fullmatch(file.name)
        if match and file.is_file() and not file.name.startswith("."):
            split = match["split"].lower()
            files = splits.setdefault(split, [])
            if files and not match["shard"]:
                raise DatasetError(
                    f"{path}: {files[0].name} and {file.name} are both split {split!r}; remove one"
                )
            files.append(file)
    if not splits:
        raise DatasetError(f"{path}: no data file; add one ({', '.join(EXTENSIONS)}, also as .gz)")
    if not splits.keys() & {"train", "test"}:
        splits["train"] = [file for files in splits.values() for file in files]
    return splits


def read_rows(path: Path) -> list[Any]:
    """All rows of a data file. See `stream_rows`."""
    return list(stream_rows(path))


def stream_rows(path: Path) -> Iterator[Any]:
    """The rows of a data file, by its extension, without the whole file in memory.

    A JSON list and a Parquet file in `.gz` are read whole. A line or record that cannot be parsed
    becomes an `Unreadable`, which the checks report. All values of a CSV file are texts.

    Raises: DatasetError at the point where the file cannot be read.
    """
    zipped = path.suffix.lower() == ".gz"
    open_file: Any = gzip.open if zipped else open
    extension = Path(path.stem).suffix.lower() if zipped else path.suffix.lower()
    try:
        if extension == ".csv":
            with open_file(path, "rt", encoding="utf-8-sig", errors=NOT_UTF8, newline="") as file:
                yield from _csv(file, path)
            return
        with open_file(path, "rb") as file:
            if extension == ".jsonl":
                # bytes.splitlines() splits at \n and \r only. str.splitlines() also splits at
                # U+2028, which JSON may contain.
                yield from _json_lines(line for part in file for line in part.splitlines())
            elif extension == ".parquet":
                yield from _parquet(io.BytesIO(file.read()) if zipped else file, path)
            else:
                yield from _json(file.read().removeprefix(codecs.BOM_UTF8), path)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path}: cannot read the file ({error})") from error


def _json_lines(lines: Iterable[bytes]) -> Iterator[Any]:
    for number, line in enumerate(lines, start=1):
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if line.strip():
            try:
                yield json.loads(line.decode(), object_pairs_hook=_object)
            except UnicodeDecodeError as error:
                reason = f"line {number} is not UTF-8 text at byte {error.start + 1}"
                yield Unreadable(reason, line.decode(errors="backslashreplace").strip())
            except (ValueError, RecursionError) as error:
                reason = f"line {number} is not JSON ({_reason(error)})"
                yield Unreadable(reason, line.decode().strip())


def _json(data: bytes, path: Path) -> list[Any]:
    """A list of rows, or one row per line, as in many files with the ending .json."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        reason = f"line {line}: not UTF-8 text at byte {error.start + 1} of the file"
        raise DatasetError(f"{path} {reason}; save it as UTF-8") from error
    try:
        loaded = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("{"):
            return list(_json_lines(data.splitlines()))
        place = f" line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DatasetError(f"{path}{place}: not JSON ({_reason(error)})") from error
    if isinstance(loaded, dict):
        return [loaded]
    if not isinstance(loaded, list):
        raise DatasetError(f"{path}: expected a list of rows, got {type(loaded).__name__}")
    return loaded


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. If a key occurs twice, Python would silently keep the last value."""
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
        reader = csv.reader(file, strict=True)
        header = next(reader, [])
        if any(map(LOST_BYTE.search, header)):
            raise DatasetError(f"{path} line 1: not UTF-8 text; save the file as UTF-8")
        if len(set(header)) != len(header):
            raise DatasetError(f"{path}: the header has a column twice: {', '.join(header)}")
        for fields in reader:
            if any(map(LOST_BYTE.search, fields)):
                reason = f"line {reader.line_num} is not UTF-8 text; save the file as UTF-8"
                raw = ",".join(fields).encode(errors=NOT_UTF8)
                yield Unreadable(reason, raw.decode(errors="backslashreplace"))
            elif len(fields) == len(header):
                yield dict(zip(header, fields, strict=True))
            elif fields:
                reason = f"line {reader.line_num} has {len(fields)} fields"
                yield Unreadable(f"{reason}, the header has {len(header)}", ",".join(fields))
    except csv.Error as error:
        raise DatasetError(f"{path} line {reader.line_num}: not CSV ({error})") from error
    finally:
        csv.field_size_limit(limit)


def _parquet(file: Any, path: Path) -> Iterator[Any]:
    import pyarrow  # type: ignore[import-untyped,unused-ignore]
    import pyarrow.parquet  # type: ignore[import-untyped,unused-ignore]

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=BATCH):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DatasetError(f"{path}: not a Parquet file ({reason})") from error
