"""Fields of option classes: a default, a help text, choices, and a range that the type states."""

import dataclasses
import math
from collections.abc import Callable, Collection
from dataclasses import field
from typing import Annotated, Any, NamedTuple, TypeVar, get_type_hints

T = TypeVar("T")


class Bound(NamedTuple):
    """The range of a numeric option, as text and as a test."""

    text: str
    holds: Callable[[float], bool]


# the range, stated in an option's type
Positive = Annotated[T, Bound("above 0", lambda x: x > 0)]
NotNegative = Annotated[T, Bound("at least 0", lambda x: x >= 0)]
AtLeast1 = Annotated[T, Bound("at least 1", lambda x: x >= 1)]
AtLeast2 = Annotated[T, Bound("at least 2", lambda x: x >= 2)]
Share = Annotated[T, Bound("in [0, 1]", lambda x: 0 <= x <= 1)]
Fraction = Annotated[T, Bound("between 0 and 1", lambda x: 0 < x < 1)]


def between(low: int, high: int) -> Bound:
    """The range of a number from `low` to `high`."""
    return Bound(f"in {low}…{high}", lambda x: low <= x <= high)


def option(default: Any, help: str, *choices: str) -> Any:
    """A dataclass field with its help text and its choices; the default `list` is an empty list."""
    metadata = {"help": help} | ({"choices": choices} if choices else {})
    if default is list:
        return field(default_factory=list, metadata=metadata)
    return field(default=default, metadata=metadata)


def check_options(config: Any, *, choices_of: Collection[str] = ()) -> None:
    """Check that numbers are finite and in their range, and the choices of the options in `choices_of`.

    Raises: ValueError that names the option.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for f in dataclasses.fields(config):
        value, choices = getattr(config, f.name), f.metadata.get("choices")
        values = value if isinstance(value, list | tuple) else [value]
        for number in values:
            infinite = isinstance(number, float) and not math.isfinite(number)
            if infinite and number is not f.default:
                raise ValueError(f"`{f.name}` must be a finite number, got {number}")
        if f.name in choices_of and choices and value not in choices:
            raise ValueError(f"`{f.name}` must be {' or '.join(choices)}, got {value!r}")
        for bound in getattr(hints[f.name], "__metadata__", ()):
            if isinstance(bound, Bound) and not all(
                bound.holds(v) for v in values if v is not None
            ):
                raise ValueError(f"`{f.name}` must be {bound.text}, got {value}")
