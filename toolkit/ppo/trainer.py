"""PPO on one base: policy, reference, value and reward are adapters, active one at a time.

`PPOTrainer` uses TRL's base trainer and the loop of `transformers.Trainer`. Each PPO minibatch is
one ordinary optimizer step, so that the library does logging, schedules, callbacks, clipping and
checkpoints. `training_step` shows the whole algorithm.
"""

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl.trainer.base_trainer import _BaseTrainer

from toolkit.errors import DivergedError
from toolkit.models.roles import Roles
from toolkit.models.runtime import disable_dropout
from toolkit.models.tokenizer import pad_by_eos
from toolkit.ppo.checkpoints import OpenRollout, PPOCheckpoints
from toolkit.ppo.config import PPOConfig
from toolkit.ppo.ema import PolicyEMA, averaged_policy
from toolkit.ppo.evaluation import EvalMetrics
from toolkit.ppo.experience import Experience, KLController, make_experience
from toolkit.ppo.online import OnlineTrainer
from toolkit.ppo.prompts import PromptSampler, encode_prompts, encode_texts
from toolkit.ppo.requirements import check_requirements
from toolkit.ppo.rollout import RolloutMaker
from toolkit.ppo.updates import Updater, micro_batch_rows, split_value_groups
from toolkit.reward.functions import RewardFunction
from toolkit.trainers.checkpoints import WholeCheckpoints


