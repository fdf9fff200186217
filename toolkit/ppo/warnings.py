"""Warnings during training with rewards: settings that teach little, and over-optimisation."""

from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

Row = dict[str, Any]  # one logged step
WINDOW = 3  # logged steps per mean; one step alone has few answers
MAX_ENTROPY_SHARE, MIN_KL = 2 / 3, 3.5  # share of the reference's entropy; nats per answer
MAX_REFUSAL_RISE = 0.08  # of the share of good requests that are refused
MAX_GOLD_FALL = 0.15  # of gold utility
MAX_LENGTH_RATIO = 1.5  # length of the answers, divided by their length at first
MAX_ENDED_FALL = 0.2  # of the share of answers that end
# The mean score of n answers has a standard error of 1/√n of their standard deviation: 25 % for 16 answers,
# 18 % for 32, 12 % for 64. Advantages are relative to this mean.
MIN_EPISODES = 32
MIN_PROMPTS = 8  # with fewer, an update follows the differences between a few prompts
MIN_ENDED = 0.5  # "most answers"
PREFIX = "warning/"
KL, ENTROPY, SCORE = "objective/kl", "objective/entropy", "objective/scores"
PENALTIES_STD, SCORES_STD = "objective/penalties_std", "objective/scores_std"
LENGTH, ENDED = "objective/length", "objective/ended"
HELD_OUT, GOLD, REFUSED = "eval_objective/scores", "eval_gold/mean", "eval_gold/over_refusal"


class WatchCallback(TrainerCallback):  # type: ignore[misc]
    """Prints each warning once, and adds it to the logged row that caused it.

    It must come before `RunCallback`, which writes the row. It reads the trainer's log history, so
    a resumed run prints the same warnings as an uninterrupted run.
    """

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Row | None = None,
        **_: Any,
    ) -> None:
        """Compare the new row with all earlier rows, and print warnings."""
        rows = state.log_history
        if not rows or logs is None:
            return
        warnings = rollout_warnings(rows[-1], args) | {
            k: check(rows) for k, check in CHECKS.items()
        }
        for key, warning in warnings.items():
            if warning is not None and not any(key in row for row in rows):
                for ppo_option, own in getattr(args, "named_in_ppo", {}).items():
                    warning = warning.replace(ppo_option, own)
                print(f"! step {state.global_step}: {warning}", flush=True)
                logs[key] = rows[-1][key] = warning


def warned(rows: Sequence[Row]) -> list[str]:
    """The warnings stored in logged rows."""
    return [str(row[key]) for row in rows for key in row if key.startswith(PREFIX)]


