"""The data files of a file name or a folder, by split."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from toolkit.errors import DatasetError

EXTENSIONS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
# train.jsonl, train-00000-of-00002.parquet (a shard on the hub), test.json.gz
NAME = re.compile(
    r"(?P<split>.+?)(-(?P<shard>\d+)-of-(?P<shards>\d+))?\.(jsonl|ndjson|json|csv|tsv|parquet)(\.gz)?",
    re.IGNORECASE,
)
# Parts of names such as train_v2.jsonl, testset.jsonl or data-test.csv: one for training, and ones that
# are not. The words "latest" and "testimonials" are not such parts.
PART = r"(?<![a-z])({})s?([_ -]?(set|data|split|file)s?)?(?![a-z])"
TRAIN = re.compile(PART.format("train|training"))
TEST = re.compile(PART.format("test|testing"))
HELD_OUT = re.compile(
    PART.format("test|testing|valid|validation|val|dev|eval|evaluation|(held|hold)[_ -]?out")
)
IN_A_WORD = re.compile("test|validation|valid|val|dev|eval")
CAMEL = re.compile("(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
MOST_SHARDS = 100_000
# Files that `datasets` writes next to the data.
SAVED, SAVED_DICT, ABOUT = "state.json", "dataset_dict.json", "dataset_infos.json"


def find_files(path: Path) -> dict[str, list[Path]]:
    """The data files of each split.

    A single file is the split "train". In a folder (and its subfolder `data`) a file's name in
    lower case is the name of its split; all files of a subfolder such as `train` or `testset` belong
    to that split. Without a split "train" or "test", all files are "train", except files whose names
    mark them as test data, if there are others. Two names that differ only in "train" and "test",
    such as `trainset` and `testset`, are also the splits "train" and "test".

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
    names: dict[str, str] = {}
    for file in _data_files([*path.glob("*"), *path.glob("data/*")]):
        match = NAME.fullmatch(file.name)
        assert match is not None
        split = split_name(file)
        files = splits.setdefault(split, [])
        if files and not match["shard"]:
            raise _twice(path, split, files[0], file)
        files.append(file)
        names[split] = _spaced(match["split"])
    for folder in sorted([*path.glob("*/"), *path.glob("data/*/")]):
        name, split = _spaced(folder.name), folder.name.lower()
        if name[0] == "." or not (TRAIN.search(name) or HELD_OUT.search(name)):
            continue
        files = _data_files(folder.glob("*"))
        if files and split in splits:
            raise _twice(path, split, splits[split][0], folder)
        if files:
            splits[split], names[split] = files, name
    if not splits:
        raise DatasetError(
            f"{path}: no data file; add one ({', '.join(EXTENSIONS)}, also as .gz), or name the "
            "subfolder that has them"
        )
    for split, files in splits.items():
        _check_shards(path, split, files)
    _find_train_and_test(splits, names)
    return splits


def split_name(file: Path) -> str:
    """The split that a data file's name indicates."""
    match = NAME.fullmatch(file.name)
    assert match is not None
    return match["split"].lower()


def is_held_out(name: str) -> bool:
    """Whether the name of a split marks it as data for testing."""
    return bool(HELD_OUT.search(_spaced(name)))


def _spaced(name: str) -> str:
    """A name in lower case, with a space between the words of `camelCase`."""
    return CAMEL.sub(" ", name).lower()


def _find_train_and_test(splits: dict[str, list[Path]], names: dict[str, str]) -> None:
    """Add the splits "train" and "test" if files of other names are certainly these splits.

    Args:
        splits: the files by split; changed in place.
        names: the words of each split's name.
    """
    for split in splits:  # `mytest`, which is a part for testing only if there is `mytrain`
        partner = IN_A_WORD.sub("train", split)
        if partner != split and partner in splits:
            names[split] = IN_A_WORD.sub(r" \g<0> ", split)
            names[partner] = partner.replace("train", " train ")
    held_out = [split for split in splits if HELD_OUT.search(names[split])]
    training = [split for split in splits if split not in held_out]
    if not splits.keys() & {"train", "test"}:
        splits["train"] = [file for split in training or held_out for file in splits[split]]
    pairs = [
        (splits[train], splits[test])
        for train in training
        for test in held_out
        if TRAIN.search(names[train]) and TEST.search(names[test])
        if _rest(names[train]) == _rest(names[test])
        if splits.get("train", splits[train]) == splits[train]
        if splits.get("test", splits[test]) == splits[test]
    ]
    if len(pairs) == 1:
        splits["train"], splits["test"] = pairs[0]


def _rest(name: str) -> str:
    """A name without its parts such as "trainset" and "test"."""
    return re.sub(r"[\W_]+", "", HELD_OUT.sub("", TRAIN.sub("", name)))


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
