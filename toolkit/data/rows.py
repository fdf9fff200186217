"""All rows of one file: converted, or refused with every failing row accounted for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from toolkit.data.formats import Kind, convert_row
from toolkit.data.messages import BadRow, Row, Unreadable, as_json
from toolkit.errors import DatasetError


@dataclass(frozen=True)
class Failure:
    """A row (1-based) that fails a check."""

    number: int
    check: str
    message: str


@dataclass
class Converted:
    """The rows of one place after conversion.

    `read` rows = rows that were converted + `dropped` + `tied` (ranked rows without a pair).
    """

    rows: list[Row] = field(default_factory=list)
    read: int = 0
    dropped: list[Failure] = field(default_factory=list)
    tied: int = 0


def convert_rows(
    rows: Sequence[Any],
    *,
    place: str,
    format: str,
    kind: Kind,
    drop_bad_rows: bool = False,
    total: int | None = None,
) -> Converted:
    """Convert the rows of one place to a kind, all of them or (dropping) the good ones.

    Args:
        rows: dictionaries with the columns of `format`.
        place: the file or dataset, for errors.
        format: a name in `FORMATS` that can be converted to `kind`.
        kind: what the recipe asks for.
        drop_bad_rows: leave malformed rows out, listed in the result, instead of raising.
        total: how many rows the place has if `rows` are only the first of them.

    Raises: DatasetError for the first malformed row, counting the others; and if none is left.
    """
    good: list[tuple[int, list[Row]]] = []
    bad: list[Failure] = []
    for number, row in enumerate(rows, start=1):
        try:
            good.append((number, _convert(row, format=format, kind=kind)))
        except BadRow as error:
            bad.append(Failure(number, error.check, str(error)))
    good, mixed = _one_style(good)
    bad = sorted(bad + mixed, key=lambda f: f.number)
    if bad and not drop_bad_rows:
        raise DatasetError(describe(bad, rows, place=place, total=total or len(rows)))
    result = Converted(read=len(rows), dropped=bad)
    for _, converted in good:
        result.rows += converted
        result.tied += not converted
    if bad and not result.rows:
        report = describe(bad, rows, place=place, total=total or len(rows))
        raise DatasetError(f"no row is left after dropping the malformed ones.\n{report}")
    return result


def _convert(row: Any, *, format: str, kind: Kind) -> list[Row]:
    if isinstance(row, Unreadable):
        raise BadRow("unreadable", row.reason)
    return convert_row(row, format=format, kind=kind)


def _one_style(
    good: list[tuple[int, list[Row]]],
) -> tuple[list[tuple[int, list[Row]]], list[Failure]]:
    """Keep the rows in the majority's style: TRL looks at one row to tell text from messages."""
    plain = [(n, made) for n, made in good if made and isinstance(made[0]["prompt"], str)]
    if not plain or len(plain) == sum(bool(made) for _, made in good):
        return good, []
    few = {n for n, _ in plain}
    most, odd = "messages", "text"
    if 2 * len(few) > sum(bool(made) for _, made in good):
        few = {n for n, made in good if made} - few
        most, odd = odd, most
    message = f"the prompt must be {most}, as in most rows, got {odd}"
    failures = [Failure(n, "text among messages", message) for n in few]
    return [(n, made) for n, made in good if n not in few], failures


def describe(bad: Sequence[Failure], rows: Sequence[Any], *, place: str, total: int) -> str:
    """The first failure with its row, how many rows fail each check, and the fix."""
    first = bad[0]
    row = rows[first.number - 1]
    same = [f for f in bad if f.check == first.check]
    others = [f for f in bad if f.check != first.check]
    lines = [
        f"{place} row {first.number} of {total}: {first.message}.",
        f"  row: {as_json(row.text if isinstance(row, Unreadable) else row)}",
        f"  {_rows(len(same))} this check ({_numbers(same)}).",
    ]
    if others:
        lines.append(f"  {_rows(len(others))} others: {tally(others)}.")
    lines[-1] += f" Fix {'it' if len(bad) == 1 else 'them'}, or set `drop_bad_rows: true`."
    return "\n".join(lines)


def tally(bad: Iterable[Failure]) -> str:
    """How many rows fail each check, and which."""
    checks: dict[str, list[Failure]] = {}
    for failure in bad:
        checks.setdefault(failure.check, []).append(failure)
    return ", ".join(f"{len(found)} {check} ({_numbers(found)})" for check, found in checks.items())


def _rows(count: int) -> str:
    return f"{count} row fails" if count == 1 else f"{count} rows fail"


def _numbers(found: Sequence[Failure], *, most: int = 10) -> str:
    listed = ", ".join(str(f.number) for f in found[:most])
    return listed if len(found) <= most else f"{listed} and {len(found) - most} more"
