"""What the page says, and the numbers under an answer in plain text."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.app.answering.answers import Answer
    from toolkit.app.answering.changes import Changes

INTRODUCTION = """# Compare
Write a prompt, or take one of the questions to try, and press *Ask*: the \
checkpoints that are chosen answer it side by side, under the same settings and the same seed."""

NO_RUNS = """**There are no trained checkpoints to ask in the runs folder yet**, only the base. \
`make quickstart` trains some on the embedded world, without a download. Then press *Reload \
runs*. Until then you can ask the base."""

ONLY_THE_BASE = """**There are no trained checkpoints in the runs folder yet**, only the base. \
`make quickstart` trains some on the embedded world, without a download; reload the page then."""

LOADING = """**The base is being loaded.** The runs appear by themselves in a moment; what is asked \
until then waits for it, and is asked of the first of them."""

LEGEND = """
- **Score**: what the chosen reward model gives the answer, read at its last token. Higher is \
better in the reward model's eyes, which can be wrong; 0 is what demonstrations \
get on average, if the reward run was given some.
- **z**: how many standard deviations the score lies above the mean of what it is compared with. On \
the embedded world that is the SFT model's own answers to 32 test questions, drawn at temperature 1; \
on other bases it is the demonstrations that the reward run was centred on. +1 is better than most of \
them.
- **KL**: how much likelier this checkpoint finds its own answer than the SFT model does (the sum \
over its tokens of log π − log π_SFT, in nats, at the temperature asked for, before top-k and top-p; \
greedy answers and those of beam search are read at 1). 0 means no change; far above 0 means that the \
checkpoint has moved far from where its training began. It is measured on this one answer, so it can \
be negative. "Against" names the model it is measured from.
- **Length**: tokens of the answer, with the end token, and how many were made per second. Longer is \
not better, though labelers and reward models often think so.
- **Ended**: "yes" where the checkpoint finished by itself, "no" where it was cut off.
- **Command**: prints the same answer without this page.
"""

CHANGES = """# What changed
One answer, token by token. Take an answer that *Compare* shows, or write a prompt \
and any answer to it: the checkpoint need not have said it."""

NO_ANSWER_YET = (
    "Nothing to look at yet: ask something on *Compare* first, or fill in the fields below."
)

TOKENS_LEGEND = """
- **log π**: how likely the checkpoint finds the token after what stands before it, in nats. 0 is \
certain; −2.3 is one in ten.
- **log π/π_ref**: the same less what the reference finds. Above 0: training made the token likelier. \
Summed over the answer it is the KL of *Compare* for greedy answers and those at temperature 1.
- **V(s)**: the score that PPO's critic expects when this token is about to be chosen.
- **Entropy**: how uncertain the checkpoint was there, in nats. 0 is sure.
- **Policy's likeliest**, **Reference's likeliest**: the token that this checkpoint, or the \
reference, would most probably put there, with its probability.
- **␣**, **↵** and **⇥** are a blank, a line break and a tab.
"""

COLOURS = {
    "log_ratio": "Colour: log π − log π_ref of each token, in nats. Red: {name} likes the token "
    "better than {reference} does; blue: less.",
    "value": "Colour: V(s), the score that the critic of {name} expects when this token is about to "
    "be chosen, in the reward model's units. Red: above 0; blue: below.",
    "entropy": "Colour: how uncertain {name} was before this token, in nats. The redder, the more it "
    "might have said something else.",
}


def scale(changes: "Changes", kind: str, largest: float) -> str:
    """What the colours mean, the number at the deepest of them, and what is not known."""
    known = any(n is not None for n in changes.numbers(kind))
    reference = changes.reference or "its reference"
    lines = []
    if known:
        lines.append(COLOURS[kind].format(name=changes.name, reference=reference))
        lines.append(f"Deepest colour: ±{_hundredths(largest)}; no colour: 0.")
    lines += [note[:1].upper() + note[1:] for note in changes.notes]
    return "\n".join(lines)


def measures(answer: "Answer") -> str:
    """The numbers of an answer as lines of plain text, or why there are none."""
    if answer.problem is not None:
        return answer.problem
    lines = []
    if answer.score is not None:
        z = "" if answer.z is None else f", z {answer.z:+.2f} against {answer.z_of}"
        lines.append(f"Score {_hundredths(answer.score)}{z}")
    if answer.kl is not None:
        lines.append(f"KL {_hundredths(answer.kl)} nats against {answer.reference}")
    speed = "" if answer.speed is None else f", {answer.speed:.0f} per second"
    lines.append(f"Length {answer.tokens} token{'s' if answer.tokens != 1 else ''}{speed}")
    cut = (
        "stopped" if any(n.startswith("stopped") for n in answer.notes) else "cut off at the limit"
    )
    lines.append("Ended: yes" if answer.ended else f"Ended: no, {cut}")
    return "\n".join([*lines, *(note[:1].upper() + note[1:] for note in answer.notes)])


def _hundredths(number: float) -> str:
    """Two decimals, with no minus before a zero."""
    return f"{round(number, 2) + 0.0:.2f}"
