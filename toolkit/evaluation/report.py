"""`report.json`: built from an evaluation, and checked against its schema."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from toolkit.errors import DatasetError
from toolkit.evaluation.metrics import (
    MAIN,
    RATES,
    behaviour_rates,
    mean_interval,
    rounded,
    win_rate,
)
from toolkit.evaluation.overoptimization import fit_curves

if TYPE_CHECKING:  # this import needs torch, which reading a report does not
    from toolkit.evaluation.answers import Answers
    from toolkit.evaluation.evaluate import Evaluation, Measured

SCHEMA = 1
BASE = "base"  # `recipe` of the base without an adapter
Report = dict[str, Any]
Example = dict[str, Any]  # {"prompt": text, "completions": {name: {"text", "gold", "proxy"}}}

REWARD_MODEL_KEYS = (  # numbers or null
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
    """Summarize an evaluation in the report's schema.

    Args:
        reward_model: the result of `judge_reward_model`, if there is a reward model.
        timings_s: stage -> seconds.

    Returns: a dict of JSON values that `validate` accepts. All win rates are over `evaluation.sft`,
    so its own win rate is 0.5. Unknown values are None.
    """
    groups = [json.dumps(p, sort_keys=True) for p in evaluation.prompts]
    reference = evaluation.checkpoints[evaluation.sft].answers
    report = {
        "schema": SCHEMA,
        "prompts": len(set(groups)),
        "answers": len(groups),
        "seed": evaluation.seed,
        "sampling": asdict(evaluation.sampling),
        "few_shot": evaluation.few_shot,
        "sft": evaluation.sft,
        "checkpoints": {
            name: _checkpoint(measured, reference, groups, evaluation.seed)
            for name, measured in evaluation.checkpoints.items()
        },
        "reward_model": None if reward_model is None else dict(reward_model),
        "timings_s": {stage: round(t, 2) for stage, t in (timings_s or {}).items()},
    }
    report["overoptimization"] = fit_curves(report)
    validate(report)
    return report


def _checkpoint(
    measured: "Measured", reference: "Mapping[str, Answers]", groups: list[str], seed: int
) -> dict[str, Any]:
    by_sampling = {
        key: _summary(a, reference[key], groups, seed) for key, a in measured.answers.items()
    }
    kl, loss, surprise = measured.kl_to_sft, measured.lm_loss, measured.base_perplexity
    return {
        "recipe": measured.recipe,
        **by_sampling.pop(MAIN),
        "kl_to_sft": None if kl is None else rounded(np.mean(kl)),
        "lm_loss": None if loss is None else rounded(loss),
        "base_perplexity": None if surprise is None else rounded(surprise),
        "other_sampling": by_sampling,
    }


def _summary(answers: "Answers", theirs: "Answers", groups: list[str], seed: int) -> dict[str, Any]:
    """The numbers of one checkpoint for one sampling."""
    means: dict[str, Any] = {}
    wins: dict[str, Any] = {}
    gains: dict[str, Any] = {}
    for judge in ("gold", "proxy"):
        ours, other = getattr(answers, judge), getattr(theirs, judge)
        known = ours is not None and other is not None
        means[judge] = mean_interval(ours, seed=seed, groups=groups) if known else None
        wins[judge] = win_rate(ours, other, seed=seed, groups=groups) if known else None
        gain = np.subtract(ours, other) if known else []
        gains[judge] = mean_interval(gain, seed=seed, groups=groups) if known else None
    completions = answers.completions
    return {
        **means,
        "win_rate_vs_sft": wins,
        "gain_vs_sft": gains,
        "length": round(float(np.mean([len(c.ids) for c in completions])), 3),
        "ended": rounded(np.mean([c.ended for c in completions])),
        "rates": None if answers.features is None else behaviour_rates(answers.features),
    }


def examples(evaluation: "Evaluation", count: int = 10) -> list[Example]:
    """`count` prompts with every checkpoint's answer under the main sampling.

    In the embedded world the prompts alternate between kinds of question; otherwise they are the first.
    """
    features = evaluation.checkpoints[evaluation.sft].answers[MAIN].features
    kinds = [""] * len(evaluation.prompts) if features is None else [f.kind for f in features]
    order = [(kinds[:row].count(kind), row) for row, kind in enumerate(kinds)]
    return [_example(evaluation, row) for _, row in sorted(order)[:count]]


def _example(evaluation: "Evaluation", row: int) -> Example:
    prompt = evaluation.prompts[row]
    completions = {}
    for name, measured in evaluation.checkpoints.items():
        answers = measured.answers[MAIN]
        completions[name] = {
            "text": answers.completions[row].text,
            "gold": None if answers.gold is None else answers.gold[row],
            "proxy": None if answers.proxy is None else answers.proxy[row],
        }
    text = prompt if isinstance(prompt, str) else "\n".join(m["content"] for m in prompt)
    return {"prompt": text, "completions": completions}


def sampling_name(key: str) -> str:
    """The display name of a sampling's key: "0" is greedy, a temperature is "T = …"."""
    try:
        return "greedy" if float(key) == 0 else f"T = {float(key):g}"
    except ValueError:
        return key