def rollout_warnings(row: Row, args: Any) -> dict[str, str | None]:
    """The warnings that a logged row of rollouts causes by itself. `args` is a PPOConfig or alike."""
    if PENALTIES_STD not in row:
        return {}
    episodes = args.rollout_batch_size
    return {
        "warning/small_rollout": small_rollout(episodes, episodes // args.num_generations),
        "warning/penalties": large_penalties(row[PENALTIES_STD], row[SCORES_STD]),
        "warning/cut": cut_answers(row[ENDED], args.response_length),
    }


def small_rollout(episodes: int, prompts: int) -> str | None:
    """Warn if the advantages of a rollout are noisy, because it has few answers or few prompts."""
    if episodes >= MIN_EPISODES and prompts >= MIN_PROMPTS:
        return None
    return (
        f"a rollout of {episodes} answers to {prompts} prompts is small: the standard error of its mean "
        f"score is {min(episodes, prompts) ** -0.5:.0%} of the scores' standard deviation, so its "
        f"advantages are noisy; use at least {MIN_EPISODES} answers to {MIN_PROMPTS} prompts: "
        "raise gradient_accumulation_steps or num_mini_batches"
    )


def large_penalties(penalties_std: float, scores_std: float) -> str | None:
    """Warn if penalties differ more between a rollout's answers than scores do.

    The advantages, which compare answers, then follow the penalties. Both are standard deviations
    over the answers, in reward units; a penalty that all answers get compares nothing.
    """
    if penalties_std <= scores_std:
        return None
    return (
        f"the penalties vary more (standard deviation {penalties_std:.2f}) than the scores "
        f"({scores_std:.2f}), so training follows the penalties; lower missing_eos_penalty or "
        "length_penalty below the standard deviation of the scores, or raise response_length"
    )


def cut_answers(ended: float, response_length: int) -> str | None:
    """Warn if most answers are cut: their scores would be scores of unfinished texts.

    Args:
        ended: share of the answers that end with a stop token.
        response_length: the largest number of tokens.
    """
    if ended >= MIN_ENDED:
        return None
    return (
        f"{1 - ended:.0%} of the answers are cut at response_length {response_length}, so their scores "
        "are those of unfinished texts; raise response_length, or use prompts with short answers"
    )


def high_kl(rows: Sequence[Row]) -> str | None:
    """Warn if KL(π‖ref) exceeds a large part of the entropy of the reference's answers.

    A policy that gives one typical answer of the reference per prompt has a KL equal to all of this
    entropy; PPO with a KL penalty stays near half of it. A KL up to `MIN_KL` causes no warning,
    because a policy can have good reasons to leave a reference of low entropy.
    """
    means = _while_score_rises(rows, KL)
    if means is None:
        return None
    limit = max(MIN_KL, MAX_ENTROPY_SHARE * next(row[ENTROPY] for row in rows if ENTROPY in row))
    first, last = means
    if last[KL] <= limit:
        return None
    return (
        f"over-optimisation? The score rose from {first[SCORE]:.2f} to {last[SCORE]:.2f} at a KL of "
        f"{last[KL]:.1f} nats per answer, above {limit:.1f}; raise kl_coef or stop earlier"
    )


def longer_answers(rows: Sequence[Row]) -> str | None:
    """Warn if answers became longer: labelers and reward models tend to prefer long answers."""
    means = _while_score_rises(rows, LENGTH)
    if means is None or means[1][LENGTH] <= MAX_LENGTH_RATIO * means[0][LENGTH]:
        return None
    first, last = (mean[LENGTH] for mean in means)
    return (
        f"verbosity? While the score rose, answers grew from {first:.0f} to {last:.0f} tokens; "
        "set length_penalty"
    )


def fewer_ends(rows: Sequence[Row]) -> str | None:
    """Warn if fewer answers end with a stop token than at the start."""
    means = _while_score_rises(rows, ENDED)
    if means is None or means[1][ENDED] >= means[0][ENDED] - MAX_ENDED_FALL:
        return None
    first, last = (mean[ENDED] for mean in means)
    return (
        f"the share of answers that end fell from {first:.0%} to {last:.0%} while the score rose; set "
        "missing_eos_penalty, or raise response_length"
    )


def more_refusals(rows: Sequence[Row]) -> str | None:
    """Warn if more good requests are refused than at the best earlier evaluation."""
    best, last = _best_and_last(rows, REFUSED, min)
    if last[REFUSED] <= best[REFUSED] + MAX_REFUSAL_RISE:
        return None
    return (
        f"over-optimisation: the held-out score rose from {best[HELD_OUT]:.2f} to "
        f"{last[HELD_OUT]:.2f} while the share of refused good requests rose from "
        f"{best[REFUSED]:.0%} to {last[REFUSED]:.0%}; raise kl_coef or stop earlier"
    )


def lower_gold(rows: Sequence[Row]) -> str | None:
    """Warn if gold utility is lower than at the best evaluation (Gao et al. 2022, arXiv:2210.10760)."""
    best, last = _best_and_last(rows, GOLD, max)
    if last[GOLD] >= best[GOLD] - MAX_GOLD_FALL:
        return None
    return (
        f"over-optimisation: the held-out score rose from {best[HELD_OUT]:.2f} to "
        f"{last[HELD_OUT]:.2f} while gold fell from {best[GOLD]:.2f} to {last[GOLD]:.2f}; raise kl_coef "
        "or stop earlier"
    )


def _while_score_rises(rows: Sequence[Row], key: str) -> tuple[Row, Row] | None:
    """The first and the last window's means; None if the score did not rise between them."""
    means = _means(rows, (key, SCORE))
    if len(means) < 2 or means[-1][SCORE] <= means[0][SCORE]:
        return None
    return means[0], means[-1]


def _best_and_last(rows: Sequence[Row], key: str, best: Callable[..., Row]) -> tuple[Row, Row]:
    """The last window's means, and the best of the windows with a lower held-out score than it."""
    means = _means(rows, (key, HELD_OUT))
    if not means:
        return {key: 0.0}, {key: 0.0}
    last = means[-1]
    lower = [mean for mean in means[:-1] if mean[HELD_OUT] < last[HELD_OUT]]
    return best([last, *lower], key=lambda mean: mean[key]), last


def _means(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """Means over windows of `WINDOW` rows that have the keys; empty if the last row lacks a key."""
    if not rows or any(key not in rows[-1] for key in keys):
        return []
    complete = [row for row in rows if all(key in row for key in keys)]
    windows = [complete[end - WINDOW : end] for end in range(WINDOW, len(complete) + 1)]
    return [{key: sum(row[key] for row in some) / WINDOW for key in keys} for some in windows]


CHECKS: dict[str, Callable[[Sequence[Row]], str | None]] = {
    "warning/kl": high_kl,
    "warning/length": longer_answers,
    "warning/ended": fewer_ends,
    "warning/over_refusal": more_refusals,
    "warning/gold": lower_gold,
}