class PPOTrainer(OnlineTrainer, WholeCheckpoints, _BaseTrainer):  # type: ignore[misc]
    """Proximal policy optimization of one adapter on a shared base.

    Args:
        roles: a trainable policy (`default`); a value (`value`: adapter and head, or a head); usually
            a reference (`ref`; without it the KL is to the bare base); frozen reward roles.
        args: settings.
        processing_class: the tokenizer.
        train_dataset: rows with a `prompt`, text or messages; `reward_funcs` get the other columns.
        eval_dataset: held-out rows; see `evaluate`.
        reward_funcs: one or more Python functions with TRL's signature, `f(prompts, completions,
            completion_ids, **columns)`; each returns a list of numbers or None. Their sum, weighted
            by `args.reward_weights`, is added to the reward models' score.
        ptx_texts: pretraining texts, used in every optimizer step with weight `args.ptx_coef`.
        eval_metrics: further metrics of an evaluation: `f(prompts, completions, **columns)` returns a
            mapping of names to numbers or None.
        callbacks: further callbacks, as in `transformers.Trainer`.
        optimizers: optimizer and schedule to use instead of those that `args` describes.

    Source: Ouyang et al. 2022, arXiv:2203.02155; details as in Huang et al. 2024, arXiv:2403.17031.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "ppo", "toolkit"]
    _name = "PPO"
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        roles: Roles,
        args: PPOConfig,
        *,
        processing_class: PreTrainedTokenizerBase,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        reward_funcs: RewardFunction | Sequence[RewardFunction] = (),
        ptx_texts: Sequence[str] = (),
        eval_metrics: EvalMetrics | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, LRScheduler | None] = (None, None),
    ) -> None:
        functions = [reward_funcs] if callable(reward_funcs) else list(reward_funcs)
        check_requirements(
            roles,
            args,
            processing_class,
            train_dataset,
            functions,
            ptx_texts,
            has_eval_metrics=eval_metrics is not None,
            has_optimizer=optimizers[0] is not None,
        )
        assert roles.model is not None
        pad_by_eos(processing_class)
        args = copy.copy(args)  # `max_steps` is set below, and the caller may use its config again
        disable_dropout(roles.model)  # with dropout the ratio is not 1 before the first update
        if args.gradient_checkpointing:
            roles.model.enable_input_require_grads()
        prompts = encode_prompts(train_dataset, processing_class, roles, args)
        episodes = args.total_episodes or math.ceil(
            args.num_train_epochs * len(prompts) * args.num_generations
        )
        if args.max_steps <= 0:
            args.max_steps = math.ceil(episodes / args.rollout_batch_size) * args.steps_per_rollout
        self.num_rollouts = math.ceil(args.max_steps / args.steps_per_rollout)
        self.roles, self.base_fingerprint = roles, roles.fingerprint
        held_out = None
        if eval_dataset is not None:
            held_out = encode_prompts(eval_dataset, processing_class, roles, args)
        super().__init__(
            model=roles.model,
            args=args,
            data_collator=list,
            train_dataset=prompts,
            eval_dataset=held_out,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.open_rollout = OpenRollout()
        self._micro_step: int | None = None  # passes since training began; None: not yet known
        # sums over the minibatch so far; nats per token
        self._loss = self._approx_kl = torch.zeros(())
        self.rollouts = RolloutMaker(roles, args, processing_class, functions, lambda: self.state)
        self.kl_control = KLController(args.kl_coef, args.kl_target, args.kl_horizon)
        ptx = encode_texts(ptx_texts, processing_class, args)
        self.updater = Updater(roles, args, self.accelerator, processing_class.pad_token_id, ptx)
        self.ema = None if args.ema_decay is None else PolicyEMA(roles, args.ema_decay)
        if self.ema is not None:
            self.add_callback(self.ema)
        self.eval_metrics = eval_metrics
        self.checkpoints = PPOCheckpoints(
            roles,
            args,
            processing_class,
            self.open_rollout,
            self.kl_control,
            self.ema,
            prompts["prompt_ids"],
            ptx,
            functions,
        )

    @property
    def experience(self) -> Experience | None:
        """The rollout that updates currently use."""
        return self.open_rollout.experience

    @property
    def rollout_number(self) -> int:
        """Rollouts made so far."""
        return math.ceil((self._micro_step or 0) / int(self.args.micro_steps_per_rollout))

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train as the library's trainer does; may be called again."""
        self.check_base(longest_text=max(map(len, self.checkpoints.ptx), default=0))
        args, rollout = self.args, self.open_rollout
        rollout.experience, rollout.stopped, self._micro_step = None, False, None
        rollout.metrics.clear()
        self._loss = self._approx_kl = torch.zeros(())
        # the sizes, since `gradient_accumulation_steps` made a rollout larger in TRL 1.12
        print(
            f"PPO: {self.num_rollouts} rollouts of {args.rollout_batch_size} episodes; "
            f"{args.num_mini_batches} minibatches of {args.mini_batch_size} "
            f"({args.per_device_train_batch_size} at a time), {args.num_ppo_epochs} epochs: "
            f"{args.max_steps} optimizer steps",
            flush=True,
        )
        return super().train(resume_from_checkpoint, **kwargs)

    # ---- the algorithm

    def training_step(
        self, model: nn.Module, inputs: list[int], num_items_in_batch: Any = None
    ) -> Tensor:
        """One micro-batch: make a rollout if needed, then update policy and value on some rows.

        Args:
            model: the PeftModel.
            inputs: row numbers of the rollout's prompts.
            num_items_in_batch: not used; the losses count tokens themselves.
        """
        args, rollout = self.args, self.open_rollout
        if self._micro_step is None:
            self._micro_step = self.state.global_step * args.gradient_accumulation_steps
        experience = rollout.experience
        if experience is None or self._micro_step % args.micro_steps_per_rollout == 0:
            experience = self.make_experience([self.train_dataset[i] for i in inputs])
            rollout.experience, rollout.stopped = experience, False
        if not model.training:  # train() walks every module
            model.train()
        loss = torch.zeros((), device=experience.mask.device)
        if not rollout.stopped:
            rows, tokens = micro_batch_rows(experience, args, self._micro_step)
            batch, old = experience.rows(rows, self.updater.pad_id)
            updates = [self.updater.policy_and_value_step(batch, old, tokens)]
            if args.ptx_coef:
                updates.append(self.updater.pretraining_step(self._micro_step))
            for update in updates:
                loss = loss + update.loss
                self._approx_kl = update.approx_kl + self._approx_kl
                self._add_metrics(update.metrics)
        self._loss = loss + self._loss
        self._micro_step += 1
        if self._micro_step % args.gradient_accumulation_steps == 0:
            self._end_minibatch()
        return loss

    def make_experience(self, rows: list[dict[str, Any]]) -> Experience:
        """Sample and score `num_generations` completions per row, and compute their advantages."""
        rows = [row for row in rows for _ in range(self.args.num_generations)]
        with self.sampling_mode():
            rollout, scores = self.rollouts.make(rows)
        experience, metrics = make_experience(
            rollout, scores, self.args, kl_coef=self.kl_control.coef
        )
        self.kl_control.update(metrics["objective/kl"], len(rows))
        self._add_metrics(scores.metrics | metrics)
        return experience

    def _end_minibatch(self) -> None:
        """Check the loss before the optimizer step, and stop the rollout's updates at `target_kl`.

        Tensors become numbers only here and in `log`, because on a GPU each conversion waits for
        all earlier work.
        """
        if not bool(torch.isfinite(self._loss)):
            raise DivergedError(
                f"{self.args.output_dir}: the loss of step {self.state.global_step + 1} is "
                f"{self._loss.item()}: training has diverged. Earlier checkpoints are intact; start "
                "again with a lower learning_rate or a reward_clip, or resume from a checkpoint with a "
                "lower max_grad_norm"
            )
        self._add_metrics({"policy/updates_skipped": float(self.open_rollout.stopped)})
        limit = self.args.target_kl
        self.open_rollout.stopped |= limit is not None and float(self._approx_kl) > limit
        self._loss = self._approx_kl = torch.zeros(())

    # ---- the library's hooks

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """The library's optimizer; `value_learning_rate` gives the value its own parameter groups."""
        is_new, rate = self.optimizer is None, self.args.value_learning_rate
        optimizer: Optimizer = super().create_optimizer(model)
        if is_new and rate is not None:
            split_value_groups(optimizer, self.model, rate)
        return optimizer

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Row numbers of a rollout's prompts, repeated per micro-batch; only the first copy is used."""
        prompts = self.args.rollout_batch_size // self.args.num_generations
        return self._get_dataloader(  # type: ignore[no-any-return]
            dataset=list(range(len(self.train_dataset))),
            description="Training",
            batch_size=prompts,
            sampler_fn=lambda rows: PromptSampler(
                len(rows),
                rollouts=self.num_rollouts,
                batch=prompts,
                repeat=self.args.micro_steps_per_rollout,
                seed=self.args.seed,
            ),
            is_training=True,
        )

    @property
    def kl_weight(self) -> float:
        """β, which `kl_target` adapts."""
        return self.kl_control.coef

    @property
    def kl_estimator(self) -> str:
        """The option `kl_estimator`."""
        return str(self.args.kl_estimator)

    def log_evaluation(self, metrics: dict[str, float]) -> None:
        """Log an evaluation without the metrics of rollouts."""
        super().log(metrics)

    def evaluated_policy(self) -> AbstractContextManager[None]:
        """The averaged policy, with `ema_decay`."""
        return averaged_policy(self.ema)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of PPO's metrics since the last log, and log."""
        means = {n: sum(map(float, xs)) / len(xs) for n, xs in self.open_rollout.metrics.items()}
        if means:
            means["episode"] = self.rollout_number * self.args.rollout_batch_size
        self.open_rollout.metrics.clear()
        logs.update(means)
        super().log(logs, start_time)

    def _add_metrics(self, metrics: dict[str, Any]) -> None:
        for name, value in metrics.items():
            self.open_rollout.metrics[name].append(value)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self.checkpoints.save(Path(output_dir or self.args.output_dir))

    @property
    def settings(self) -> dict[str, Any]:
        """The library's settings, plus reward functions, data and frozen weights."""
        return super().settings | self.checkpoints.settings

    def saved_settings(self, checkpoint: Path) -> dict[str, Any] | None:
        """The settings in a checkpoint, which may be of an earlier version."""
        return super().saved_settings(checkpoint) or self.checkpoints.old_settings(checkpoint)

    def _check_fits(self, checkpoint: Path) -> None:
        self.checkpoints.check(checkpoint)
        super()._check_fits(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.checkpoints.load(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        self.checkpoints.load_weights(Path(str(self.state.best_model_checkpoint)))
