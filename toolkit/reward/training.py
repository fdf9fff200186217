"""One reward model from start to files: trained, its zero set, judged on held-out comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import RewardConfig

from toolkit.models.heads import ScalarHead
from toolkit.options.arguments import RewardArguments
from toolkit.reward.adapter import (
    detach,
    export,
    restore,
    save_head,
    scalar_adapter,
    score_pairs,
    score_texts,
    short_enough,
    tokenize_pairs,
    widen,
)
from toolkit.reward.ranking import RankingCollator, RankingTrainer, group_comparisons
from toolkit.runs.run import Run
from toolkit.sampling.generation import Prompt
from toolkit.trainers.callbacks import RunCallback
from toolkit.trainers.interruption import interruptible

if TYPE_CHECKING:
    from trl import ModelConfig

Pair = tuple[list[int], list[int]]
ROUNDING = 1e-5  # of a float32 score from one batch to another
LEAST_TOKENS = 2048  # a pass without gradients that any card holds which has trained the model


@dataclass(frozen=True)
class Comparisons:
    """What a reward model learns from and is judged by.

    `train` and `test` are rows of `group_comparisons`; `judged` are the test split's rows as they
    were read; `demonstrations` are (prompt, completion). None is longer than `max_length`.
    """

    train: Dataset
    test: Dataset | None
    judged: Sequence[Mapping[str, Any]]
    demonstrations: list[tuple[Prompt, Prompt]]

    @classmethod
    def prepare(
        cls,
        splits: Mapping[str, Dataset],
        tokenizer: PreTrainedTokenizerBase,
        demonstrations: list[tuple[Prompt, Prompt]],
        *,
        max_length: int | None,
        shuffle_pairs: bool,
    ) -> "Comparisons":
        """Tokenize and group; with `shuffle_pairs` every training pair is a group of its own.

        Raises: ConfigError where a split, or the demonstrations, have no row of `max_length` tokens.
        """
        tokenized = {
            name: tokenize_pairs(rows, tokenizer, max_length=max_length, place=name)
            for name, rows in splits.items()
        }
        if shuffle_pairs and "group_id" in tokenized["train"].column_names:
            tokenized["train"] = tokenized["train"].remove_columns("group_id")
        grouped = {name: group_comparisons(rows) for name, rows in tokenized.items()}
        judged = (
            list(splits["test"].select(tokenized["test"]["number"])) if "test" in splits else []
        )
        shown = short_enough(
            demonstrations, tokenizer, max_length=max_length, place="demonstrations"
        )
        return cls(grouped["train"], grouped.get("test"), judged, shown)

    def step_tokens(self, prompts: int) -> int:
        """Tokens of a training batch of so many prompts, on average."""
        answers = self.train.with_format("arrow")[:]["ids"]
        tokens: int = pc.sum(pc.list_value_length(pc.list_flatten(answers))).as_py()
        return prompts * tokens // len(answers)


class RewardModelTrainer:
    """A reward model on a base with a scalar head; `release` makes room for another on the same.

    Args:
        base: with a scalar head; see `load_base`.
        tokenizer: the base's.
        fingerprint: the base's.
        model: TRL's ModelConfig, for an adapter without a parent.
        most_tokens: scored at a time, or `LEAST_TOKENS`; a training batch's, which is held with its
            gradients, will fit.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        fingerprint: dict[str, str],
        model: "ModelConfig",
        *,
        most_tokens: int,
    ) -> None:
        self.base, self.tokenizer, self.fingerprint = base, tokenizer, fingerprint
        self.model, self.most_tokens = model, max(most_tokens, LEAST_TOKENS)
        self.adapted: Any = None
        self.bias, self.scale = 0.0, 1.0

    def train(
        self,
        comparisons: Comparisons,
        training: RewardConfig,
        start: RewardArguments,
        *,
        run: Run | None = None,
        resume: str | None,
    ) -> dict[str, Any]:
        """Train from the parent's adapter, set the zero, write the files; what is worth noting.

        Args:
            run: begun with the training, if there is one.
        """
        self.adapted = scalar_adapter(
            self.base, self.fingerprint, parent=start.parent, model=self.model
        )
        trainer = RankingTrainer(
            self.adapted,
            training,
            processing_class=self.tokenizer,
            data_collator=RankingCollator(self.tokenizer.pad_token_id),
            train_dataset=comparisons.train,
            eval_dataset=comparisons.test if training.eval_strategy != "no" else None,
            callbacks=[RunCallback(run)],
        )
        trainer.base_fingerprint = self.fingerprint
        with interruptible(trainer):
            trainer.train(resume_from_checkpoint=resume)
        folder = Path(str(training.output_dir))
        export(self.adapted, folder, self.fingerprint)
        self.tokenizer.save_pretrained(folder)
        notes: dict[str, Any] = {"steps": trainer.state.global_step}
        widen(self.adapted)
        if comparisons.demonstrations:
            notes |= self._set_zero(comparisons.demonstrations, unit_variance=start.unit_variance)
            save_head(self.adapted, folder, bias=self.bias, scale=self.scale)
        return notes

    def _set_zero(
        self, demonstrations: list[tuple[Prompt, Prompt]], *, unit_variance: bool
    ) -> dict[str, Any]:
        """Bias, and with `unit_variance` scale, by the demonstrations' scores; what they are."""
        scores = score_texts(
            self.adapted, self.tokenizer, demonstrations, most_tokens=self.most_tokens
        )
        spread = scores.std().item() if len(scores) > 1 else 0.0
        if spread < ROUNDING * scores.abs().max().item():  # equal, but for the batch each was in
            spread = 0.0
        self.scale = 1 / spread if unit_variance and spread > 0 else 1.0
        if unit_variance and not spread > 0:
            print("warning: the demonstrations' scores do not differ, so they are not scaled")
        self.bias = -self.scale * scores.mean().item()
        return {
            "demonstrations": len(scores),
            "score_std": round(self.scale * spread, 4),
            "bias": round(self.bias, 4),
        }

    def restore(self, folder: Path) -> None:
        """Take up what `train` wrote."""
        self.adapted = restore(self.base, folder, self.fingerprint, model=self.model)
        self.bias, self.scale = ScalarHead.load(folder).bias.item(), 1.0

    def score(self, pairs: list[Pair]) -> list[float]:
        """Scores of token ids of prompts and completions, in order."""
        raw = score_pairs(self.adapted, self.tokenizer, pairs, most_tokens=self.most_tokens)
        return [self.scale * x + self.bias for x in raw.tolist()]

    def release(self) -> None:
        """Take the adapter off the base, for the next one."""
        self.base = detach(self.adapted)
        self.adapted, self.bias, self.scale = None, 0.0, 1.0
