"""The rows, tokenizer, base and adapters from which a recipe builds its trainer."""

from functools import cached_property
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from toolkit.data.checks import check_texts
from toolkit.data.loading import load_splits
from toolkit.data.splits import Splits, hash_rows
from toolkit.data.streaming import Stream, open_stream
from toolkit.errors import ConfigError
from toolkit.models.base import base_tokenizer, fingerprint, load_base
from toolkit.recipe import Options, Recipe
from toolkit.runs.run import Run
from toolkit.runs.settings import ROWS
from toolkit.trainers.callbacks import RunCallback
from toolkit.trainers.load_policy import trainable_policy


class Training:
    """The rows, tokenizer, base and adapters of a training run, each loaded on first access.

    Args:
        recipe: the recipe.
        options: the recipe's resolved options.
        run: the run that is being written.
        resume: the checkpoint to resume from.
    """

    run: Run

    def __init__(
        self,
        recipe: Recipe,
        options: Options,
        *,
        run: Run | None = None,
        resume: str | None = None,
    ) -> None:
        self.recipe, self.options, self.resume = recipe, options, resume
        self.script, self.args, self.model, self.mixture, self.own = options
        self.parent, self.rewards = options.parent, options.rewards
        self.folder = None
        self.fingerprint: dict[str, str] = {}  # the base's fingerprint, once it is loaded
        if run is not None:
            self.run, self.folder = run, run.path

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with the parent's chat template.

        Raises: CheckpointError if it cannot be loaded.
        """
        return base_tokenizer(
            self.model,
            parent=self.parent or next(iter(self.rewards), None),
            trust_remote_code=self.args.trust_remote_code,
            resume=self.resume,
        )

    @cached_property
    def splits(self) -> Splits:
        """The splits: rows of the recipe's kind, checked with the tokenizer.

        Raises: DatasetError for rows that cannot be used; ConfigError for a missing test split.
        """
        splits = load_splits(
            self.script,
            self.mixture,
            self.own,
            kind=self.recipe.rows,
            seed=self.args.seed,
            texts=self.recipe.takes_texts,
            turns=getattr(self.own, "turns", "last"),
            folder=self.folder,
        )
        if self._eval_strategy != "no" and "test" not in splits:
            raise ConfigError(
                f"`eval_strategy` is {self._eval_strategy}, but the dataset has no test split: set "
                "`test_split_size`, or `eval_strategy: no`"
            )
        checked = check_texts(
            splits,
            self.tokenizer,
            self.own,
            max_length=self.options.max_length,
            truncates=not self.recipe.drops_long_rows,
            folder=self.folder,
        )
        if self.folder is not None:
            self.run.inputs |= {ROWS[name]: hash_rows(rows) for name, rows in checked.items()}
        return checked

    @cached_property
    def stream(self) -> Stream | None:
        """The training rows as a stream, for `dataset_streaming`."""
        if not self.script.dataset_streaming:
            return None
        return open_stream(
            self.script, self.mixture, self.own, self.splits, self.tokenizer, folder=self.folder
        )

    @property
    def rows(self) -> Any:
        """The training rows."""
        splits = self.splits
        return splits["train"] if self.stream is None else self.stream.table(seed=self.args.seed)

    @property
    def held_out(self) -> Dataset | None:
        """The rows to evaluate on, at most `eval_prompts`, or None if no evaluation is planned."""
        rows = self.splits.get("test") if self.evaluates else None
        most = getattr(self.own, "eval_prompts", None)
        return rows if rows is None or most is None else rows.select(range(min(most, len(rows))))

    @property
    def evaluates(self) -> bool:
        """Whether the training evaluates on held-out rows."""
        return self._eval_strategy != "no" or bool(self.args.eval_on_start)

    @property
    def _eval_strategy(self) -> str:
        return str(getattr(self.args.eval_strategy, "value", self.args.eval_strategy))

    @cached_property
    def base(self) -> PreTrainedModel:
        """The frozen base, with a language-model head."""
        return self.load_base()

    def load_base(self, *, scalar: bool = False) -> PreTrainedModel:
        """The frozen base; if `scalar` is set, with a linear head to one scalar."""
        base, _ = load_base(
            self.model,
            scalar=scalar,
            parent=self.parent,
            trust_remote_code=self.args.trust_remote_code,
        )
        self.fingerprint = self.run.base = fingerprint(self.model, self.tokenizer)
        return base

    def policy(self) -> Any:
        """The base with the parent's adapter, trainable."""
        assert self.parent is not None
        base = self.base
        return trainable_policy(
            base,
            self.fingerprint,
            self.parent,
            gradient_checkpointing=self.args.gradient_checkpointing,
        )

    def roles(self) -> Any:
        """Policy and rewards as adapters on one base; for PPO also the reference and the value."""
        from toolkit.ppo.roles import load_ppo_roles

        roles, _ = load_ppo_roles(
            self.model,
            policy=self.parent,
            rewards=self.rewards,
            value=getattr(self.args, "value_role", None),
            trust_remote_code=self.args.trust_remote_code,
        )
        self.fingerprint = self.run.base = roles.fingerprint
        return roles

    def online_arguments(self) -> dict[str, Any]:
        """The arguments, besides roles and settings, of a trainer that samples answers and scores them."""
        from toolkit.evaluation.gold import gold_monitor
        from toolkit.ppo.warnings import WatchCallback
        from toolkit.reward.functions import load_reward_functions

        held_out = self.held_out
        return {
            "processing_class": self.tokenizer,
            "train_dataset": self.rows,
            "eval_dataset": held_out,
            "reward_funcs": load_reward_functions(self.own.reward_funcs),
            "eval_metrics": None if held_out is None else gold_monitor(held_out["prompt"]),
            "callbacks": [WatchCallback(), *self.callbacks],
        }

    @property
    def callbacks(self) -> list[TrainerCallback]:
        """The callbacks that every recipe uses: they begin the run and write its metrics."""
        return [RunCallback(self.run)]
