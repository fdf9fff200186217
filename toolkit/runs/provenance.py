"""Data for a run's manifest: library versions, the commit of the code, the configs; and its model card."""

import dataclasses
import importlib.metadata
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit import __version__
from toolkit.errors import CheckpointError

CARD = "README.md"  # Hugging Face shows it as the model card
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")
TEXT_TOKENS = ("eos_token", "pad_token")  # of the vocabulary


def plain(config: Any) -> dict[str, Any]:
    """A config as JSON values, without tokens and keys."""
    values = config.to_dict() if hasattr(config, "to_dict") else dataclasses.asdict(config)
    tokens = {k: getattr(config, k) for k in TEXT_TOKENS if k in values}  # `to_dict` hides them
    return {k: v for k, v in values.items() if not k.endswith(("_token", "_key"))} | tokens


def versions() -> dict[str, str]:
    """The versions of the toolkit and of the installed libraries, by name."""
    versions_by_name = {"toolkit": __version__}
    for name in PACKAGES:
        try:
            versions_by_name[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions_by_name


def commit() -> str | None:
    """The git commit of the code, or None outside a checkout."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        process = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False
        )
    except OSError:  # git is not installed
        return None
    return process.stdout.strip() or None


def refuse_other_card(folder: Path) -> None:
    """Raise CheckpointError if a run would replace the README.md of another project."""
    if (folder / CARD).exists():
        raise CheckpointError(
            f"{folder}: contains a {CARD} without a run, and the run would replace it; remove it, or "
            "choose another output_dir"
        )


def model_card(
    name: str, recipe: str, base: str, seed: int | None, parents: Mapping[str, str], results: Any
) -> str:
    """The model card's text: the run's recipe, base, parents and results."""
    lines = "".join(f"- {what}: `{path}`\n" for what, path in parents.items())
    return (
        f"# {name}\n\nMade by `toolkit {recipe}` on the base `{base}`, seed {seed}.\n\n{lines}\n"
        f"```json\n{json.dumps(results, indent=2, default=str)}\n```\n\n"
        "`run.json` holds the whole configuration and all versions.\n"
    )
