"""The page's texts, the numbers of an answer as plain text, and text from the disk."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.app.answering.changes import Changes
    from toolkit.app.answering.request import Answer


def markdown(name: str) -> str:
    """A tab's introduction or explanation from the folder `markdown`."""
    return (Path(__file__).parent / "markdown" / f"{name}.md").read_text(encoding="utf-8")


NO_RUNS, ONLY_THE_BASE, LOADING = map(markdown, ("no_runs", "only_the_base", "loading"))
PROMPT_KEYS = "Enter sends, Shift+Enter breaks the line."
NO_ANSWER_YET = "There is no answer yet: ask on *Compare* first, or fill in the fields below."

COLOURS = {
    "log_ratio": "Colour: log π − log π_ref of each token, in nats. Red: {name} finds the token more "
    "likely than {reference} does. Violet: less likely.",
    "value": "Colour: V(s), the score that the value of {name} predicts before this token is sampled, "
    "in the reward model's units. Red: above 0. Violet: below 0.",
    "entropy": "Colour: how uncertain {name} is before this token, in nats. Deeper red: more uncertain.",
}


def colour_scale(changes: "Changes", kind: str, largest: float) -> str:
    """The meaning of the colours, the number at full colour, and the notes on missing numbers."""
    lines = []
    if any(number is not None for number in changes.numbers(kind)):
        reference = changes.reference or "its reference"
        lines.append(COLOURS[kind].format(name=changes.name, reference=reference))
        lines.append(f"Full colour: ±{two_decimals(largest)}. No colour: 0.")
    return "\n".join([*lines, *map(_capitalized, changes.notes)])


def answer_line(answer: "Answer") -> str:
    """The numbers of an answer in one short line."""
    numbers = []
    if answer.score is not None:
        numbers.append(f"score {two_decimals(answer.score)}")
    if answer.kl is not None:
        numbers.append(f"KL {two_decimals(answer.kl)}")
    numbers.append(f"{answer.tokens} token{'s' if answer.tokens != 1 else ''}")
    if not answer.ended:
        numbers.append("stopped" if _stopped(answer) else "cut off")
    return " · ".join(numbers)


def answer_numbers(answer: "Answer") -> str:
    """The numbers of an answer as lines of plain text, or why there is no answer."""
    if answer.problem is not None:
        return answer.problem
    lines = []
    if answer.score is not None:
        z = "" if answer.z is None else f", z {answer.z:+.2f} against {answer.z_source}"
        lines.append(f"Score {two_decimals(answer.score)}{z}")
    if answer.kl is not None:
        lines.append(f"KL {two_decimals(answer.kl)} nats against {answer.reference}")
    speed = "" if answer.speed is None else f", {answer.speed:.0f} per second"
    lines.append(f"Length {answer.tokens} token{'s' if answer.tokens != 1 else ''}{speed}")
    cut = "stopped" if _stopped(answer) else "cut off at the limit"
    lines.append("Ended: yes" if answer.ended else f"Ended: no, {cut}")
    return "\n".join([*lines, *map(_capitalized, answer.notes)])


def _stopped(answer: "Answer") -> bool:
    return any(note.startswith("stopped") for note in answer.notes)


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def two_decimals(number: float) -> str:
    """Two decimals; −0.00 becomes 0.00."""
    return f"{round(number, 2) + 0.0:.2f}"


def place_name(path: Path, root: Path) -> str:
    """A run's name: its whole path below the runs folder, so that no two runs share a name.

    Backslashes, control characters and invalid bytes are escaped.
    """
    name = path.relative_to(root).as_posix() if path != root else path.resolve().name
    return "".join(
        c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in name
    )


def tidy(reason: str, root: Path) -> str:
    """A reason on one line, with paths relative to the runs folder."""
    return printable(" ".join(reason.replace(f"{root}/", "").split()), longest=400)


def printable(text: object, *, longest: int = 80) -> str:
    """Text from the disk, cut to `longest`; control characters and invalid bytes are replaced."""
    decoded = str(text).encode("utf-8", "replace").decode("utf-8")
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in decoded)
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
