"""Warnings while PPO trains: the score rises, and another number says that it is not to be trusted."""

from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

Row = dict[str, Any]  # one logged step
WINDOW = 3  # logged steps of which the mean counts; one alone rests on few answers
MOST_OF_ENTROPY, LEAST_KL = 2 / 3, 3.5  # of the reference's entropy; nats per answer
MOST_RISE = 0.08  # of the share of good requests that are refused
MOST_FALL = 0.15  # of the gold utility
MOST_GROWTH = 1.5  # of the answers' length
MOST_UNENDED = 0.2  # fall of the share of answers that end
KL, ENTROPY, SCORE = "objective/kl", "objective/entropy", "objective/scores"
LENGTH, ENDED = "objective/length", "objective/ended"
HELD_OUT, GOLD, REFUSED = "eval_objective/scores", "eval_gold/mean", "eval_gold/over_refusal"


class WatchCallback(TrainerCallback):  # type: ignore[misc]
    """Says each warning once, on the screen and as a key of the logged row that gave rise to it.

    It goes before `RunCallback`, which writes the row. What was logged before is in the trainer's
    state, so a resumed run warns as the uninterrupted one would have.
    """

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Row | None = None,
        **_: Any,
    ) -> None:
        """Hold what was just logged against all that was logged before."""
        rows = state.log_history
        for key, check in CHECKS.items():
            line = None if any(key in row for row in rows) else check(rows)
            if line is not None and logs is not None:
                print(f"! step {state.global_step}: {line}", flush=True)
                logs[key] = rows[-1][key] = line


def warned(rows: Sequence[Row]) -> list[str]:
    """The warnings among logged rows."""
    return [str(row[key]) for row in rows for key in CHECKS if key in row]


def runaway(rows: Sequence[Row]) -> str | None:
    """The score rose, and KL(π‖ref) is most of the entropy that the reference's answers have.

    A policy with a single answer to each prompt, one that the reference would usually give, is at
    all of it; PPO held by a KL penalty stays near the half. References sure of their answers are
    left for good reasons, so no KL up to `LEAST_KL` counts.
    """
    means = _means(rows, (KL, SCORE))
    if len(means) < 2:
        return None
    limit = max(LEAST_KL, MOST_OF_ENTROPY * next(row[ENTROPY] for row in rows if ENTROPY in row))
    first, last = means[0], means[-1]
    if last[KL] <= limit or last[SCORE] <= first[SCORE]:
        return None
    return (
        f"over-optimisation? The score rose from {first[SCORE]:.2f} to {last[SCORE]:.2f} at a KL of "
        f"{last[KL]:.1f} nats per answer, above {limit:.1f}; raise kl_coef or stop earlier"
    )


def lengthening(rows: Sequence[Row]) -> str | None:
    """The score rose with the length of the answers, which labelers and reward models both like."""
    means = _means(rows, (LENGTH, SCORE))
    if len(means) < 2 or means[-1][SCORE] <= means[0][SCORE]:
        return None
    first, last = means[0][LENGTH], means[-1][LENGTH]
    if last <= MOST_GROWTH * first:
        return None
    return (
        f"verbosity? While the score rose answers went from {first:.0f} to {last:.0f} tokens; "
        "length_penalty takes from the score per token"
    )


def unending(rows: Sequence[Row]) -> str | None:
    """The score rose, and answers no longer come to an end."""
    means = _means(rows, (ENDED, SCORE))
    if len(means) < 2 or means[-1][SCORE] <= means[0][SCORE]:
        return None
    first, last = means[0][ENDED], means[-1][ENDED]
    if last >= first - MOST_UNENDED:
        return None
    return (
        f"answers that end went from {first:.0%} to {last:.0%} while the score rose; "
        "missing_eos_penalty takes from the score of one that does not, response_length gives room"
    )


def refusing(rows: Sequence[Row]) -> str | None:
    """The score rose, and so did the share of good requests that are refused."""
    before, last = _best_and_last(rows, REFUSED, min)
    if last[REFUSED] <= before[REFUSED] + MOST_RISE:
        return None
    return (
        f"over-optimisation: {_risen(before, last)} while good requests refused went from "
        f"{before[REFUSED]:.0%} to {last[REFUSED]:.0%}; raise kl_coef or stop earlier"
    )


def worsening(rows: Sequence[Row]) -> str | None:
    """Gao et al. 2022, arXiv:2210.10760: the score rose, and what it stands for fell."""
    before, last = _best_and_last(rows, GOLD, max)
    if last[GOLD] >= before[GOLD] - MOST_FALL:
        return None
    return (
        f"over-optimisation: {_risen(before, last)} while gold fell from {before[GOLD]:.2f} to "
        f"{last[GOLD]:.2f}; raise kl_coef or stop earlier"
    )


def _risen(before: Row, last: Row) -> str:
    return f"the held-out score rose from {before[HELD_OUT]:.2f} to {last[HELD_OUT]:.2f}"


def _best_and_last(rows: Sequence[Row], key: str, best: Callable[..., Row]) -> tuple[Row, Row]:
    """The last mean, and of the earlier ones with a lower score the best (or the last again)."""
    means = _means(rows, (key, HELD_OUT))
    if not means:
        return {key: 0.0}, {key: 0.0}
    last = means[-1]
    lower = [mean for mean in means[:-1] if mean[HELD_OUT] < last[HELD_OUT]]
    return best([last, *lower], key=lambda mean: mean[key]), last


def _means(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """Means over every `WINDOW` consecutive rows that have the keys, if the last row has them."""
    if not rows or any(key not in rows[-1] for key in keys):
        return []
    seen = [row for row in rows if all(key in row for key in keys)]
    windows = [seen[end - WINDOW : end] for end in range(WINDOW, len(seen) + 1)]
    return [{key: sum(row[key] for row in some) / WINDOW for key in keys} for some in windows]


CHECKS: dict[str, Callable[[Sequence[Row]], str | None]] = {
    "warning/kl": runaway,
    "warning/length": lengthening,
    "warning/ended": unending,
    "warning/over_refusal": refusing,
    "warning/gold": worsening,
}
