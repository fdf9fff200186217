"""Checks that a run does not write into the runs, datasets and models that it reads."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.errors import ConfigError
from toolkit.runs.integrity import WITHIN_A_RUN
from toolkit.runs.replacing import MANIFEST

# options that name runs, datasets and models
OPTIONS = (
    "parent", "reward_model", "runs", "model_name_or_path", "dataset_name", "sources", "datasets",
    "demonstrations", "comparisons", "prompts", "texts", "ptx_texts",
    "judge_run", "votes",
)  # fmt: skip
_PARTS = ("checkpoint-", "member-", *WITHIN_A_RUN)


def require_separate(
    output_dir: str | os.PathLike[str], *configs: Any, may_hold_runs: bool = False
) -> None:
    """Check that the output folder is not an input; links are followed, and nothing is created.

    The folder of a dataset or a model must be another one. A run that is read must also not lie in the
    output folder, nor the output folder in the run.

    Args:
        configs: argument objects or mappings with the options of `OPTIONS`.
        may_hold_runs: runs may lie in the output folder, because a report replaces nothing there.

    Raises: ConfigError that names the option.
    """
    if "\0" in str(output_dir):
        return  # `check_output_dir` reports it
    output = _resolved(output_dir)
    for option, name in _inputs(configs):
        path = _resolved(name)
        folder = path.parent if os.path.isfile(path) else path
        is_part = folder.name.startswith(_PARTS) and os.path.isfile(folder.parent / MANIFEST)
        run = folder.parent if is_part else folder
        relation = None
        if output in (folder, run):
            relation = "is" if output == path else "is the folder of"
        elif os.path.isfile(run / MANIFEST) or option in ("parent", "reward_model", "runs"):
            if run in output.parents:
                relation = "lies in"
            elif output in run.parents and not may_hold_runs:
                relation = "contains"
        if relation is not None:
            raise ConfigError(
                f"output_dir: {output_dir} {relation} `{option}` {name}, which would be changed; choose "
                "another output_dir"
            )


def _resolved(name: str | os.PathLike[str]) -> Path:
    """The path without links; a path that cannot be read stays, because other checks report it."""
    return Path(os.path.realpath(os.path.expanduser(name)))


def _inputs(configs: Any) -> Iterator[tuple[str, str]]:
    """The option and the value of each input."""
    for config in configs:
        options = config if isinstance(config, dict) else vars(config)
        for option in OPTIONS:
            value = options.get(option)
            for entry in value if isinstance(value, list) else [value]:
                if not isinstance(entry, str):  # an entry of a mixture, or a value of a wrong type
                    parts = entry if isinstance(entry, dict) else getattr(entry, "__dict__", {})
                    entry = parts.get("dataset_name") or parts.get("path")
                if isinstance(entry, str) and "\0" not in entry:
                    yield option, entry
