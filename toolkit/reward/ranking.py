"""The reward model's training: all comparisons of a prompt together, each completion read once.

InstructGPT's loss. Pairs of one prompt share their completions, so one pass over K completions
serves all C(K,2) pairs; and a prompt counts once, however many pairs its ranking makes.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from torch import Tensor, nn
from trl import RewardTrainer

from toolkit.trainers.checkpoints import WholeCheckpoints

FEATURES = Features(
    {
        "ids": List(List(Value("int32"))),
        "better": List(Value("int32")),
        "worse": List(Value("int32")),
        "margins": List(Value("float64")),
    }
)
AT_ONCE = 1000  # groups that are Python lists at a time


def group_comparisons(pairs: Dataset) -> Dataset:
    """Tokenized pairs as one row per prompt.

    Args:
        pairs: rows with `chosen_ids` and `rejected_ids`; those of one ranking share `group_id`, and
            a row without one is a ranking of two. `margin` is optional.

    Returns: rows with `ids` (K lists of token ids), and per pair `better` and `worse` (numbers into
        `ids`) and `margins`. Ties make no pair. Groups keep the order of their first pair.
    """
    groups: dict[Any, list[int]] = defaultdict(list)
    given = pairs["group_id"] if "group_id" in pairs.column_names else itertools.repeat(None)
    for number, group in zip(range(len(pairs)), given, strict=False):
        groups[("alone", number) if group is None else group].append(number)
    numbers = list(groups.values())
    parts = [numbers[at : at + AT_ONCE] for at in range(0, len(numbers), AT_ONCE)]
    if not parts:
        return Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES)
    return concatenate_datasets(
        [Dataset.from_list(_grouped(pairs, part), features=FEATURES) for part in parts]
    )


def _grouped(pairs: Dataset, groups: list[list[int]]) -> list[dict[str, Any]]:
    """The rows of some groups, each of them numbers of pairs."""
    read = pairs[[number for group in groups for number in group]]
    margins = read.get("margin") or itertools.repeat(None)
    members = zip(read["chosen_ids"], read["rejected_ids"], margins, strict=False)
    return [_row(itertools.islice(members, len(group))) for group in groups]


def _row(members: Iterable[tuple[list[int], list[int], float | None]]) -> dict[str, Any]:
    numbers: dict[tuple[int, ...], int] = {}
    row: dict[str, Any] = {"better": [], "worse": [], "margins": []}
    for chosen, rejected, margin in members:
        row["better"].append(numbers.setdefault(tuple(chosen), len(numbers)))
        row["worse"].append(numbers.setdefault(tuple(rejected), len(numbers)))
        row["margins"].append(float(margin or 0.0))
    return row | {"ids": [list(sequence) for sequence in numbers]}


@dataclass(frozen=True)
class RankingCollator:
    """Rows of `group_comparisons` as one batch: every completion once, padded on the right.

    `better`, `worse`, `margins` and `weights` are `(pairs,)`; the weights are 1 / (pairs of the
    prompt · prompts), so that their weighted sum is a mean over prompts of means over pairs.
    """

    pad_token_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Collate."""
        sequences = [ids for row in rows for ids in row["ids"]]
        width = max(map(len, sequences))
        input_ids = torch.full((len(sequences), width), self.pad_token_id)
        attention = torch.zeros((len(sequences), width), dtype=torch.long)
        for at, ids in enumerate(sequences):
            input_ids[at, : len(ids)] = torch.tensor(ids)
            attention[at, : len(ids)] = 1
        better, worse, margins, weights, first = [], [], [], [], 0
        for row in rows:
            better += [first + i for i in row["better"]]
            worse += [first + i for i in row["worse"]]
            margins += row["margins"]
            weights += [1 / (len(row["better"]) * len(rows))] * len(row["better"])
            first += len(row["ids"])
        return {
            "input_ids": input_ids,
            "attention_mask": attention,
            "better": torch.tensor(better),
            "worse": torch.tensor(worse),
            "margins": torch.tensor(margins),
            "weights": torch.tensor(weights),
        }


def ranking_loss(
    scores: Tensor, better: Tensor, worse: Tensor, margins: Tensor, weights: Tensor
) -> Tensor:
    """Weighted mean over pairs of −log σ(score(better) − score(worse) − margin).

    Args:
        scores: `(N,)`, one per completion of the batch.
        better, worse: `(pairs,)`, numbers into `scores`.
        margins: `(pairs,)`, reward units.
        weights: `(pairs,)`, summing to 1.

    Source: Ouyang et al. 2022, arXiv:2203.02155, eq. 1.
    """
    difference = scores[better] - scores[worse] - margins
    return -(weights * nn.functional.logsigmoid(difference)).sum()


class RankingTrainer(WholeCheckpoints, RewardTrainer):  # type: ignore[misc]
    """TRL's RewardTrainer on rows of `group_comparisons`; a batch counts prompts, not pairs.

    The score is read at the last token that is attended to, so pad may equal EOS. The score layer is
    trained in float32, also where TRL casts all that is trained to bfloat16 (on a 4-bit base).
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        score_layer(self.model).float()

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = list(FEATURES)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The ranking loss, and TRL's metrics of it."""
        with self.accelerator.autocast():
            scores = last_scores(self.model, inputs["input_ids"], inputs["attention_mask"])
        chosen, rejected = scores[inputs["better"]], scores[inputs["worse"]]
        keys = ("better", "worse", "margins", "weights")
        loss = ranking_loss(scores, *(inputs[key] for key in keys))
        if self.args.center_rewards_coefficient is not None:
            centre = (inputs["weights"] * (chosen + rejected) ** 2).sum()
            loss = loss + self.args.center_rewards_coefficient * centre
        mode = "train" if self.model.training else "eval"
        note = self._metrics[mode]
        if mode == "train":
            self._total_train_tokens += int(inputs["attention_mask"].sum())
        note["num_tokens"] = [self._total_train_tokens]
        seen = scores.detach()
        for name, value in (
            ("min_reward", seen.min()),
            ("mean_reward", seen.mean()),
            ("max_reward", seen.max()),
            ("accuracy", (inputs["weights"] * (chosen > rejected)).sum()),
            ("margin", (inputs["weights"] * (chosen - rejected)).sum()),
        ):
            note[name].append(value.item())
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
    with torch.autocast(hidden.device.type, enabled=False):  # as `ScalarHead` computes it
        found: Tensor = score_layer(adapted)(at_end.float()).squeeze(-1)
    return found


def score_layer(adapted: Any) -> nn.Linear:
    """The trainable copy of the head that PEFT keeps."""
    layer = adapted.get_base_model().score.modules_to_save["default"]
    assert isinstance(layer, nn.Linear)
    return layer
