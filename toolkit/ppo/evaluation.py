"""What `PPOTrainer` measures while it trains: one completion per held-out prompt."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerControl
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.base_trainer import _BaseTrainer

from toolkit.errors import ConfigError
from toolkit.ppo.checkpoints import PPOCheckpoints
from toolkit.ppo.prompts import encode_prompts
from toolkit.ppo.requirements import require_best
from toolkit.reward.rewards import EvalMetrics
from toolkit.trainers.callbacks import SAMPLES_FILE, append_rows


class PPOEvaluation(PPOCheckpoints):
    """`evaluate`, as the library calls it."""

    model: Any
    accelerator: Any
    eval_dataset: Any
    eval_metrics: EvalMetrics | None
    is_in_train: bool
    callback_handler: Any
    control: TrainerControl

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Sample an answer to each held-out prompt; log means, append the answers to samples.jsonl.

        The same random numbers each time, and the training's own stream is left alone. With
        `ema_decay` it is the average that answers, which is what the run will hand over.

        Returns: `eval_objective/scores`, `…/kl`, `…/rlhf_reward`, `…/length`, `…/ended`, and what
            `eval_metrics` says.
        """
        rows = self._held_out(eval_dataset)
        self.model.eval()
        with (
            torch.random.fork_rng(),
            self._averaged(),
            disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
            self.accelerator.autocast(),
        ):
            torch.manual_seed(self.args.seed)
            notes, samples = self.maker.look(rows)
        self.model.train()
        if self.eval_metrics is not None:
            others = [name for name in rows[0] if name not in ("prompt", "prompt_ids")]
            found = self.eval_metrics(
                prompts=[sample["prompt"] for sample in samples],
                completions=[sample["completion"] for sample in samples],
                **{name: [row[name] for row in rows] for name in others},
            )
            notes |= {name: float(x) for name, x in found.items() if x is not None}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in notes.items()}
        step = self.state.global_step
        file = Path(self.args.output_dir) / SAMPLES_FILE
        append_rows(file, ({"step": step} | sample | {"step": step} for sample in samples))
        _BaseTrainer.log(self, dict(metrics))  # and not what rollouts have noted so far
        if self.is_in_train:
            require_best(self.args, metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _held_out(self, given: Dataset | None) -> list[dict[str, Any]]:
        """Encoded rows to evaluate on."""
        chosen = self.eval_dataset if given is None else given
        if chosen is None or len(chosen) == 0:
            raise ConfigError("there is nothing to evaluate on: give PPOTrainer an `eval_dataset`")
        if chosen is not self.eval_dataset:
            chosen = encode_prompts(chosen, self.processing_class, self.roles, self.args)
        return list(chosen)
