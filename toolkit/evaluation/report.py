"""`report.json`: built from an evaluation and checked against its schema."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.errors import DatasetError
from toolkit.evaluation.metrics import MAIN, RATES, behaviour_rates, mean_interval, win_rate

if TYPE_CHECKING:  # it brings torch, which who only reads a report does without
    from toolkit.evaluation.evaluate import Answers, Evaluation, Measured

SCHEMA = 1
Report = dict[str, Any]
Example = dict[str, Any]  # {"prompt": text, "completions": {name: {"text", "gold", "proxy"}}}

SECTION = (  # of the reward model, all numbers or null
    "pairwise_accuracy",
    "clear_gold_accuracy",
    "ceiling",
    "labeler_agreement",
    "demonstration_mean",
)


def build(
    evaluation: "Evaluation",
    *,
    reward_model: Mapping[str, Any] | None = None,
    timings_s: Mapping[str, float] | None = None,
) -> Report:
    """Sum an evaluation up by the report's schema.

    Args:
        reward_model: what `judge_reward_model` returned, if there is a reward model.
        timings_s: stage -> seconds.

    Returns: a dict of JSON values that `validate` accepts. Win rates of all checkpoints are over
        `evaluation.sft`, whose own are 0.5. What cannot be known is None.
    """
    groups = [json.dumps(p, sort_keys=True) for p in evaluation.prompts]
    reference = evaluation.checkpoints[evaluation.sft].answers
    report = {
        "schema": SCHEMA,
        "prompts": len(set(groups)),
        "answers": len(groups),
        "seed": evaluation.seed,
        "sampling": asdict(evaluation.sampling),
        "sft": evaluation.sft,
        "checkpoints": {
            name: _checkpoint(measured, reference, groups, evaluation.seed)
            for name, measured in evaluation.checkpoints.items()
        },
        "reward_model": None if reward_model is None else dict(reward_model),
        "timings_s": {stage: round(t, 2) for stage, t in (timings_s or {}).items()},
    }
    validate(report)
    return report


def _checkpoint(
    measured: "Measured", reference: "Mapping[str, Answers]", groups: list[str], seed: int
) -> dict[str, Any]:
    found = {key: _summary(a, reference[key], groups, seed) for key, a in measured.answers.items()}
    kl, loss = measured.kl_to_sft, measured.lm_loss
    return {
        "recipe": measured.recipe,
        **found.pop(MAIN),
        "kl_to_sft": None if kl is None else round(float(np.mean(kl)), 6),
        "lm_loss": None if loss is None else round(loss, 6),
        "other_sampling": found,
    }


def _summary(answers: "Answers", theirs: "Answers", groups: list[str], seed: int) -> dict[str, Any]:
    """One checkpoint under one sampling."""
    means: dict[str, Any] = {}
    wins: dict[str, Any] = {}
    for judge in ("gold", "proxy"):
        ours, other = getattr(answers, judge), getattr(theirs, judge)
        known = ours is not None and other is not None
        means[judge] = mean_interval(ours, seed=seed, groups=groups) if known else None
        wins[judge] = win_rate(ours, other, seed=seed, groups=groups) if known else None
    said = answers.completions
    return {
        **means,
        "win_rate_vs_sft": wins,
        "length": round(float(np.mean([len(c.ids) for c in said])), 3),
        "ended": round(float(np.mean([c.ended for c in said])), 6),
        "rates": None if answers.features is None else behaviour_rates(answers.features),
    }


def examples(evaluation: "Evaluation", count: int = 8) -> list[Example]:
    """A few prompts with every checkpoint's answer under the main sampling.

    In the world the kinds of question take turns; elsewhere they are the first prompts.
    """
    some = evaluation.checkpoints[evaluation.sft].answers[MAIN].features
    kinds = [""] * len(evaluation.prompts) if some is None else [f.kind for f in some]
    turn: dict[str, int] = {}
    order = []
    for row, kind in enumerate(kinds):
        turn[kind] = turn.get(kind, 0) + 1
        order.append((turn[kind], row))
    return [_example(evaluation, row) for _, row in sorted(order)[:count]]


def _example(evaluation: "Evaluation", row: int) -> Example:
    prompt = evaluation.prompts[row]
    said = {}
    for name, measured in evaluation.checkpoints.items():
        answers = measured.answers[MAIN]
        said[name] = {
            "text": answers.completions[row].text,
            "gold": None if answers.gold is None else answers.gold[row],
            "proxy": None if answers.proxy is None else answers.proxy[row],
        }
    text = prompt if isinstance(prompt, str) else "\n".join(m["content"] for m in prompt)
    return {"prompt": text, "completions": said}


def sampling_name(key: str) -> str:
    """ "0" as greedy, a temperature as T = …, any other key as it is."""
    try:
        return "greedy" if float(key) == 0 else f"T = {float(key):g}"
    except ValueError:
        return key


def validate(report: Any) -> None:
    """Check a report against the schema.

    Raises: DatasetError naming the key that is missing or wrong.
    """
    top = _mapping(report, "the report")
    if _get(top, "schema", "") != SCHEMA:
        raise DatasetError(f"report.json: `schema` must be {SCHEMA}, got {top['schema']!r}")
    _number(_get(top, "prompts", ""), "prompts", low=1)
    _number(_get(top, "seed", ""), "seed")
    sampling = _mapping(_get(top, "sampling", ""), "sampling")
    _number(_get(sampling, "temperature", "sampling."), "sampling.temperature", low=0)
    checkpoints = _mapping(_get(top, "checkpoints", ""), "checkpoints")
    if not checkpoints:
        raise DatasetError("report.json: `checkpoints` is empty")
    for name, checkpoint in checkpoints.items():
        _validate_checkpoint(checkpoint, f"checkpoints.{name}")
    section = _get(top, "reward_model", "")
    if section is not None:
        for key in SECTION:
            value = _get(_mapping(section, "reward_model"), key, "reward_model.")
            _number(value, f"reward_model.{key}", null=True)
    for stage, seconds in _mapping(_get(top, "timings_s", ""), "timings_s").items():
        _number(seconds, f"timings_s.{stage}", low=0)


def _validate_checkpoint(value: Any, place: str) -> None:
    checkpoint, within = _mapping(value, place), f"{place}."
    if not isinstance(_get(checkpoint, "recipe", within), str):
        raise DatasetError(f"report.json: `{place}.recipe` must be text")
    for key in ("kl_to_sft", "lm_loss"):
        _number(_get(checkpoint, key, within), within + key, null=True)
    _validate_summary(checkpoint, place)
    for key, other in _mapping(
        checkpoint.get("other_sampling", {}), f"{place}.other_sampling"
    ).items():
        _validate_summary(_mapping(other, key), f"{place}.other_sampling.{key}")


def _validate_summary(summary: Mapping[str, Any], place: str) -> None:
    _number(_get(summary, "length", f"{place}."), f"{place}.length", low=0)
    _number(_get(summary, "ended", f"{place}."), f"{place}.ended", low=0, high=1)
    wins = _mapping(_get(summary, "win_rate_vs_sft", f"{place}."), f"{place}.win_rate_vs_sft")
    for judge in ("gold", "proxy"):
        if summary.get(judge) is not None:
            _interval(summary[judge], f"{place}.{judge}")
            win = _get(wins, judge, f"{place}.win_rate_vs_sft.")
            _interval(win, f"{place}.win_rate_vs_sft.{judge}", low=0, high=1)
    if summary.get("rates") is not None:
        rates = _mapping(summary["rates"], f"{place}.rates")
        for key in RATES:
            _number(_get(rates, key, f"{place}.rates."), f"{place}.rates.{key}", 0, 1, null=True)


def _interval(value: Any, place: str, low: float = -math.inf, high: float = math.inf) -> None:
    interval = _mapping(value, place)
    _number(_get(interval, "mean", f"{place}."), f"{place}.mean", low, high)
    ends = _get(interval, "ci95", f"{place}.")
    if not isinstance(ends, list) or len(ends) != 2:
        raise DatasetError(f"report.json: `{place}.ci95` must be [low, high], got {ends!r}")
    for end in ends:
        _number(end, f"{place}.ci95", low, high)
    if ends[0] > ends[1]:
        raise DatasetError(f"report.json: `{place}.ci95` must be in order, got {ends!r}")


def _number(
    value: Any, place: str, low: float = -math.inf, high: float = math.inf, *, null: bool = False
) -> None:
    if value is None and null:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        wanted = "a finite number" + (f" in [{low:g}, {high:g}]" if low > -math.inf else "")
        raise DatasetError(f"report.json: `{place}` must be {wanted}, got {value!r}")


def _mapping(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DatasetError(f"report.json: `{place}` must be an object, got {type(value).__name__}")
    return value


def _get(mapping: Mapping[str, Any], key: str, within: str) -> Any:
    if key not in mapping:
        raise DatasetError(f"report.json: `{within}{key}` is missing")
    return mapping[key]
