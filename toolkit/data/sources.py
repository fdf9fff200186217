"""Where rows come from: files, the hub, the embedded world, or a mixture of them."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from toolkit.data.class_labels import label_names, table_rows
from toolkit.data.files import read_rows, stream_rows
from toolkit.data.folders import find_files, find_saved
from toolkit.errors import DatasetError
from toolkit.options.arguments import DataArguments, SourceArguments
from toolkit.options.config import SHIPPED, is_local_path
from toolkit.runs.replacing import MANIFEST, has_finished

if TYPE_CHECKING:
    from trl.scripts.utils import DatasetMixtureConfig, ScriptArguments

WORLD = "world:"
Columns = Mapping[str, str]  # DataArguments has parsed the JSON


@dataclass(frozen=True)
class Part:
    """A file, or a split of another dataset. `read` returns its rows, or an iterator for a stream."""

    place: str
    read: Callable[[], Iterable[Any]]


@dataclass(frozen=True)
class Source:
    """A dataset named by the arguments: its options, and the parts of "train" and "test"."""

    place: str
    splits: dict[str, list[Part]]
    unused: list[str] = field(default_factory=list)
    columns: Mapping[str, str] = field(default_factory=dict)
    format: str | None = None
    fraction: float | None = None


def check_source(
    script: "ScriptArguments",
    mixture: "DatasetMixtureConfig",
    data_args: DataArguments | None = None,
) -> None:
    """Check that the options name a dataset and that local files exist; imports no library.

    Args:
        script: TRL's ScriptArguments.
        mixture: TRL's DatasetMixtureConfig; its datasets, if any, replace `script.dataset_name`.
        data_args: this project's arguments; their `sources`, if any, replace the other two.

    Raises: DatasetError if no option names a dataset, if two options do, or if a local file is missing.
    """
    if mixture.streaming:
        raise DatasetError(
            "`streaming` is not supported; set `dataset_streaming` (docs/data.md, Streams)"
        )
    if script.dataset_streaming:
        _check_stream(mixture, data_args)
    if data_args is not None and data_args.sources:
        if mixture.datasets or script.dataset_name:
            other = "datasets" if mixture.datasets else "dataset_name"
            raise DatasetError(f"`sources` and `{other}` both name the data: leave one out")
        for source in data_args.sources:
            check_name(source.dataset_name, source.dataset_config)
        return
    for entry in mixture.datasets:
        for name in _local_names(entry):
            if not Path(name).expanduser().exists():
                raise DatasetError(f"{name}: no such file or folder (`datasets`)")
    if mixture.datasets:
        return
    if not script.dataset_name:
        raise DatasetError("no dataset: set `dataset_name` (a file, a folder or a hub name)")
    check_name(script.dataset_name, script.dataset_config)


def _check_stream(mixture: "DatasetMixtureConfig", data_args: DataArguments | None) -> None:
    options = {
        "sources": data_args is not None and data_args.sources,
        "datasets": mixture.datasets,
        "drop_duplicates": data_args is not None and data_args.drop_duplicates,
    }
    for option, value in options.items():
        if value:
            raise DatasetError(
                f"`dataset_streaming` does not work with `{option}`, which needs all rows at once "
                "(docs/data.md, Streams)"
            )


def check_name(name: str, config: str | None) -> None:
    """Check that a local dataset exists; raises DatasetError."""
    if name.startswith(WORLD) or not is_local_path(name):
        return
    if config:
        raise DatasetError(
            f"{name}: `dataset_config` {config!r} is only for hub datasets; remove it"
        )
    folder = _path(name)
    if (folder / MANIFEST).is_file() and not has_finished(folder):
        raise DatasetError(
            f"{name}: the run that writes these rows has not finished; start it again (recipes/label.py)"
        )
    find_saved(folder) or find_files(folder)


def _path(name: str) -> Path:
    """The path of a local dataset: a file, a folder, or a data file that is shipped beside the configs."""
    path, shipped = Path(name).expanduser(), SHIPPED / "recipes" / "configs" / name
    return shipped if not path.exists() and shipped.is_file() else path


def _local_names(entry: Any) -> list[str]:
    """The local files and folders of an entry of `datasets`, without glob patterns."""
    names = [entry.path] if is_local_path(entry.path) else []
    if entry.path in {"json", "csv", "parquet"}:  # otherwise relative to a hub repository or folder
        values = entry.data_files or []
        values = list(values.values()) if isinstance(values, dict) else values
        for value in [values] if isinstance(values, str) else values:
            names += [value] if isinstance(value, str) else value
    return [name for name in names if "://" not in name and "*" not in name]


def find_sources(
    script: "ScriptArguments", mixture: "DatasetMixtureConfig", data_args: DataArguments
) -> list[Source]:
    """The datasets that the arguments name: all `sources`, or a single one.

    Raises: DatasetError if a dataset is missing, cannot be loaded, or lacks the named split.
    """
    if data_args.sources:
        return [_mixture_source(source, data_args) for source in data_args.sources]
    columns, format = cast("Columns", data_args.columns or {}), data_args.dataset_format
    if mixture.datasets:
        place, table = _load_mixture(mixture)
        splits = {"train": [Part(place, partial(_rows_of, table, False))]}
        return [Source(place, splits, columns=columns, format=format)]
    name = str(script.dataset_name)
    splits = _splits_of(name, script.dataset_config, streaming=script.dataset_streaming)
    names = {"train": script.dataset_train_split, "test": script.dataset_test_split}
    for option, split in names.items():
        # "test" is the default, so a dataset may lack it; the user chose any other name.
        if (option, split) != ("test", "test"):
            _check_split(name, splits, split, f"dataset_{option}_split")
    used = {option: splits[split] for option, split in names.items() if split in splits}
    if "test" in used:  # a folder's files may all be "train", and one of them the test split
        test_places = {part.place for part in used["test"]}
        used["train"] = [part for part in used["train"] if part.place not in test_places]
        if not used["train"]:
            raise DatasetError(
                f"{name}: no data is left to train on, because `dataset_test_split` "
                f"{names['test']!r} contains all of `dataset_train_split` {names['train']!r}"
            )
    return [Source(name, used, _unused(splits, used), columns=columns, format=format)]


def _mixture_source(source: SourceArguments, data_args: DataArguments) -> Source:
    splits = _splits_of(source.dataset_name, source.dataset_config)
    _check_split(source.dataset_name, splits, source.split, "split")
    used = {"train": splits[source.split]}
    return Source(
        source.dataset_name,
        used,
        _unused(splits, used),
        columns=cast("Columns", source.columns or data_args.columns or {}),
        format=source.dataset_format or data_args.dataset_format,
        fraction=source.fraction,
    )


def _unused(splits: Mapping[str, Sequence[Part]], used: Mapping[str, Sequence[Part]]) -> list[str]:
    """The splits that are not read, not even in part."""
    places = {part.place for parts in used.values() for part in parts}
    return sorted(
        split for split, parts in splits.items() if not places & {part.place for part in parts}
    )


def _check_split(name: str, splits: Mapping[str, Any], split: str, option: str) -> None:
    if split not in splits:
        known = ", ".join(sorted(splits))
        raise DatasetError(f"{name}: no split {split!r} (`{option}`); it has {known}")


def _splits_of(name: str, config: str | None, *, streaming: bool = False) -> dict[str, list[Part]]:
    if is_local_path(name) and not name.startswith(WORLD):
        read = stream_rows if streaming else read_rows
        saved = find_saved(_path(name))
        if saved:
            return {
                split: [
                    Part(f"{name} ({split})", partial(_read_saved, folder, streaming=streaming))
                ]
                for split, folder in saved.items()
            }
        return {
            split: [Part(str(file), partial(read, file)) for file in files]
            for split, files in find_files(_path(name)).items()
        }
    readers: dict[str, Callable[[], Iterable[Any]]]
    if name.startswith(WORLD):
        from toolkit.world import datasets

        world = datasets.load(name.removeprefix(WORLD))
        take: Any = iter if streaming else list
        readers = {split: partial(take, rows) for split, rows in world.items()}
    else:
        hub = _load_hub(name, config, streaming=streaming)
        readers = {s: partial(_rows_of, table, streaming) for s, table in hub.items()}
    return {split: [Part(f"{name} ({split})", read)] for split, read in readers.items()}


def _read_saved(folder: Path, *, streaming: bool) -> Iterable[Any]:
    """The rows of a table that `save_to_disk` of `datasets` wrote."""
    import datasets

    try:
        table = datasets.load_from_disk(str(folder))
        return _rows_of(table, streaming)
    except Exception as error:  # as in `_load_hub`
        raise DatasetError(
            f"{folder}: cannot read the saved dataset ({one_line(error)})"
        ) from error


def _rows_of(table: Any, streaming: bool) -> Iterable[Any]:
    """The rows of a table of `datasets`, or an iterator over them for a stream."""
    names = label_names(table.features and table.features.to_dict())
    table = table.with_format(None)  # a saved format such as NumPy's has other types
    rows = table_rows(table if streaming else table.to_list(), names)
    return rows if streaming else list(rows)


def _load_hub(name: str, config: str | None, *, streaming: bool) -> "dict[str, Any]":
    import datasets

    try:
        return dict(datasets.load_dataset(name, config, streaming=streaming))
    except Exception as error:  # the back ends raise many types of exceptions
        raise DatasetError(f"{name}: cannot load from the hub ({one_line(error)})") from error


def _load_mixture(mixture: "DatasetMixtureConfig") -> tuple[str, Any]:
    """TRL's mixture without its split by row, which can put a prompt into both train and test."""
    from trl.scripts.utils import get_dataset

    place = "mixture of " + ", ".join(entry.path for entry in mixture.datasets)
    try:
        return place, get_dataset(dataclasses.replace(mixture, test_split_size=None))["train"]
    except Exception as error:  # as in `_load_hub`
        raise DatasetError(f"{place}: cannot load this dataset ({one_line(error)})") from error


def one_line(error: BaseException) -> str:
    """A library's error as one short line, for use in an error message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else text[:239] + "…"
