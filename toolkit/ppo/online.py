"""What the trainers of PPO, RLOO and GRPO share: sampling mode, evaluation on held-out prompts, checks."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl.models.utils import disable_gradient_checkpointing

from toolkit.errors import ConfigError
from toolkit.models.roles import Roles
from toolkit.models.runtime import release_memory
from toolkit.ppo.evaluation import EvalMetrics, evaluation_metrics, sample_rows
from toolkit.ppo.prompts import encode_prompts
from toolkit.ppo.requirements import check_best_metric
from toolkit.ppo.rollout import RolloutMaker
from toolkit.sampling.compatibility import check_supported
from toolkit.trainers.callbacks import SAMPLES_FILE, append_rows


class OnlineTrainer:
    """Mixin for a `transformers.Trainer` that trains on answers that it samples.

    The trainer's datasets have the column `prompt_ids`; see `encode_prompts`.
    """

    args: Any
    model: Any
    accelerator: Any
    processing_class: Any
    train_dataset: Any
    eval_dataset: Any
    state: Any
    control: Any
    callback_handler: Any
    is_in_train: bool
    roles: Roles
    rollouts: RolloutMaker
    eval_metrics: EvalMetrics | None
    # the option that sets the length of an answer
    length_option = "response_length"

    @property
    def kl_weight(self) -> float:
        """β, the weight of the KL penalty."""
        raise NotImplementedError

    @property
    def kl_estimator(self) -> str:
        """The estimator of the KL in evaluations."""
        return "k1"

    def log_evaluation(self, metrics: dict[str, float]) -> None:
        """Log an evaluation without the metrics of the training since the last log."""
        raise NotImplementedError

    def evaluated_policy(self) -> AbstractContextManager[None]:
        """Inside the block, the policy has the weights that are evaluated."""
        return nullcontext()

    def check_base(self, *, longest_text: int = 0) -> None:
        """Check the base on rows as long as this training's.

        Args:
            longest_text: tokens of the longest other text that is trained on.

        Raises: ConfigError if the base is not supported.
        """
        splits = [s for s in (self.train_dataset, self.eval_dataset) if s is not None]
        lengths = [len(ids) for split in splits for ids in split["prompt_ids"]]
        with self.sampling_mode(), self.roles.using(None):
            check_supported(
                self.roles.base,
                shortest=min(lengths) + 1,
                longest=max(max(lengths) + self.args.response_length, longest_text),
                shorten=f"`max_prompt_length` and `{self.length_option}`",
            )

    @contextmanager
    def sampling_mode(self) -> Iterator[None]:
        """Inside the block, eval mode with autocast and no gradient checkpointing; then train mode."""
        self.model.eval()
        release_memory()
        kwargs = self.args.gradient_checkpointing_kwargs
        with disable_gradient_checkpointing(self.model, kwargs), self.accelerator.autocast():
            yield
        release_memory()
        self.model.train()

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Sample an answer to each held-out prompt, log means, and append the answers to samples.jsonl.

        The random numbers are the same each time, and the training's random state is not changed.
        With PPO's `ema_decay` the averaged policy is evaluated, because the finished run holds it.

        Returns: `eval_objective/scores` (without penalties), `…/penalised_scores`, `…/kl`,
            `…/rlhf_reward`, `…/length`, `…/ended`, and the numbers of `eval_metrics`.
        Raises: ConfigError without held-out rows, or if `metric_for_best_model` is not measured.
        """
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if rows is None or len(rows) == 0:
            raise ConfigError(
                f"no rows to evaluate: pass an `eval_dataset` to {type(self).__name__}"
            )
        if rows is not self.eval_dataset:
            rows = encode_prompts(
                rows, self.processing_class, self.roles, self.args, option=self.length_option
            )
        with torch.random.fork_rng(), self.evaluated_policy(), self.sampling_mode():
            torch.manual_seed(self.args.seed)
            rollout, scores = self.rollouts.make(list(rows))
        measured = evaluation_metrics(
            rollout,
            scores,
            kl_coef=self.kl_weight,
            kl_estimator=self.kl_estimator,
            eval_metrics=self.eval_metrics,
        )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
        step = {"step": self.state.global_step}  # a reward function may store a column `step`, too
        file = Path(self.args.output_dir) / SAMPLES_FILE
        append_rows(file, (step | row | step for row in sample_rows(scores)))
        self.log_evaluation(dict(metrics))
        if self.is_in_train:
            check_best_metric(self.args, metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics
