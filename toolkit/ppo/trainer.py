"""PPO on one base: policy, reference, value and reward are adapters that take turns.

Built on TRL's base trainer and the loop of `transformers.Trainer`: a rollout is made in
`_prepare_inputs` when the last one is used up, and each PPO minibatch is one ordinary training
step, so that logging, schedules, callbacks, clipping and checkpoints are the library's.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.base_trainer import _BaseTrainer

from toolkit.errors import DivergedError
from toolkit.models.roles import Roles
from toolkit.models.runtime import disable_dropout, release_memory
from toolkit.models.tokenizer import pad_by_eos
from toolkit.ppo.config import PPOConfig
from toolkit.ppo.ema import PolicyEMA
from toolkit.ppo.evaluation import PPOEvaluation
from toolkit.ppo.experience import ExperienceMaker
from toolkit.ppo.minibatches import micro_batch
from toolkit.ppo.optimizing import value_groups
from toolkit.ppo.prompts import RolloutSampler, encode_prompts, encode_texts
from toolkit.ppo.requirements import check_ppo
from toolkit.ppo.rollout import Experience
from toolkit.ppo.updates import Updater
from toolkit.reward.rewards import EvalMetrics, RewardFunction


class PPOTrainer(PPOEvaluation, _BaseTrainer):  # type: ignore[misc]
    """Proximal policy optimization of one adapter against rewards, on one base.

    Args:
        roles: with `default` (the policy) attached as trainable, a `value` role (an adapter with a
            head, or a head alone), usually `ref` (without it the KL is to the bare base), and the
            reward roles, frozen.
        args: settings.
        processing_class: the tokenizer.
        train_dataset: rows with a `prompt`, text or messages; other columns go to `reward_funcs`.
        eval_dataset: held-out rows; see `evaluate`.
        reward_funcs: Python functions with TRL's signature, or one, added to the reward roles' score
            with `args.reward_weights`: `f(prompts, completions, completion_ids, **columns)` to a list of
            numbers or None.
        ptx_texts: pretraining texts, mixed into every update with `args.ptx_coef`.
        eval_metrics: further numbers of an evaluation, from its prompts and completions:
            `f(prompts, completions, **columns)` to a mapping of names to numbers or None.
        optimizers: in the place of the one that `args` describes.

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
        check_ppo(
            roles,
            args,
            processing_class,
            train_dataset,
            functions,
            ptx_texts,
            more_metrics=eval_metrics is not None,
            own_optimizer=optimizers[0] is not None,
        )
        assert roles.model is not None
        pad_by_eos(processing_class)
        args = copy.copy(args)  # `max_steps` is this training's: the caller's may serve another one
        self.roles = roles
        disable_dropout(roles.model)  # the ratio would differ from 1 before anything is learnt
        if args.gradient_checkpointing:
            roles.model.enable_input_require_grads()
        encoded = encode_prompts(train_dataset, processing_class, roles, args)
        episodes = args.total_episodes or math.ceil(
            args.num_train_epochs * len(encoded) * args.num_generations
        )
        self.rollouts = math.ceil(episodes / args.rollout_batch_size)
        if args.max_steps <= 0:
            args.max_steps = self.rollouts * args.steps_per_rollout
        self.rollouts = math.ceil(args.max_steps / args.steps_per_rollout)
        self.maker = ExperienceMaker(
            roles,
            args,
            tokenizer=processing_class,
            reward_functions=functions,
            trainer_state=lambda: self.state,
        )
        self.eval_metrics = eval_metrics
        self.experience: Experience | None = None
        self.base_fingerprint = roles.fingerprint
        self._micro_step: int | None = None
        self._stopped = False  # whether the rest of this rollout's updates is skipped
        self._loss = self._approx_kl = torch.zeros(())  # of the minibatch so far; nats per token
        self._metrics: dict[str, list[Tensor | float]] = defaultdict(list)
        super().__init__(
            model=roles.model,
            args=args,
            data_collator=list,
            train_dataset=encoded,
            eval_dataset=None
            if eval_dataset is None
            else encode_prompts(eval_dataset, processing_class, roles, args),
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.ema = None if args.ema_decay is None else PolicyEMA(roles, args.ema_decay)
        if self.ema is not None:
            self.add_callback(self.ema)
        self.pad_id: int = processing_class.pad_token_id
        self.updater = Updater(
            roles,
            args,
            accelerator=self.accelerator,
            pad_id=self.pad_id,
            ptx=encode_texts(ptx_texts, processing_class, args),
        )

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As the library's; a trainer may train again."""
        self._micro_step, self.experience, self._stopped = None, None, False
        self._loss = self._approx_kl = torch.zeros(())
        self._metrics.clear()
        print(self._plan(), flush=True)
        return super().train(resume_from_checkpoint, **kwargs)

    def _plan(self) -> str:
        """What the sizes come to; `gradient_accumulation_steps` made a rollout larger in TRL 1.12."""
        args = self.args
        return (
            f"PPO: {self.rollouts} rollouts of {args.rollout_batch_size} episodes, in "
            f"{args.num_mini_batches} minibatches of {args.mini_batch_size} "
            f"({args.per_device_train_batch_size} at a time), {args.num_ppo_epochs} times over: "
            f"{args.max_steps} optimizer steps"
        )

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """The library's; with `value_learning_rate` the value's tensors are groups of their own."""
        made, rate = self.optimizer is None, self.args.value_learning_rate
        optimizer: Optimizer = super().create_optimizer(model)
        if made and rate is not None:
            value_groups(optimizer, self.model, rate)
        return optimizer

    # ---- data: a rollout's prompts for every micro-batch made of it

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Row numbers of a whole rollout, as often as it is used; it reads them only once."""
        return self._get_dataloader(  # type: ignore[no-any-return]
            dataset=list(range(len(self.train_dataset))),
            description="Training",
            batch_size=self.args.rollout_batch_size // self.args.num_generations,
            sampler_fn=lambda rows: RolloutSampler(
                len(rows),
                rollouts=self.rollouts,
                batch=self.args.rollout_batch_size // self.args.num_generations,
                repeat=self.args.micro_steps_per_rollout,
                seed=self.args.seed,
            ),
            is_training=True,
        )

    def _prepare_inputs(self, rows: list[int]) -> dict[str, Any]:
        """Make a rollout if none is left, and return the micro-batch that is due."""
        if self._micro_step is None:
            self._micro_step = self.state.global_step * self.args.gradient_accumulation_steps
        at = self._micro_step % self.args.micro_steps_per_rollout
        if at == 0 or self.experience is None:
            self.experience = self.make_experience([self.train_dataset[i] for i in rows])
            self._stopped = False
        index, tokens = micro_batch(self.experience, self.args, self._micro_step)
        batch, old = self.experience.rows(index, self.pad_id)
        return {"batch": batch, "old": old, "tokens": tokens}

    def make_experience(self, rows: list[dict[str, Any]]) -> Experience:
        """A rollout of the rows' prompts; its notes go to the log. See `ExperienceMaker.make`."""
        self.model.eval()
        release_memory()
        with (
            disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
            self.accelerator.autocast(),
        ):
            experience, notes = self.maker.make(rows)
        release_memory()
        self.model.train()
        for name, value in notes.items():
            self._metrics[name].append(value)
        return experience

    # ---- update

    def training_step(
        self, model: nn.Module, inputs: list[int], num_items_in_batch: Any = None
    ) -> Tensor:
        """One micro-batch: the policy's loss, then the value's, each under its own adapter."""
        if not model.training:  # the call walks every module
            model.train()
        ready = self._prepare_inputs(inputs)
        batch, old, tokens = ready["batch"], ready["old"], ready["tokens"]
        assert self._micro_step is not None
        loss = torch.zeros((), device=batch.mask.device)
        if not self._stopped:
            updates = [self.updater.learn(batch, old, tokens)]
            if self.args.ptx_coef:
                updates.append(self.updater.remember(self._micro_step))
            for update in updates:
                loss = loss + update.loss
                self._approx_kl = update.approx_kl + self._approx_kl
                for name, value in update.notes.items():
                    self._metrics[name].append(value)
        self._loss = loss + self._loss
        self._micro_step += 1
        if self._micro_step % self.args.gradient_accumulation_steps == 0:
            self._end_minibatch()
        return loss

    def _end_minibatch(self) -> None:
        """Before the optimizer's step: whether it may be made, and whether another may follow.

        Numbers are asked for here and in `log` alone: on a card each waits for all that goes before.
        """
        if not bool(torch.isfinite(self._loss)):
            raise DivergedError(
                f"{self.args.output_dir}: the loss of step {self.state.global_step + 1} is "
                f"{self._loss.item()}: training has diverged. Earlier checkpoints are whole; start again "
                "with a lower learning_rate or a reward_clip, or continue from one with a lower "
                "max_grad_norm"
            )
        self._metrics["policy/updates_skipped"].append(float(self._stopped))
        limit = self.args.target_kl
        self._stopped |= limit is not None and float(self._approx_kl) > limit
        self._loss = self._approx_kl = torch.zeros(())

    # ---- log

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of what was noted since the last log."""
        logs.update(
            {name: sum(map(float, seen)) / len(seen) for name, seen in self._metrics.items()}
        )
        if self._metrics:
            logs["episode"] = self.rollout_number * self.args.rollout_batch_size
        self._metrics.clear()
        super().log(logs, start_time)

    @property
    def rollout_number(self) -> int:
        """Rollouts made so far."""
        return math.ceil((self._micro_step or 0) / int(self.args.micro_steps_per_rollout))
