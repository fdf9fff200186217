"""From a recipe's arguments to its train and test split, checked and in TRL's columns."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from toolkit.arguments import DataArguments
from toolkit.config import is_local_path
from toolkit.data.files import find_files, read_rows
from toolkit.data.formats import KINDS, Kind, check_conversion, detect_format
from toolkit.data.messages import Row
from toolkit.data.rows import Converted, convert_rows, tally
from toolkit.data.splitting import hold_out, prompt_key
from toolkit.errors import DatasetError

if TYPE_CHECKING:
    from datasets import Dataset
    from trl.scripts.utils import DatasetMixtureConfig, ScriptArguments

WORLD = "world:"


@dataclass(frozen=True)
class Part:
    """A file, or a split of a dataset that is not in files: its name, and how to get its rows."""

    place: str
    read: Callable[[], Sequence[Any]]


def check_source(script: "ScriptArguments", mixture: "DatasetMixtureConfig") -> None:
    """Check what can be checked without loading a library: that local files are there.

    Args:
        script: TRL's ScriptArguments.
        mixture: TRL's DatasetMixtureConfig; its datasets, if any, go before `script.dataset_name`.

    Raises: DatasetError if no dataset is named or a local one is missing.
    """
    if script.dataset_streaming or mixture.streaming:
        raise DatasetError(
            "streaming is not supported, since all rows are checked before training; for a "
            "quick trial set `max_rows`"
        )
    for entry in mixture.datasets:
        for name in _local_names(entry):
            if not Path(name).expanduser().exists():
                raise DatasetError(f"{name}: no such file or folder (`datasets`)")
    if mixture.datasets:
        return
    if not script.dataset_name:
        raise DatasetError("no dataset: set `dataset_name` (a file, a folder or a hub name)")
    name = script.dataset_name
    if name.startswith(WORLD) or not is_local_path(name):
        return
    if script.dataset_config:
        raise DatasetError(
            f"{name}: `dataset_config` is for datasets of the hub, got {script.dataset_config!r}"
        )
    find_files(Path(name).expanduser())


def _local_names(entry: Any) -> list[str]:
    """The local files and folders that an entry of `datasets` names; globs are left alone."""
    files = entry.data_files or []
    if isinstance(files, dict):
        files = list(files.values())
    flat: list[str] = []
    for item in [files] if isinstance(files, str) else files:
        flat += [item] if isinstance(item, str) else item
    # Relative to the hub repository or folder unless the path is a mere file type ("json").
    names = [f for f in flat if "://" not in f and "*" not in f]
    if entry.path not in {"json", "csv", "parquet"}:
        names = []
    return [*names, *([entry.path] if is_local_path(entry.path) else [])]


def load_splits(
    script: "ScriptArguments",
    mixture: "DatasetMixtureConfig",
    data_args: DataArguments,
    *,
    kind: str,
    seed: int,
) -> "dict[str, Dataset]":
    """The rows of a recipe's dataset as "train" and, if there is one, "test".

    Args:
        script: names the dataset and its splits: a local file (.jsonl, .json, .csv, .parquet, also
            .gz), a folder of them, a hub name, or `world:<name>` for the embedded world.
        mixture: TRL's `datasets`, taken in the place of `dataset_name` if set; and
            `test_split_size`, used where the dataset has no test split.
        data_args: `dataset_format`, `drop_bad_rows` and `max_rows`.
        kind: "prompt-completion", "preference" or "prompt-only" (see `toolkit.data.formats`).
        seed: which prompts are held out.

    Returns: datasets with the kind's columns. One line is printed on what was found, and one for
        each file of which rows were dropped.
    Raises: DatasetError for a missing dataset or split, for rows of an unknown or unfit format, and
        for malformed rows unless `drop_bad_rows` is set.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {get_args(Kind)}, got {kind!r}")
    if data_args.max_rows is not None and data_args.max_rows < 1:
        raise DatasetError(f"`max_rows` must be at least 1, got {data_args.max_rows}")
    check_source(script, mixture)
    place, parts, unused = _find_parts(script, mixture)
    loaded = {name: _read(found, data_args.max_rows) for name, found in parts.items()}
    train_rows = [row for _, rows, _ in loaded["train"] for row in rows]
    format = data_args.dataset_format or detect_format(train_rows, place=place)
    check_conversion(format=format, kind=kind, place=place)
    results = {
        name: _convert(found, format=format, kind=kind, drop=data_args.drop_bad_rows)
        for name, found in loaded.items()
    }
    splits = {name: result.rows for name, result in results.items()}
    for name, rows in splits.items():
        if not rows:
            tied = results[name].tied
            why = f"all {tied} rows are ties" if tied else "it has no rows"
            raise DatasetError(f"{place}: nothing to use in the {name} split: {why}")
    if "test" not in splits and mixture.test_split_size is not None:
        splits["train"], splits["test"] = hold_out(
            splits["train"], mixture.test_split_size, seed=seed, place=place
        )
    total = sum(total for found in loaded.values() for _, _, total in found)
    line = _summary(place, format, kind, results, splits, total)
    print(line + (f"; not used: the splits {', '.join(unused)}" if unused else ""))
    return {name: _dataset(rows, place=place) for name, rows in splits.items()}


