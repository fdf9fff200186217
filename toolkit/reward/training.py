"""Train one reward model or an ensemble: comparisons, calibration, files, and judging."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow.compute as pc
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import RewardConfig

from toolkit.data.encoding import Prompt
from toolkit.models.heads import ScalarHead
from toolkit.options.arguments import RewardArguments
from toolkit.reward.adapter import (
    Pair,
    encode_pairs,
    export,
    scalar_adapter,
    score_pairs,
    short_enough,
    tokenize_pairs,
)
from toolkit.reward.ranking import RankingCollator, RankingTrainer, group_comparisons
from toolkit.runs.parents import is_finished
from toolkit.runs.resuming import is_requested, last_checkpoint
from toolkit.runs.run import Run
from toolkit.runs.settings import read_settings, require_same, settings_of
from toolkit.trainers.callbacks import RunCallback, interruptible
from toolkit.trainers.row_checks import check_rows

if TYPE_CHECKING:
    from trl import ModelConfig

ROUNDING = 1e-5  # relative difference of a float32 score between two batches
LEAST_TOKENS = 2048  # fits, without gradients, on any device that has trained the model
JUDGING = "judging"  # in a finished run's results until its report is written


@dataclass(frozen=True)
class Comparisons:
    """The rows that a reward model is trained and evaluated on; none is longer than `max_length`.

    `train` and `test` are rows of `group_comparisons`; `test_rows` are the test split's rows before
    tokenization; `demonstrations` are (prompt, completion).
    """

    train: Dataset
    test: Dataset | None
    test_rows: Sequence[Mapping[str, Any]]
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
        """Tokenize and group the splits; `shuffle_pairs` makes each training pair its own group.

        Raises: ConfigError if a split or the demonstrations have no row within `max_length` tokens.
        """
        tokenized = {
            name: tokenize_pairs(rows, tokenizer, max_length=max_length, place=name)
            for name, rows in splits.items()
        }
        if shuffle_pairs and "group_id" in tokenized["train"].column_names:
            tokenized["train"] = tokenized["train"].remove_columns("group_id")
        grouped = {name: group_comparisons(rows) for name, rows in tokenized.items()}
        test_rows = splits["test"].select(tokenized["test"]["number"]) if "test" in splits else []
        demonstrations = short_enough(
            demonstrations, tokenizer, max_length=max_length, place="demonstrations"
        )
        return cls(grouped["train"], grouped.get("test"), list(test_rows), demonstrations)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each training completion together with its prompt."""
        completions = self.train.with_format("arrow")[:]["ids"]
        lengths: list[int] = pc.list_value_length(pc.list_flatten(completions)).to_pylist()
        return lengths

    def step_tokens(self, prompts: int) -> int:
        """Average number of tokens in a training batch of `prompts` prompts."""
        return prompts * sum(self.lengths) // len(self.train)


class RewardModelTrainer:
    """Trains or restores reward models, one at a time, on a shared base with a scalar head, and
    scores completions with the current one.

    Args:
        base: a base with a scalar head; see `load_base`.
        tokenizer, fingerprint: tokenizer and fingerprint of `base`.
        model: TRL's ModelConfig, for an adapter without a parent.
        most_tokens: tokens per scoring pass, at least `LEAST_TOKENS`. A training batch's number of tokens
            always fits, because training also needs memory for gradients.
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
        self.head: ScalarHead | None = None  # calibrated

    def train(
        self,
        comparisons: Comparisons,
        training: RewardConfig,
        start: RewardArguments,
        *,
        run: Run | None = None,
        resume: str | None,
    ) -> dict[str, Any]:
        """Train from the parent's adapter, calibrate on the demonstrations and write the files.

        Args:
            run: the run, which begins when training begins; None outside of a recipe.
            resume: the checkpoint to resume from.

        Returns: results for `run.json`: the number of steps, and the calibration.
        """
        trainer = self.build(comparisons, training, start, run=run)
        check_rows(trainer, comparisons.lengths)
        with interruptible(trainer):
            trainer.train(resume_from_checkpoint=resume)
        folder = Path(str(training.output_dir))
        self.head = export(self.adapted, folder, self.fingerprint)
        self.tokenizer.save_pretrained(folder)
        for parameter in self.adapted.parameters():
            if parameter.requires_grad:  # TRL trains in bfloat16 on a 4-bit base; roles are float32
                parameter.data = parameter.data.float()
        results: dict[str, Any] = {"steps": trainer.state.global_step}
        if demonstrations := comparisons.demonstrations:
            results |= self._calibrate(demonstrations, self.head, unit=start.unit_variance)
            self.head.save(folder)
        return results

    def build(
        self,
        comparisons: Comparisons,
        training: RewardConfig,
        start: RewardArguments,
        *,
        run: Run | None = None,
    ) -> RankingTrainer:
        """The trainer of one reward model, whose adapter starts from the parent's."""
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
        return trainer

    def _calibrate(
        self, demonstrations: list[tuple[Prompt, Prompt]], head: ScalarHead, *, unit: bool
    ) -> dict[str, Any]:
        """Set the bias so that demonstrations score 0 on average; with `unit`, also set the scale."""
        scores = torch.tensor(self.score(encode_pairs(self.tokenizer, demonstrations)))
        spread = scores.std().item() if len(scores) > 1 else 0.0
        if spread < ROUNDING * scores.abs().max().item():  # equal except for rounding
            spread = 0.0
        scale = 1 / spread if unit and spread > 0 else 1.0
        if unit and not spread > 0:
            print("warning: all demonstrations have the same score, so scores are not scaled")
        head.weight.mul_(scale)
        head.bias.fill_(-scale * scores.mean().item())
        return {
            "demonstrations": len(scores),
            "score_std": round(scale * spread, 4),
            "bias": round(head.bias.item(), 4),
        }

    def restore(self, folder: Path) -> None:
        """Load the reward model that `train` wrote to a folder."""
        self.adapted = scalar_adapter(
            self.base, self.fingerprint, parent=str(folder), model=self.model
        )
        self.head = ScalarHead.load(folder).to(self.adapted.device).requires_grad_(False)

    def score(self, pairs: list[Pair]) -> list[float]:
        """The scores of pairs of prompt ids and completion ids, in order."""
        assert self.head is not None and isinstance(self.tokenizer.pad_token_id, int)
        pad_id = self.tokenizer.pad_token_id
        result = score_pairs(
            self.adapted, self.head, pairs, pad_id=pad_id, most_tokens=self.most_tokens
        )
        return [float(score) for score in result.tolist()]

    def release(self) -> None:
        """Remove the adapter from the base, so that another one can be trained on it."""
        self.base = self.adapted.unload()
        self.base.requires_grad_(False)
        self.adapted = self.head = None


