"""The data files of a file name or a folder, by split."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from toolkit.errors import DatasetError

EXTENSIONS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
# train.jsonl, train-00000-of-00002.parquet (a shard on the hub), test.json.gz
NAME = re.compile(
    r"(?P<split>.+?)(-(?P<shard>\d+)-of-(?P<shards>\d+))?\.(jsonl|json|csv|tsv|parquet)(\.gz)?",
    re.IGNORECASE,
)
# A part of a name such as test_sft.jsonl or data_test.csv: this file is not for training.
HELD_OUT = re.compile(
    "(?<![a-z])(test|testing|valid|validation|val|dev|eval|evaluation|held[_-]?out|hold[_-]?out)(?![a-z])",
    re.IGNORECASE,
)
SPLIT_FOLDER = re.compile("train|test|valid|val|dev|eval", re.IGNORECASE)
MOST_SHARDS = 100_000
# Files that `datasets` writes next to the data.
SAVED, SAVED_DICT, ABOUT = "state.json", "dataset_dict.json", "dataset_infos.json"


def find_files(path: Path) -> dict[str, list[Path]]:
    """The data files of each split.

    A single file is the split "train". In a folder (and its subfolder `data`) a file's name in
    lower case is the name of its split; all files of a subfolder `train` or `test` belong to that
    split. Without a split "train" or "test", all files are "train", except files whose names mark
    them as test data, if there are others.

    Raises: DatasetError if the file or folder does not exist, the folder has no data file, two
        files are the same split, or a shard is missing.
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
    for file in _data_files([*path.glob("*"), *path.glob("data/*")]):
        match = NAME.fullmatch(file.name)
        assert match is not None
        files = splits.setdefault(match["split"].lower(), [])
        if files and not match["shard"]:
            raise _twice(path, match["split"].lower(), files[0], file)
        files.append(file)
    for folder in _split_folders(path):
        files, split = _data_files(folder.glob("*")), folder.name.lower()
        if files and split in splits:
            raise _twice(path, split, splits[split][0], folder)
        if files:
            splits[split] = files
    if not splits:
        raise DatasetError(
            f"{path}: no data file; add one ({', '.join(EXTENSIONS)}, also as .gz), or name the "
            "subfolder that has them"
        )
    for split, files in splits.items():
        _check_shards(path, split, files)
    if not splits.keys() & {"train", "test"}:
        training = [split for split in splits if not HELD_OUT.search(split)] or list(splits)
        splits["train"] = [file for split in training for file in splits[split]]
    return splits


def find_saved(path: Path) -> dict[str, Path]:
    """The folders that `save_to_disk` of `datasets` wrote, by split; a single table is "train".

    Raises: DatasetError if a split is missing.
    """
    if (path / SAVED).is_file():
        return {"train": path}
    saved = {f.parent.name: f.parent for f in sorted(path.glob(f"*/{SAVED}"))}
    listed: list[str] = []
    try:
        if (path / SAVED_DICT).is_file():
            listed = list(json.loads((path / SAVED_DICT).read_bytes())["splits"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DatasetError(f"{path / SAVED_DICT}: damaged; save the dataset again") from error
    missing = [split for split in listed if split not in saved]
    if missing:
        raise DatasetError(
            f"{path}: {SAVED_DICT} names the splits {', '.join(map(str, listed))}, but the folder "
            f"of {', '.join(map(str, missing))} is missing; save the dataset again"
        )
    return saved


def _data_files(paths: Iterable[Path]) -> list[Path]:
    """The data files among some paths, sorted and without hidden ones."""
    names = {SAVED_DICT, ABOUT}
    return sorted(
        p
        for p in paths
        if NAME.fullmatch(p.name) and p.name[0] != "." and p.name not in names and p.is_file()
    )


def _split_folders(path: Path) -> list[Path]:
    folders = [*path.glob("*/"), *path.glob("data/*/")]
    return sorted(folder for folder in folders if SPLIT_FOLDER.match(folder.name))


def _twice(path: Path, split: str, first: Path, second: Path) -> DatasetError:
    return DatasetError(
        f"{path}: {first.name} and {second.name} are both split {split!r}; remove one"
    )


def _check_shards(path: Path, split: str, files: Sequence[Path]) -> None:
    """Raise DatasetError unless each shard of a split exists exactly once."""
    seen: dict[tuple[str, ...], Path] = {}
    sets: dict[int, set[int]] = {}
    for file in files:
        match = NAME.fullmatch(file.name)
        assert match is not None
        key = (match["split"], match["shard"] or "", match["shards"] or "")
        if key in seen:
            raise _twice(path, split, seen[key], file)
        seen[key] = file
        if match["shard"]:
            sets.setdefault(int(match["shards"]), set()).add(int(match["shard"]))
    if len(sets) > 1:
        counts = " and ".join(map(str, sorted(sets)))
        raise DatasetError(f"{path}: split {split!r} mixes sets of {counts} shards; remove one set")
    for count, numbers in sets.items():
        first = 1 if count in numbers else 0  # `datasets` counts from 0
        missing = sorted(set(range(first, first + min(count, MOST_SHARDS))) - numbers)
        if missing:
            names = ", ".join(f"{number:05d}-of-{count:05d}" for number in missing[:5])
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise DatasetError(
                f"{path}: split {split!r} lacks {len(missing)} of its {count} shards "
                f"({names}{more}); download the missing files"
            )
