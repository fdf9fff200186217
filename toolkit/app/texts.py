"""The page's texts, and the numbers of an answer as plain text."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.app.answering.changes import Changes
    from toolkit.app.answering.request import Answer

INTRODUCTION = """# Compare
Write a prompt or choose a question to try, then press *Ask*. The chosen checkpoints answer side by \
side, with the same settings and the same seed."""

NO_RUNS = """**The runs folder has no trained checkpoints yet**, only the base. `make quickstart` \
trains some on the embedded world, without a download. Then press *Reload runs*. Until then \
you can ask the base."""

ONLY_THE_BASE = """**The runs folder has no trained checkpoints yet**, only the base. \
`make quickstart` trains some on the embedded world, without a download. Then reload the page."""

LOADING = """**The base is loading.** The runs appear in a moment. Questions are queued until the base \
is loaded, and then go to the first checkpoints of the list."""

LEGEND = """
- **Score**: the reward model's score at the last token of the answer. Higher is better according to \
the reward model, which can be wrong. If the reward run was centred on demonstrations, 0 is their mean.
- **z**: how many standard deviations the score lies above the mean of known answers. On the embedded \
world, these are the SFT model's own answers to 32 test questions, sampled at temperature 1. On other \
bases, these are the demonstrations that the reward run was centred on. +1 is better than most of them.
- **KL**: how much more likely this checkpoint finds its own answer than the SFT model does: the sum \
over the tokens of log π − log π_SFT, in nats, at the sampling temperature, before top-k and top-p (at \
temperature 1 for greedy answers and beam search). 0 means no change. A large value means that the \
checkpoint has moved far from the SFT model. It is measured on this one answer, so it can be negative. \
"against" names the model that it is measured against.
- **Length**: the number of tokens, the end token included, and the tokens per second. A longer answer \
is not a better one, though labelers and reward models often prefer it.
- **Ended**: "yes" if the model ended the answer itself, "no" if it was cut off.
- **Command**: prints the same answer without this page.
"""

CHANGES = """# What changed
One answer, token by token. Choose an answer from *Compare*, or write a prompt and any answer to it: \
it need not be an answer of this checkpoint."""

NO_ANSWER_YET = "There is no answer yet: ask on *Compare* first, or fill in the fields below."

TOKENS_LEGEND = """
- **log π**: the log-probability of the token under the checkpoint, in nats. 0 is certain; −2.3 is one \
in ten.
- **log π/π_ref**: log π minus the reference's log-probability. Above 0, training made the token more \
likely. For greedy answers and at temperature 1, the sum over the answer is the KL on *Compare*.
- **V(s)**: the score that PPO's critic expects before this token is sampled.
- **Entropy**: how uncertain the checkpoint is before this token, in nats. 0 is certain.
- **Policy's likeliest**, **Reference's likeliest**: the most probable token of this checkpoint, \
or of the reference, with its probability.
- **␣**, **↵** and **⇥** are a space, a line break and a tab.
"""

COLOURS = {
    "log_ratio": "Colour: log π − log π_ref of each token, in nats. Red: {name} finds the token more "
    "likely than {reference} does. Blue: less likely.",
    "value": "Colour: V(s), the score that the critic of {name} expects before this token is sampled, "
    "in the reward model's units. Red: above 0. Blue: below 0.",
    "entropy": "Colour: how uncertain {name} is before this token, in nats. Deeper red: more uncertain.",
}


def colour_scale(changes: "Changes", kind: str, largest: float) -> str:
    """What the colours mean, the number at full colour, and the notes on missing numbers."""
    lines = []
    if any(number is not None for number in changes.numbers(kind)):
        reference = changes.reference or "its reference"
        lines.append(COLOURS[kind].format(name=changes.name, reference=reference))
        lines.append(f"Full colour: ±{_two_decimals(largest)}. No colour: 0.")
    return "\n".join([*lines, *map(_capitalized, changes.notes)])


def answer_numbers(answer: "Answer") -> str:
    """The numbers of an answer as lines of plain text, or why there is no answer."""
    if answer.problem is not None:
        return answer.problem
    lines = []
    if answer.score is not None:
        z = "" if answer.z is None else f", z {answer.z:+.2f} against {answer.z_source}"
        lines.append(f"Score {_two_decimals(answer.score)}{z}")
    if answer.kl is not None:
        lines.append(f"KL {_two_decimals(answer.kl)} nats against {answer.reference}")
    speed = "" if answer.speed is None else f", {answer.speed:.0f} per second"
    lines.append(f"Length {answer.tokens} token{'s' if answer.tokens != 1 else ''}{speed}")
    stopped = any(note.startswith("stopped") for note in answer.notes)
    cut = "stopped" if stopped else "cut off at the limit"
    lines.append("Ended: yes" if answer.ended else f"Ended: no, {cut}")
    return "\n".join([*lines, *map(_capitalized, answer.notes)])


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _two_decimals(number: float) -> str:
    """Two decimals; −0.00 becomes 0.00."""
    return f"{round(number, 2) + 0.0:.2f}"
