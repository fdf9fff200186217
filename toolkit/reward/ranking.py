"""The ranking loss: a batch element is all comparisons of a prompt, with one pass per completion.

This is InstructGPT's loss (Ouyang et al. 2022, arXiv:2203.02155). Pairs of one prompt share their
completions, so K passes serve all C(K,2) pairs. All prompts have the same weight, also with different K.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from trl import RewardTrainer

from toolkit.trainers.checkpoints import WholeCheckpoints
from toolkit.trainers.weighted_evaluation import OTHERS, WeightedEvaluation

FEATURES = Features(
    {
        "ids": List(List(Value("int32"))),
        "better": List(Value("int32")),
        "worse": List(Value("int32")),
        "margins": List(Value("float64")),
    }
)
CHUNK = 1000  # groups converted to Python lists at a time


def group_comparisons(pairs: Dataset) -> Dataset:
    """Group tokenized pairs into one row per ranking.

    Args:
        pairs: rows with `chosen_ids` and `rejected_ids`. The rows of one ranking share a `group_id`; a row
            without `group_id` is a ranking of two. `margin` is optional.

    Returns: rows with `ids` (K lists of token ids), and per pair `better` and `worse` (indices into
        `ids`) and `margins`. Groups keep the order of their first pair.
    """
    groups: dict[Any, list[int]] = defaultdict(list)
    ids = pairs["group_id"] if "group_id" in pairs.column_names else itertools.repeat(None)
    for number, group in zip(range(len(pairs)), ids, strict=False):
        groups[("alone", number) if group is None else group].append(number)
    numbers = list(groups.values())
    parts = [numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK)]
    if not parts:
        return Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES)
    return concatenate_datasets(
        [Dataset.from_list(_grouped(pairs, part), features=FEATURES) for part in parts]
    )


def _grouped(pairs: Dataset, groups: list[list[int]]) -> list[dict[str, Any]]:
    """The rows of some groups; a group is a list of row numbers in `pairs`."""
    columns = pairs[[number for group in groups for number in group]]
    margins = columns.get("margin") or itertools.repeat(None)
    members = zip(columns["chosen_ids"], columns["rejected_ids"], margins, strict=False)
    return [_row(itertools.islice(members, len(group))) for group in groups]


def _row(members: Iterable[tuple[list[int], list[int], float | None]]) -> dict[str, Any]:
    """The row of one group; equal completions are stored once."""
    index: dict[tuple[int, ...], int] = {}
    row: dict[str, Any] = {"better": [], "worse": [], "margins": []}
    for chosen, rejected, margin in members:
        row["better"].append(index.setdefault(tuple(chosen), len(index)))
        row["worse"].append(index.setdefault(tuple(rejected), len(index)))
        row["margins"].append(float(margin or 0.0))
    return row | {"ids": [list(sequence) for sequence in index]}


@dataclass(frozen=True)
class RankingCollator:
    """Makes a batch from rows of `group_comparisons`: each completion once, padded on the right.

    `better`, `worse`, `margins` and `weights` are `(pairs,)`. A weight is 1 / (pairs of the prompt ·
    prompts), so that the weighted sum is the mean over prompts of the mean over pairs.
    `prompts` is a scalar.
    """

    pad_token_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The batch's tensors by name."""
        sequences = [torch.tensor(ids) for row in rows for ids in row["ids"]]
        attended = [torch.ones_like(ids) for ids in sequences]
        better, worse, margins, weights, first = [], [], [], [], 0
        for row in rows:
            better += [first + i for i in row["better"]]
            worse += [first + i for i in row["worse"]]
            margins += row["margins"]
            weights += [1 / (len(row["better"]) * len(rows))] * len(row["better"])
            first += len(row["ids"])
        return {
            "input_ids": pad_sequence(sequences, True, self.pad_token_id),
            "attention_mask": pad_sequence(attended, True),
            "better": torch.tensor(better),
            "worse": torch.tensor(worse),
            "margins": torch.tensor(margins),
            "weights": torch.tensor(weights),
            "prompts": torch.tensor(len(rows)),
        }