def _find_parts(
    script: "ScriptArguments", mixture: "DatasetMixtureConfig"
) -> tuple[str, dict[str, list[Part]], list[str]]:
    """The source's name, the parts of its train and test split, and the splits left over."""
    if mixture.datasets:
        place, table = _load_mixture(mixture)
        return place, {"train": [Part(place, table.to_list)]}, []
    name = str(script.dataset_name)
    splits: dict[str, list[Part]]
    if name.startswith(WORLD):
        worlds = _load_world(name.removeprefix(WORLD))
        splits = {s: [Part(f"{name} ({s})", partial(list, rows))] for s, rows in worlds.items()}
    elif is_local_path(name):
        files = find_files(Path(name).expanduser())
        splits = {s: [Part(str(f), partial(read_rows, f)) for f in fs] for s, fs in files.items()}
    else:
        hub = _load_hub(name, script.dataset_config)
        splits = {s: [Part(f"{name} ({s})", table.to_list)] for s, table in hub.items()}
    wanted = {"train": script.dataset_train_split, "test": script.dataset_test_split}
    for option, split in wanted.items():
        # The default "test" is no demand; any other name was somebody's choice.
        if split not in splits and (option, split) != ("test", "test"):
            raise DatasetError(
                f"{name}: no split {split!r} (`dataset_{option}_split`); it has "
                f"{', '.join(sorted(splits))}"
            )
    found = {option: splits[split] for option, split in wanted.items() if split in splits}
    return name, found, sorted(set(splits) - set(wanted.values()))


def _load_world(name: str) -> dict[str, list[dict[str, Any]]]:
    from toolkit.world import datasets

    return datasets.load(name)


def _load_hub(name: str, config: str | None) -> "dict[str, Any]":
    import datasets

    try:
        found = datasets.load_dataset(name, config)
    except Exception as error:  # the loader raises whatever its many back ends do
        raise DatasetError(f"{name}: cannot load it from the hub ({_one_line(error)})") from error
    return dict(found)


def _load_mixture(mixture: "DatasetMixtureConfig") -> tuple[str, Any]:
    """TRL's mixture, whole: TRL would split it by row, leaving prompts on both sides."""
    from trl.scripts.utils import get_dataset

    place = "mixture of " + ", ".join(entry.path for entry in mixture.datasets)
    try:
        return place, get_dataset(dataclasses.replace(mixture, test_split_size=None))["train"]
    except Exception as error:  # as above
        raise DatasetError(f"{place}: cannot load it ({_one_line(error)})") from error


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else text[:239] + "…"


def _read(parts: Sequence[Part], max_rows: int | None) -> list[tuple[str, Sequence[Any], int]]:
    """Of each part its place, its rows (`max_rows` over all parts) and how many it has."""
    left = max_rows
    read = []
    for part in parts:
        rows = part.read()
        read.append((part.place, rows[:left], len(rows)))
        left = None if left is None else max(0, left - len(rows))
    return read


def _convert(
    found: Sequence[tuple[str, Sequence[Any], int]], *, format: str, kind: Kind, drop: bool
) -> Converted:
    """The parts of a split as one; says which rows of which part were dropped."""
    merged = Converted()
    for place, rows, total in found:
        result = convert_rows(
            rows, place=place, format=format, kind=kind, drop_bad_rows=drop, total=total
        )
        if result.dropped:
            dropped = f"dropped {len(result.dropped)} of {result.read} rows"
            print(f"{place}: {dropped}: {tally(result.dropped)}")
        merged.rows += result.rows
        merged.read += result.read
        merged.dropped += result.dropped
        merged.tied += result.tied
    return merged


def _summary(
    place: str,
    format: str,
    kind: str,
    results: dict[str, Converted],
    splits: dict[str, list[Row]],
    total: int,
) -> str:
    read = sum(result.read for result in results.values())
    tied = sum(result.tied for result in results.values())
    count = f"{read} rows" if read == total else f"the first {read} of {total} rows"
    sizes = ", ".join(f"{name} {len(rows)}" for name, rows in splits.items())
    line = f"{place}: {format}, {count} -> {kind} ({sizes})"
    dropped = sum(len(result.dropped) for result in results.values())
    line += f"; {dropped} malformed rows dropped" if dropped else ""
    if tied:
        line += f"; {tied} rows hold only ties"
    if "test" in splits:
        seen = set(map(prompt_key, splits["train"]))
        shared = sum(prompt_key(row) in seen for row in splits["test"])
        line += f"; {shared} test rows have a prompt of the train split" if shared else ""
    return line


def _dataset(rows: Sequence[Row], *, place: str) -> "Dataset":
    """Rows as a table with every column that any row has."""
    from datasets import Dataset

    names = dict.fromkeys(itertools.chain.from_iterable(rows))
    columns = {name: [row.get(name) for row in rows] for name in names}
    unfit = (ValueError, TypeError, OverflowError, NotImplementedError)  # Arrow's are among them
    try:
        return Dataset.from_dict(columns)
    except unfit as error:
        for name, values in columns.items():
            try:
                Dataset.from_dict({name: values})
            except unfit as reason:
                types = ", ".join(sorted({type(v).__name__ for v in values}))
                raise DatasetError(
                    f'{place}: column "{name}" cannot be made a table\'s ({_one_line(reason)}); '
                    f"its values are {types}. Give it one type, or remove it."
                ) from error
        raise
