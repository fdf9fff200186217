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
)  # fmt: skip
_PARTS = ("checkpoint-", "member-", *WITHIN_A_RUN)


def require_separate(
    output_dir: str | os.PathLike[str], *configs: Any, may_hold_runs: bool = False
) -> None:
    """Check that the output folder is no input; links are followed, and nothing is created.

    The folder of a dataset or a model must be another one. A run that is read must also not lie in the
    output folder, nor the output folder in the run.

    Args:
        configs: argument objects or mappings with the options of `OPTIONS`.
        may_hold_runs: runs may lie in the output folder, because a report replaces nothing there.

    Raises: ConfigError that names the option.
    """
    output = Path(output_dir).expanduser().resolve()
    for option, name in _inputs(configs):
        folder = Path(name).expanduser().resolve()
        folder = folder.parent if folder.is_file() else folder
        is_part = folder.name.startswith(_PARTS) and (folder.parent / MANIFEST).is_file()
        run = folder.parent if is_part else folder
        relation = None
        if output in (folder, run):
            relation = "is the folder of" if output != Path(name).resolve() else "is"
        elif (run / MANIFEST).is_file() or option in ("parent", "reward_model", "runs"):
            if run in output.parents:
                relation = "lies in"
            elif output in run.parents and not may_hold_runs:
                relation = "contains"
        if relation is not None:
            raise ConfigError(
                f"output_dir: {output_dir} {relation} `{option}` {name}, which would be changed; choose "
                "another output_dir"
            )


def _inputs(configs: Any) -> Iterator[tuple[str, str]]:
    """The option and the value of each input."""
    for config in configs:
        options = config if isinstance(config, dict) else vars(config)
        for option in OPTIONS:
            value = options.get(option)
            for entry in value if isinstance(value, list) else [value]:
                if isinstance(entry, str):
                    yield option, entry
                elif entry is not None:  # of a mixture
                    parts = entry if isinstance(entry, dict) else vars(entry)
                    yield option, str(parts.get("dataset_name") or parts.get("path"))