def ranking_loss(
    scores: Tensor, better: Tensor, worse: Tensor, margins: Tensor, weights: Tensor
) -> Tensor:
    """Weighted mean over pairs of −log σ(score(better) − score(worse) − margin).

    Args:
        scores: `(N,)`, one per completion of the batch.
        better, worse: `(pairs,)`, indices into `scores`.
        margins: `(pairs,)`, in score units.
        weights: `(pairs,)`, summing to 1.

    Source: Ouyang et al. 2022, arXiv:2203.02155, eq. 1.
    """
    difference = scores[better] - scores[worse] - margins
    return -(weights * nn.functional.logsigmoid(difference)).sum()


class RankingTrainer(WeightedEvaluation, WholeCheckpoints, RewardTrainer):  # type: ignore[misc]
    """TRL's RewardTrainer for rows of `group_comparisons`; the batch size counts prompts, not pairs.

    The score is read at the last attended token, so pad may equal EOS. The score layer is trained in
    float32, also on a 4-bit base, where TRL casts all trainable weights to bfloat16.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        score_layer(self.model).float()

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = list(FEATURES)

    def batch_weights(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        """Prompts, or completions."""
        return {OTHERS: inputs["prompts"], "mean_reward": len(inputs["input_ids"])}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The ranking loss; logs TRL's metrics."""
        with self.accelerator.autocast():
            scores = last_scores(self.model, inputs["input_ids"], inputs["attention_mask"])
        chosen, rejected = scores[inputs["better"]], scores[inputs["worse"]]
        keys = ("better", "worse", "margins", "weights")
        loss = ranking_loss(scores, *(inputs[key] for key in keys))
        if self.args.center_rewards_coefficient is not None:
            center = (inputs["weights"] * (chosen + rejected) ** 2).sum()
            loss = loss + self.args.center_rewards_coefficient * center
        mode = "train" if self.model.training else "eval"
        metrics = self._metrics[mode]
        if mode == "train":
            self._total_train_tokens += int(inputs["attention_mask"].sum())
        metrics["num_tokens"] = [self._total_train_tokens]
        detached = scores.detach()
        for name, value in (
            ("min_reward", detached.min()),
            ("mean_reward", detached.mean()),
            ("max_reward", detached.max()),
            ("accuracy", (inputs["weights"] * (chosen > rejected)).sum()),
            ("margin", (inputs["weights"] * (chosen - rejected)).sum()),
        ):
            metrics[name].append(value.item())
        return (loss, {"scores": scores}) if return_outputs else loss


def last_scores(adapted: Any, input_ids: Tensor, attention: Tensor) -> Tensor:
    """Scores `(N,)` in float32, read at each row's last attended token.

    Args:
        adapted: the PeftModel of a sequence-classification model with one label.
        input_ids, attention: `(N, T)`, padded on either side.
    """
    classifier = adapted.get_base_model()
    positions = (attention.long().cumsum(-1) - 1).clamp_min(0)
    hidden = classifier.base_model(
        input_ids=input_ids,
        attention_mask=attention.long(),
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state  # (N, T, d)
    steps = torch.arange(hidden.shape[1], device=hidden.device)
    last = (attention.long() * steps).amax(-1)
    at_end = hidden[torch.arange(len(last), device=hidden.device), last]  # (N, d)
    with torch.autocast(hidden.device.type, enabled=False):  # in float32, as `ScalarHead`
        scores: Tensor = score_layer(adapted)(at_end.float()).squeeze(-1)
    return scores


def score_layer(adapted: Any) -> nn.Linear:
    """PEFT's trainable copy of the head."""
    layer = adapted.get_base_model().score.modules_to_save["default"]
    assert isinstance(layer, nn.Linear)
    return layer
