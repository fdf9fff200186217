"""Warnings about the known failures of RLHF, from the numbers of a report."""

from collections.abc import Iterator
from typing import Any

from toolkit.evaluation.report import BASE, Report

MAX_OVER_REFUSAL = 0.08
MAX_LENGTH = 1.5  # times the SFT model's
MAX_LM_LOSS = 1.1  # times the SFT model's
MIN_ENDED = 0.9
MAX_LENGTH_CORRELATION = 0.7
Entry = dict[str, Any]


def warnings(report: Report) -> list[str]:
    """One line per problem: first the checkpoints' problems, then the reward model's.

    The bare base is not checked, because it is prompted and not trained.
    """
    checkpoints = report["checkpoints"]
    sft = checkpoints.get(report.get("sft", "sft"))
    lines = [
        f"{name}: {problem}"
        for name, entry in checkpoints.items()
        if entry["recipe"] != BASE
        for problem in _problems(entry, sft or entry)
    ]
    return lines + reward_model_warnings(report.get("reward_model") or {})


def _problems(entry: Entry, sft: Entry) -> Iterator[str]:
    score, gold = entry.get("proxy") or {}, entry.get("gold") or {}
    sft_score, sft_gold = sft.get("proxy") or {}, sft.get("gold") or {}
    # over-optimisation: the proxy rises while gold falls; Gao et al. 2022, arXiv:2210.10760
    known = score and gold and sft_score and sft_gold
    if known and score["ci95"][0] > sft_score["mean"] and gold["mean"] < sft_gold["mean"]:
        yield (
            f"over-optimised: the score rose from {sft_score['mean']:.2f} (SFT) to "
            f"{score['mean']:.2f}, but gold fell from {sft_gold['mean']:.2f} to {gold['mean']:.2f}; "
            "raise the KL coefficient or stop earlier"
        )
    refused = (entry.get("rates") or {}).get("over_refusal") or 0.0
    if refused > MAX_OVER_REFUSAL:
        yield f"refuses {refused:.0%} of good requests, or claims not to know the answer"
    if entry["length"] > MAX_LENGTH * sft["length"]:
        yield f"verbose: answers of {entry['length']:.0f} tokens (SFT: {sft['length']:.0f})"
    if entry["ended"] < MIN_ENDED:
        yield f"{1 - entry['ended']:.0%} of the answers did not end; they were cut at max_new_tokens"
    loss, sft_loss = entry["lm_loss"], sft["lm_loss"]
    if loss is not None and sft_loss is not None and loss > MAX_LM_LOSS * sft_loss:
        yield (
            f"alignment tax: lm_loss {loss:.3f} nats per token on pretraining text, against SFT's "
            f"{sft_loss:.3f}; a larger beta or kl_coef reduces it"
        )


def reward_model_warnings(section: Entry) -> list[str]:
    """One warning for each sign that the scores measure length instead of quality."""
    accuracy, by_length = (section.get(k) for k in ("pairwise_accuracy", "length_accuracy"))
    correlation = section.get("length_correlation")
    lines = []
    if accuracy is not None and by_length is not None and accuracy <= by_length:
        lines.append(
            f"reward model: length alone predicts the labels as well as the score does (accuracy "
            f"{by_length:.2f} and {accuracy:.2f})"
        )
    if correlation is not None and abs(correlation) >= MAX_LENGTH_CORRELATION:
        lines.append(
            f"reward model: length nearly determines the score (correlation {correlation:+.2f} "
            "within a prompt)"
        )
    return lines