def validate(report: Any) -> None:
    """Check a report against the schema.

    Raises: DatasetError that names the missing or wrong key.
    """
    top = _Node(report)
    if top["schema"].value != SCHEMA:
        top["schema"].fail(str(SCHEMA))
    top["prompts"].number(low=1)
    top["seed"].number()
    top["sampling"]["temperature"].number(low=0)
    if not top["checkpoints"].items():
        raise DatasetError("report.json: `checkpoints` is empty")
    for checkpoint in top["checkpoints"].items():
        if not isinstance(checkpoint["recipe"].value, str):
            checkpoint["recipe"].fail("text")
        for key in ("kl_to_sft", "lm_loss"):
            checkpoint[key].number(null=True)
        if "base_perplexity" in checkpoint.value:  # reports of earlier versions lack it
            checkpoint["base_perplexity"].number(low=1, null=True)
        _validate_summary(checkpoint)
        if "other_sampling" in checkpoint.value:
            for summary in checkpoint["other_sampling"].items():
                _validate_summary(summary)
    if top["reward_model"].value is not None:
        for key in REWARD_MODEL_KEYS:
            top["reward_model"][key].number(null=True)
    for seconds in top["timings_s"].items():
        seconds.number(low=0)


def _validate_summary(summary: "_Node") -> None:
    summary["length"].number(low=0)
    summary["ended"].number(0, 1)
    wins = summary["win_rate_vs_sft"]
    for judge in ("gold", "proxy"):
        if summary.value.get(judge) is not None:
            summary[judge].interval()
            wins[judge].interval(0, 1)
    if summary.value.get("rates") is not None:
        for key in RATES:
            summary["rates"][key].number(0, 1, null=True)


class _Node:
    """A value of report.json and its path, which error messages name."""

    def __init__(self, value: Any, path: str = "") -> None:
        self.value, self.path = value, path

    def __getitem__(self, key: str) -> "_Node":
        self._require_object()
        node = _Node(self.value.get(key), f"{self.path}.{key}".lstrip("."))
        if key not in self.value:
            raise DatasetError(f"report.json: `{node.path}` is missing")
        return node

    def items(self) -> "list[_Node]":
        """The members of an object."""
        self._require_object()
        return [self[key] for key in self.value]

    def number(self, low: float = -math.inf, high: float = math.inf, *, null: bool = False) -> None:
        """Require a finite number between `low` and `high`; with `null` also None."""
        value = self.value
        if value is None and null:
            return
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not low <= value <= high:
            bounds = f" in [{low:g}, {high:g}]" if low > -math.inf else ""
            self.fail(f"a finite number{bounds}")

    def interval(self, low: float = -math.inf, high: float = math.inf) -> None:
        """Require a mean and its ordered interval, all between `low` and `high`."""
        self["mean"].number(low, high)
        ends = self["ci95"]
        if not isinstance(ends.value, list) or len(ends.value) != 2:
            ends.fail("[low, high]")
        for end in ends.value:
            _Node(end, ends.path).number(low, high)
        if ends.value[0] > ends.value[1]:
            ends.fail("in order")

    def fail(self, expected: str) -> NoReturn:
        """Raises: DatasetError with the path, the expected and the actual value."""
        raise DatasetError(
            f"report.json: `{self.path or 'the report'}` must be {expected}, got {self.value!r}"
        )

    def _require_object(self) -> None:
        if not isinstance(self.value, dict):
            self.fail("an object")