class Judge(Protocol):
    """Judges reward models on held-out comparisons; see `toolkit.evaluation.judge`."""

    def judge(
        self, scorer: Callable[[list[Pair]], list[float]], folder: Path | None
    ) -> dict[str, Any]:
        """Judge one model, and write its report into any `folder`; return the main numbers."""

    def judge_mean(self, folder: Path) -> dict[str, Any]:
        """Write the report on the mean score of all evaluated models; return the main numbers."""


def train_reward_models(
    trainer: RewardModelTrainer,
    comparisons: Comparisons,
    configs: Sequence[Any],
    run: Run,
    *,
    recipe: str,
    resume: str | None,
    judge: Judge | None,
) -> Run:
    """Train one reward model or an ensemble, finish the run, and judge the trained models.

    Args:
        configs: the recipe's arguments: script, RewardConfig, model, mixture, RewardArguments.
        recipe: the recipe's name, which an ensemble's members record.
        judge: evaluates the trained models; None if there are no held-out comparisons.

    Returns: the finished run. If judging raises an error, the run is finished all the same.
    """
    _, training, _, _, start = configs
    if start.ensemble > 1:
        return _train_ensemble(trainer, comparisons, configs, run, recipe, judge)
    results = trainer.train(comparisons, training, start, run=run, resume=resume)
    run.finish(**results, **({JUDGING: "pending"} if judge else {}))
    return run if judge is None else _judge(trainer, run, judge)


def _train_ensemble(
    trainer: RewardModelTrainer,
    comparisons: Comparisons,
    configs: Sequence[Any],
    run: Run,
    recipe: str,
    judge: Judge | None,
) -> Run:
    """Train one reward model after the other on the same base, each a run in `member-<number>`.

    A resumed ensemble keeps its finished members. Member 0 equals the reward model that the recipe
    trains without an ensemble.
    """
    resuming = is_requested(configs[1].resume_from_checkpoint)
    members = [_member(configs, run, number) for number in range(configs[-1].ensemble)]
    for one in members if resuming else ():
        _require_same(one, run)
    run.begin()
    for number, one in enumerate(members):
        own = one[1]
        if resuming and is_finished(own.output_dir):
            trainer.restore(Path(own.output_dir))
            member = Run.load(own.output_dir)
            if judge and JUDGING in member.results:
                _judge(trainer, member, judge)
            elif judge:
                judge.judge(trainer.score, None)  # scores for the mean; its report exists
        else:
            resume = last_checkpoint(own.output_dir, resuming)
            with Run.start(
                own.output_dir, recipe=recipe, configs=one, parents={**run.parents}, resume=resume
            ) as member:
                member.base, member.inputs = run.base, run.inputs
                if number:
                    set_seed(own.seed)
                train_reward_models(
                    trainer, comparisons, one, member, recipe=recipe, resume=resume, judge=judge
                )
        trainer.release()
    return run.finish(**(judge.judge_mean(run.path) if judge else {"members": len(members)}))


def _member(configs: Sequence[Any], run: Run, number: int) -> tuple[Any, ...]:
    """The arguments for one member of an ensemble."""
    script, training, model, mixture, start = configs
    own = copy.copy(training)
    own.output_dir, own.seed = str(run.path / f"member-{number}"), training.seed + number
    return script, own, model, mixture, dataclasses.replace(start, ensemble=1)


def _require_same(one: Sequence[Any], run: Run) -> None:
    """Check that a member of an ensemble, finished or not, was trained with these settings.

    Raises: CheckpointError that names the difference.
    """
    place, current = Path(one[1].output_dir), settings_of(one) | run.inputs
    if is_finished(place):
        require_same(place, Run.load(place).settings, current, longer=False)
    elif checkpoint := last_checkpoint(place, True):
        require_same(Path(checkpoint), read_settings(Path(checkpoint)) or {}, current)


def _judge(trainer: RewardModelTrainer, run: Run, judge: Judge) -> Run:
    """Judge a finished run's reward model and add the results; record an error in the run."""
    try:
        results = judge.judge(trainer.score, run.path)
    except BaseException as error:
        run.results[JUDGING] = f"failed, {type(error).__name__}: {error}"
        run.save()
        print(f"{run.path}: the reward model is finished and can be used; judging it failed")
        raise
    del run.results[JUDGING]
    return run.finish(**results)
