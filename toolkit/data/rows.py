"""All rows of one file: converted, or refused with every failing row accounted for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from toolkit.data.formats import FORMATS, Kind, Turns, convert_row
from toolkit.data.messages import BadRow, Row, Unreadable
from toolkit.data.ranking import Pairs
from toolkit.data.row_errors import Failure, describe
from toolkit.errors import DatasetError

TIED, LABELLED_BAD = "hold only ties", "are labelled bad"


@dataclass(frozen=True)
class Made:
    """A row as it was read, where it is, and the rows that it became."""

    place: str
    number: int
    row: Any
    rows: list[Row]


@dataclass
class Converted:
    """The rows of one place, or of several together, after conversion.

    `read` rows = those in `made` + `dropped` + `unused` (good rows that make none: ranked rows
    without a pair, answers labelled bad where only good ones are asked for).
    """

    made: list[Made] = field(default_factory=list)
    read: int = 0
    dropped: list[Failure] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> list[Row]:
        """The converted rows, in order."""
        return [row for made in self.made for row in made.rows]

    def add(self, other: "Converted") -> None:
        """Take in another place's rows."""
        self.made += other.made
        self.read += other.read
        self.dropped += other.dropped
        self.unused += other.unused


def convert_rows(
    rows: Sequence[Any],
    *,
    place: str,
    format: str,
    kind: Kind,
    drop_bad_rows: bool = False,
    pairs: Pairs = "all",
    turns: Turns = "last",
    numbers: Sequence[int] | None = None,
    total: int | None = None,
) -> Converted:
    """Convert the rows of one place to a kind, all of them or (dropping) the good ones.

    Args:
        rows: dictionaries with the columns of `format`.
        place: the file or dataset, for errors.
        format: a name in `FORMATS` that can be converted to `kind`.
        kind: what the recipe asks for.
        drop_bad_rows: leave malformed rows out, listed in the result, instead of raising.
        pairs: of a ranking "all" pairs, or the "best" against the rest.
        turns: of a dialogue for SFT "all" answers, or the "last".
        numbers: which rows of the place these are, 1-based, if not the first ones.
        total: how many rows the place has if `rows` are only some of them; 0 if nobody knows.

    Raises: DatasetError for the first malformed row, counting the others; and if none is left.
    """
    good: list[Made] = []
    bad: list[Failure] = []
    for number, row in zip(numbers or range(1, len(rows) + 1), rows, strict=True):
        try:
            if isinstance(row, Unreadable):
                raise BadRow("unreadable", row.reason)
            made = convert_row(row, format=format, kind=kind, pairs=pairs, turns=turns)
            good.append(Made(place, number, row, made))
        except BadRow as error:
            bad.append(Failure(place, number, error.check, str(error), row))
    good, mixed = _one_style(good)
    bad = sorted(bad + mixed, key=lambda f: f.number)
    of = len(rows) if total is None else total
    if bad and not drop_bad_rows:
        raise DatasetError(describe(bad, total=of))
    result = Converted([made for made in good if made.rows], len(rows), bad)
    why = LABELLED_BAD if FORMATS[format].holds == "labels" else TIED
    result.unused += Counter({why: sum(not made.rows for made in good)})
    if bad and not result.made:
        report = describe(bad, total=of)
        raise DatasetError(f"no row is left after dropping the malformed ones.\n{report}")
    return result


def is_plain(row: Row) -> bool:
    """Whether a converted row is of text rather than of messages."""
    return isinstance(row.get("prompt", row.get("text")), str)


def other_style(*, plain: bool) -> BadRow:
    """The error of a row of text among messages, or with `plain` of messages among text."""
    most, odd = ("text", "messages") if plain else ("messages", "text")
    found = f"the prompt must be {most}, as in most rows, got {odd}"
    return BadRow("text among messages", found)


def _one_style(good: list[Made]) -> tuple[list[Made], list[Failure]]:
    """Keep the rows in the majority's style: TRL looks at one row to tell text from messages."""
    filled = [made for made in good if made.rows]
    few = {made.number for made in filled if is_plain(made.rows[0])}
    if not few or len(few) == len(filled):
        return good, []
    plain = 2 * len(few) > len(filled)
    if plain:
        few = {made.number for made in filled} - few
    error = other_style(plain=plain)
    failures = [
        Failure(made.place, made.number, error.check, str(error), made.row)
        for made in filled
        if made.number in few
    ]
    return [made for made in good if made.number not in few], failures
