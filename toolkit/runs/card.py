"""Writes README.md of a finished run, which Hugging Face shows as the model card."""

import json
from collections.abc import Mapping
from typing import Any


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
