"""The bases that the runs below a folder were trained on, and the options that load each of them."""

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.app.texts import place_name, printable
from toolkit.errors import CheckpointError, ConfigError
from toolkit.options.config import is_local_path
from toolkit.runs.run import Run
from toolkit.world import BASE_NAME, resolve_base

if TYPE_CHECKING:
    from toolkit.models.arguments import ModelArguments

MAX_BASES = 16  # each is a choice of the page's menu
Key = tuple[str, str]


@dataclass(frozen=True)
class Base:
    """A base of runs.

    `label` is its name in lists, `id` its folder or hub id, `config` the options of its newest run, `key`
    the part of the fingerprint that its runs share, and `runs` their names, the newest first.
    """

    label: str
    id: str
    config: Mapping[str, Any] = field(default_factory=dict)
    key: Key | None = None
    runs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.label} ({len(self.runs)} run{'s' if len(self.runs) != 1 else ''})"

    def options(self) -> "ModelArguments":
        """The options that load the base in the precision of its newest run.

        Nothing is downloaded because a file names it: the base must be on this disk.

        Raises: CheckpointError if it is not, or if its options are not valid.
        """
        from toolkit.models.arguments import ModelArguments  # imports torch

        name, revision = resolve_base(self.id), str(self.config.get("model_revision", "main"))
        if is_local_path(name):
            if not Path(name).is_dir():
                raise CheckpointError(f"{self}: its folder {printable(name)} does not exist")
        elif not _is_cached(name, revision):
            download = printable(shlex.join(["hf", "download", name, "--revision", revision]))
            raise CheckpointError(
                f"{self}: this base is not on this machine, and the app downloads only a base that you "
                f"name; download it with `{download}`"
            )
        try:
            return ModelArguments().with_base_of({**self.config, "model_name_or_path": self.id})
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{self}: its run's options are not valid ({error})") from error


EMBEDDED = Base(BASE_NAME, BASE_NAME)


def find_bases(runs: Iterable[Run], root: Path) -> tuple[Base, ...]:
    """The bases of the runs below `root`, that of the newest run first; at most `MAX_BASES`.

    Runs without an adapter, such as those that failed, count only if no run has one.
    """
    known = [run for run in runs if base_key(run.base) is not None]
    usable = [run for run in known if run.adapter_problem() is None] or known
    groups: dict[Key | None, list[Run]] = {}
    for run in sorted(usable, key=lambda run: run.started, reverse=True):
        groups.setdefault(base_key(run.base), []).append(run)
    bases = [_base(group, root) for group in list(groups.values())[:MAX_BASES]]
    uses = Counter(base.label for base in bases)
    return tuple(
        b if uses[b.label] == 1 else replace(b, label=printable(f"{b.label} [{b.key[0][-8:]}]"))
        for b in bases
        if b.key is not None
    )


def base_key(fingerprint: Mapping[str, Any]) -> Key | None:
    """Weights and quantization in a base's fingerprint; None if the fingerprint is damaged."""
    id, *key = (fingerprint.get(name) for name in ("id", "weights", "quantization"))
    return (str(key[0]), str(key[1])) if isinstance(id, str) and all(key) else None


def named_base(bases: Iterable[Base], label: object) -> Base:
    """The base with this label.

    Raises: ConfigError for an unknown label.
    """
    labels = {base.label: base for base in bases}
    if label not in labels:
        known = ", ".join(labels) or "none"
        raise ConfigError(f"no run was trained on a base named {label}; known: {known}")
    return labels[str(label)]


def _base(runs: list[Run], root: Path) -> Base:
    newest, id = runs[0], str(runs[0].base["id"])
    weights, quantization = key = base_key(newest.base) or ("", "")
    config = {"dtype": newest.base.get("dtype"), **newest.config}
    commit = weights.removeprefix(f"{id}@")
    if commit not in (weights, "unknown"):
        config["model_revision"] = commit
    name = Path(id).name if is_local_path(id) else id
    label = printable(name if quantization == "none" else f"{name} {quantization}")
    return Base(label, id, config, key, tuple(place_name(run.path, root) for run in runs))


def _is_cached(name: str, revision: str) -> bool:
    """Whether config and weights of a hub model are in this machine's cache."""
    from huggingface_hub import try_to_load_from_cache

    def has(file: str) -> bool:
        return isinstance(try_to_load_from_cache(name, file, revision=revision), str)

    try:  # ".." would lead out of the cache
        weights = has("model.safetensors") or has("model.safetensors.index.json")
        return weights and has("config.json") and ".." not in revision
    except ValueError:  # not a valid id
        return False
