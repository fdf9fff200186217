"""The embedded world: a small generated domain with a base model, labelers and a gold scorer."""

from pathlib import Path

BASE_NAME = "world:base"


def resolve_base(name: str | None) -> str:
    """The folder of the shipped base for `world:base` or None; any other name unchanged."""
    if name is None or name == BASE_NAME:
        return str(Path(__file__).parent / "assets" / "base")
    return name
