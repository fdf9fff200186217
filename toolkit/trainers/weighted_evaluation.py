"""Evaluation during training whose numbers do not depend on the size of its batches."""

from collections import defaultdict
from typing import Any

OTHERS = ""  # the key of `batch_weights` for all metrics that it does not name
EXTREMES = {"min_reward": min, "max_reward": max}


class WeightedEvaluation:
    """Mixin for TRL's trainers: the metrics of an evaluation are means over its rows or tokens.

    TRL takes the mean over batches, in which a small last batch counts as much as a full one, and a
    batch of short answers as much as one of long answers.
    """

    _metrics: dict[str, Any]  # TRL's: "eval" -> metric -> values
    _values: dict[str, list[tuple[float, float]]]  # by metric: value and weight of each batch

    def batch_weights(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """How many rows or tokens each metric of a batch is a mean of, by the metric's name."""
        raise NotImplementedError  # each trainer knows what its metrics are means of

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Evaluate a batch, and take its metrics out of TRL's list."""
        self._metrics["eval"].clear()
        result = super().prediction_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        weights = self.batch_weights(inputs)
        for name, (value,) in {**self._metrics["eval"], "loss": [result[0].item()]}.items():
            self._values[name].append((value, float(weights.get(name, weights[OTHERS]))))
        return result

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Evaluate, and give TRL one value of each metric to log."""
        self._values = defaultdict(list)
        output = super().evaluation_loop(  # type: ignore[misc]
            *args, metric_key_prefix=metric_key_prefix, **kwargs
        )
        means = {name: _combine(name, values) for name, values in self._values.items()}
        if {"rewards/chosen", "rewards/rejected"} <= means.keys():  # KTO's batches may lack a side
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        if "loss" in means:
            output.metrics[f"{metric_key_prefix}_loss"] = means.pop("loss")
        self._metrics["eval"].update({name: [mean] for name, mean in means.items()})
        return output


def _combine(name: str, values: list[tuple[float, float]]) -> float:
    """The weighted mean of a metric, or its smallest or largest value."""
    if name in EXTREMES:
        return EXTREMES[name](value for value, _ in values)
    total = sum(weight for _, weight in values)
    return sum(value * weight for value, weight in values) / max(total, 1.0)
