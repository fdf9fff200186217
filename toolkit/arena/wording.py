"""What the page says, and the numbers under an answer in plain text."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.arena.workbench import Answer

INTRODUCTION = """# Compare checkpoints
Write one prompt, and the checkpoints that you chose answer it side by side, under the same \
settings and the same seed."""

NO_RUNS = """**There are no trained checkpoints to ask in the runs folder yet**, only the base. \
`make quickstart` trains some on the embedded world, without a download. Then press *Look for \
runs again*. Until then you can ask the base."""

LEGEND = """
- **Score**: what the chosen reward model gives the answer, read at its last token. Higher is \
better in the reward model's eyes, which can be wrong; 0 is what demonstrations \
get on average, if the reward run was given some.
- **KL**: how much likelier this checkpoint finds its own answer than the SFT model does (the sum \
over its tokens of log π − log π_SFT, in nats, at the temperature above; at temperature 0 it is \
read at 1). 0 means no change; far above 0 means that the checkpoint has moved far from where its \
training began. It is measured on this one answer, so it can be negative. "Against" names the \
model it is measured from.
- **Length**: tokens of the answer, with the end token. Longer is not better, though labelers and \
reward models often think so.
- **Ended**: "yes" where the checkpoint finished by itself, "no" where it ran into the limit.
"""


def measures(answer: "Answer") -> str:
    """The numbers of an answer as lines of plain text, or why there are none."""
    if answer.problem is not None:
        return answer.problem
    lines = []
    if answer.score is not None:
        lines.append(f"Score {_hundredths(answer.score)}")
    if answer.kl is not None:
        lines.append(f"KL {_hundredths(answer.kl)} nats against {answer.reference}")
    lines.append(f"Length {answer.tokens} token{'s' if answer.tokens != 1 else ''}")
    lines.append("Ended: yes" if answer.ended else "Ended: no, cut off at the limit")
    return "\n".join([*lines, *(note[:1].upper() + note[1:] for note in answer.notes)])


def _hundredths(number: float) -> str:
    """Two decimals, with no minus before a zero."""
    return f"{round(number, 2) + 0.0:.2f}"
