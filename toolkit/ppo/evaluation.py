"""Evaluation during training: one completion per held-out prompt, scored by the training's rewards."""

from collections.abc import Callable, Mapping
from typing import Any

from toolkit.ppo.experience import kl_estimate
from toolkit.ppo.rollout import Metrics, Rollout, RolloutScores

# f(prompts=…, completions=…, **columns) returns numbers by name; None is not logged
EvalMetrics = Callable[..., Mapping[str, float | None]]


def evaluation_metrics(
    rollout: Rollout,
    scores: RolloutScores,
    *,
    kl_coef: float,
    kl_estimator: str,
    eval_metrics: EvalMetrics | None,
) -> Metrics:
    """Means over held-out completions, and the metrics of `eval_metrics`. `kl_coef` is β."""
    samples = scores.samples
    kl = kl_estimate(rollout.logprobs, rollout.ref_logprobs, estimator=kl_estimator)
    kl = kl.masked_fill(~rollout.mask, 0.0).sum(1)
    means = {  # EVALUATED of config.py lists the names
        "objective/scores": scores.raw,
        "objective/penalised_scores": scores.penalised,
        "objective/kl": kl,
        "objective/rlhf_reward": scores.penalised - kl_coef * kl,
        "objective/length": rollout.mask.sum(1).float(),
        "objective/ended": scores.ended.float(),
    }
    metrics = {name: float(values.mean()) for name, values in means.items()}
    if eval_metrics is not None:
        arguments = samples.copies()
        del arguments["completion_ids"]
        task_metrics = eval_metrics(**arguments)
        metrics |= {name: float(x) for name, x in task_metrics.items() if x is not None}
    return metrics


def sample_rows(scores: RolloutScores) -> list[dict[str, Any]]:
    """Rows of samples.jsonl: prompt, completion, score, and the values that reward functions stored."""
    columns = scores.columns | {
        "prompt": scores.samples.prompts,
        "completion": scores.samples.completions,
        "score": [round(score, 4) for score in scores.raw.tolist()],
    }
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]
