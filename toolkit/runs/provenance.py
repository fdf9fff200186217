"""How a run was made, for its manifest: library versions, the commit of the code, its configs."""

import dataclasses
import importlib.metadata
import subprocess
from pathlib import Path
from typing import Any

from toolkit import __version__

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")


def plain(config: Any) -> dict[str, Any]:
    """A config as JSON values; tokens and keys are left out."""
    values = config.to_dict() if hasattr(config, "to_dict") else dataclasses.asdict(config)
    return {k: v for k, v in values.items() if not k.endswith(("_token", "_key"))}


def versions() -> dict[str, str]:
    """Of the toolkit and of the libraries that are installed, by name."""
    found = {"toolkit": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the code that runs, where it is a checkout."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False
        )
    except OSError:  # git is not installed
        return None
    return asked.stdout.strip() or None
