"""Where rows come from: files, the hub, the embedded world, or a mixture of them."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.data.files import find_files, read_rows, stream_rows
from toolkit.errors import DatasetError
from toolkit.options.arguments import DataArguments, SourceArguments
from toolkit.options.config import is_local_path
from toolkit.runs.replacing import MANIFEST, has_finished

if TYPE_CHECKING:
    from trl.scripts.utils import DatasetMixtureConfig, ScriptArguments

WORLD = "world:"


@dataclass(frozen=True)
class Part:
    """A file, or a split of a dataset that is not in files: its name, and how to get its rows.

    `read` gives all rows, or of a stream an iterator of them.
    """

    place: str
    read: Callable[[], Iterable[Any]]


@dataclass(frozen=True)
class Source:
    """A dataset that was asked for: its splits "train" and "test", and how to read its rows."""

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
    """Check what can be checked without loading a library: that local files are there.

    Args:
        script: TRL's ScriptArguments.
        mixture: TRL's DatasetMixtureConfig; its datasets, if any, go before `script.dataset_name`.
        data_args: ours; its `sources`, if any, stand in the place of both.

    Raises: DatasetError if no dataset is named, two ways of naming it are mixed, or a local one is
        missing.
    """
    if mixture.streaming:
        raise DatasetError(
            "`streaming` is not read; say `dataset_streaming` (docs/data.md, Streams)"
        )
    if script.dataset_streaming:
        _check_stream(mixture, data_args)
    if data_args is not None and data_args.sources:
        if mixture.datasets or script.dataset_name:
            other = "datasets" if mixture.datasets else "dataset_name"
            raise DatasetError(f"`sources` and `{other}` both name the data: leave one out")
        for source in data_args.sources:
            _check_name(source.dataset_name, source.dataset_config)
        return
    for entry in mixture.datasets:
        for name in _local_names(entry):
            if not Path(name).expanduser().exists():
                raise DatasetError(f"{name}: no such file or folder (`datasets`)")
    if mixture.datasets:
        return
    if not script.dataset_name:
        raise DatasetError("no dataset: set `dataset_name` (a file, a folder or a hub name)")
    _check_name(script.dataset_name, script.dataset_config)


def _check_stream(mixture: "DatasetMixtureConfig", data_args: DataArguments | None) -> None:
    wrong = {
        "sources": data_args is not None and data_args.sources,
        "datasets": mixture.datasets,
        "drop_duplicates": data_args is not None and data_args.drop_duplicates,
    }
    for option, given in wrong.items():
        if given:
            raise DatasetError(
                f"`dataset_streaming` and `{option}` do not go together: that needs all rows at once "
                "(docs/data.md, Streams)"
            )


def _check_name(name: str, config: str | None) -> None:
    if name.startswith(WORLD) or not is_local_path(name):
        return
    if config:
        raise DatasetError(f"{name}: `dataset_config` is for datasets of the hub, got {config!r}")
    folder = Path(name).expanduser()
    if (folder / MANIFEST).is_file() and not has_finished(folder):
        raise DatasetError(
            f"{name}: the run that writes these rows has not finished; start it again (recipes/label.py)"
        )
    find_files(folder)


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


def find_sources(
    script: "ScriptArguments", mixture: "DatasetMixtureConfig", data_args: DataArguments
) -> list[Source]:
    """The datasets that the arguments name: several where they are `sources`, else one.

    Raises: DatasetError if one is missing, cannot be loaded, or lacks a split that was named.
    """
    if data_args.sources:
        return [_of_mixture(source, data_args) for source in data_args.sources]
    columns, format = _mapping(data_args.columns), data_args.dataset_format
    if mixture.datasets:
        place, table = _load_mixture(mixture)
        splits = {"train": [Part(place, table.to_list)]}
        return [Source(place, splits, columns=columns, format=format)]
    name = str(script.dataset_name)
    splits = _splits_of(name, script.dataset_config, streaming=script.dataset_streaming)
    wanted = {"train": script.dataset_train_split, "test": script.dataset_test_split}
    for option, split in wanted.items():
        # The default "test" is no demand; any other name was somebody's choice.
        if (option, split) != ("test", "test"):
            _check_split(name, splits, split, f"dataset_{option}_split")
    found = {option: splits[split] for option, split in wanted.items() if split in splits}
    if "test" in found:  # all files of a folder may be "train", and one of them be asked for
        tested = {part.place for part in found["test"]}
        found["train"] = [part for part in found["train"] if part.place not in tested]
        if not found["train"]:
            raise DatasetError(
                f"{name}: nothing is left to train on, since `dataset_test_split` "
                f"{wanted['test']!r} has all of `dataset_train_split` {wanted['train']!r}"
            )
    unused = _unused(splits, found)
    return [Source(name, found, unused, columns=columns, format=format)]


def _of_mixture(source: SourceArguments, data_args: DataArguments) -> Source:
    splits = _splits_of(source.dataset_name, source.dataset_config)
    _check_split(source.dataset_name, splits, source.split, "split")
    found = {"train": splits[source.split]}
    return Source(
        source.dataset_name,
        found,
        _unused(splits, found),
        columns=_mapping(source.columns or data_args.columns),
        format=source.dataset_format or data_args.dataset_format,
        fraction=source.fraction,
    )


def _unused(splits: Mapping[str, Sequence[Part]], found: Mapping[str, Sequence[Part]]) -> list[str]:
    """The splits none of whose parts is read."""
    used = {part.place for parts in found.values() for part in parts}
    return sorted(
        split for split, parts in splits.items() if not used & {part.place for part in parts}
    )


def _mapping(columns: dict[str, str] | str | None) -> Mapping[str, str]:
    assert not isinstance(columns, str)  # DataArguments reads JSON
    return columns or {}


def _check_split(name: str, splits: Mapping[str, Any], split: str, option: str) -> None:
    if split not in splits:
        has = ", ".join(sorted(splits))
        raise DatasetError(f"{name}: no split {split!r} (`{option}`); it has {has}")


def _splits_of(name: str, config: str | None, *, streaming: bool = False) -> dict[str, list[Part]]:
    if name.startswith(WORLD):
        worlds = _load_world(name.removeprefix(WORLD))
        take: Any = iter if streaming else list
        return {s: [Part(f"{name} ({s})", partial(take, rows))] for s, rows in worlds.items()}
    if is_local_path(name):
        files = find_files(Path(name).expanduser())
        read = stream_rows if streaming else read_rows
        return {s: [Part(str(f), partial(read, f)) for f in fs] for s, fs in files.items()}
    hub = _load_hub(name, config, streaming=streaming)
    return {
        s: [Part(f"{name} ({s})", partial(iter, table) if streaming else table.to_list)]
        for s, table in hub.items()
    }


def _load_world(name: str) -> dict[str, list[dict[str, Any]]]:
    from toolkit.world import datasets

    return datasets.load(name)


def _load_hub(name: str, config: str | None, *, streaming: bool) -> "dict[str, Any]":
    import datasets

    try:
        found = datasets.load_dataset(name, config, streaming=streaming)
    except Exception as error:  # the loader raises whatever its many back ends do
        raise DatasetError(f"{name}: cannot load it from the hub ({one_line(error)})") from error
    return dict(found)


def _load_mixture(mixture: "DatasetMixtureConfig") -> tuple[str, Any]:
    """TRL's mixture, whole: TRL would split it by row, leaving prompts on both sides."""
    from trl.scripts.utils import get_dataset

    place = "mixture of " + ", ".join(entry.path for entry in mixture.datasets)
    try:
        return place, get_dataset(dataclasses.replace(mixture, test_split_size=None))["train"]
    except Exception as error:  # as above
        raise DatasetError(f"{place}: cannot load it ({one_line(error)})") from error


def one_line(error: BaseException) -> str:
    """An error of a library, short enough to stand in one of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else text[:239] + "…"
