"""Writes README.md of a finished run, which Hugging Face shows as the model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.errors import CheckpointError

CARD = "README.md"


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
