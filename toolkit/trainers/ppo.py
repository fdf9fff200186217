"""PPO on one base: policy, reference, value and reward are adapters that take turns.

Built on TRL's base trainer and the loop of `transformers.Trainer`: a rollout is made in
`_prepare_inputs` when the last one is used up, and each PPO minibatch is one ordinary training
step, so that logging, schedules, callbacks, clipping and checkpoints are the library's.
"""

import math
from collections import defaultdict
from pathlib import Path
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
from trl.trainer.utils import disable_dropout_in_model

from toolkit.errors import CheckpointError, ConfigError, RewardError
from toolkit.models.base import stop_ids
from toolkit.models.generation import Sampling
from toolkit.models.passes import by_length, completion_logprobs, state_values
from toolkit.models.roles import POLICY, REWARD, VALUE, Roles
from toolkit.rl.advantages import gae, kl_estimate, kl_rewards, masked_mean, whiten
from toolkit.rl.losses import policy_loss, value_loss
from toolkit.rl.rollout import Experience, RewardParts, roll_out
from toolkit.trainers.checkpoints import WholeCheckpoints
from toolkit.trainers.ppo_config import PPOConfig
from toolkit.trainers.prompts import RolloutSampler, encode_prompts

EXPERIENCE_FILE = "experience.safetensors"


class PPOTrainer(WholeCheckpoints, _BaseTrainer):  # type: ignore[misc]
    """Proximal policy optimization of one adapter against a reward adapter on the same base.

    Args:
        roles: with `default` (the policy) and `value` attached as trainable, `reward` frozen, and
            usually `ref`; without `ref` the KL is to the bare base.
        args: settings.
        processing_class: the tokenizer.
        train_dataset: rows with a `prompt`, text or messages.
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
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, LRScheduler | None] = (None, None),
    ) -> None:
        for name in (POLICY, VALUE, REWARD):
            if roles.model is None or name not in roles.model.peft_config:
                raise ConfigError(f"PPO needs the role {name!r} attached; see toolkit.models.roles")
        if len(train_dataset) == 0:
            raise ConfigError("PPO needs at least one prompt, the training split is empty")
        if args.world_size > 1:
            raise ConfigError(
                f"PPO runs in one process, on one GPU; started with {args.world_size} processes"
            )
        assert roles.model is not None
        self.roles = roles
        self.sampling = Sampling(max_new_tokens=args.response_length, temperature=args.temperature)
        # dropout would make the ratio differ from 1 before anything is learnt
        disable_dropout_in_model(roles.model)
        if args.gradient_checkpointing:
            roles.model.enable_input_require_grads()
        per_rollout = args.rollout_batch_size
        episodes = args.total_episodes or math.ceil(args.num_train_epochs * len(train_dataset))
        self.rollouts = math.ceil(episodes / per_rollout)
        if args.max_steps <= 0:
            args.max_steps = self.rollouts * args.steps_per_rollout
        self.rollouts = math.ceil(args.max_steps / args.steps_per_rollout)
        self.experience: Experience | None = None
        self._micro_step: int | None = None
        self._metrics: dict[str, list[float]] = defaultdict(list)
        super().__init__(
            model=roles.model,
            args=args,
            data_collator=list,
            train_dataset=encode_prompts(train_dataset, processing_class, roles, args),
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.stop = stop_ids(roles.base, processing_class)
        self.pad_id: int = processing_class.pad_token_id

    # ---- data: a rollout's prompts for every micro-batch made of it

    @property
    def micro_steps_per_rollout(self) -> int:
        """Forward and backward passes between two rollouts."""
        return int(self.args.steps_per_rollout * self.args.gradient_accumulation_steps)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of a whole rollout's rows, as often as the rollout is used."""
        return self._get_dataloader(  # type: ignore[no-any-return]
            dataset=self.train_dataset,
            description="Training",
            batch_size=self.args.rollout_batch_size,
            sampler_fn=lambda rows: RolloutSampler(
                len(rows),
                rollouts=self.rollouts,
                batch=self.args.rollout_batch_size,
                repeat=self.micro_steps_per_rollout,
                seed=self.args.seed,
            ),
            is_training=True,
        )

    def _prepare_inputs(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a rollout if none is left, and return the micro-batch that is due."""
        if self._micro_step is None:
            self._micro_step = self.state.global_step * self.args.gradient_accumulation_steps
        at = self._micro_step % self.micro_steps_per_rollout
        if at == 0 or self.experience is None:
            self.experience = self.make_experience(rows)
        index, tokens = self._micro_batch(at)
        batch, old = self.experience.rows(index, self.pad_id)
        return {"batch": batch, "old": old, "tokens": tokens}

    def _micro_batch(self, at: int) -> tuple[list[int], int]:
        """Row numbers of micro-batch `at` of a rollout, and the real tokens of its whole minibatch."""
        assert self.experience is not None and self._micro_step is not None
        per_epoch = self.args.num_mini_batches * self.args.gradient_accumulation_steps
        rollout, epoch = self._micro_step // self.micro_steps_per_rollout, at // per_epoch
        generator = torch.Generator().manual_seed(
            (self.args.seed * 1_000_003 + rollout) * 1_009 + epoch
        )
        order = torch.randperm(len(self.experience), generator=generator).tolist()
        mini, micro = divmod(at % per_epoch, self.args.gradient_accumulation_steps)
        size = self.args.mini_batch_size
        chosen = order[mini * size : (mini + 1) * size]
        completions = [self.experience.completions[i] for i in chosen]
        prompts = [self.experience.prompts[i] for i in chosen]
        # micro-batches of similar length: the gradient is the same, the padding is not
        groups = list(by_length(prompts, completions, self.args.per_device_train_batch_size))
        return [chosen[i] for i in groups[micro]], sum(map(len, completions))

    # ---- rollout: sample, score, and turn scores into advantages

    def make_experience(self, rows: list[dict[str, Any]]) -> Experience:
        """Sample a completion for each row's prompt and compute rewards, advantages and returns."""
        prompts = [row["prompt_ids"] for row in rows]
        self.model.eval()
        with (
            disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
            self.accelerator.autocast(),
        ):
            experience, parts = roll_out(
                self.roles,
                prompts,
                sampling=self.sampling,
                stop=self.stop,
                pad_id=self.pad_id,
                batch_size=self.args.local_rollout_forward_batch_size,
                generation_batch_size=self.args.generation_batch_size
                or self.args.local_rollout_forward_batch_size,
            )
        self.model.train()
        score = self._penalised(parts)
        self._refuse_bad_scores(score, experience)
        kl = kl_estimate(
            experience.logprobs, experience.ref_logprobs, estimator=self.args.kl_estimator
        )
        rewards = kl_rewards(score, kl, experience.mask, kl_coef=self.args.kl_coef)
        if self.args.whiten_rewards:
            rewards = whiten(rewards, experience.mask, shift_mean=False)
        advantages, experience.returns = gae(
            rewards, experience.values, experience.mask, gamma=self.args.gamma, lam=self.args.lam
        )
        # over the whole rollout and never per micro-batch
        experience.advantages = whiten(advantages, experience.mask)
        self._note_rollout(experience, parts, score, kl)
        return experience

    def _penalised(self, parts: RewardParts) -> Tensor:
        if self.args.missing_eos_penalty is None:
            return parts.scores
        penalty: float = self.args.missing_eos_penalty
        return parts.scores - penalty * (~parts.ended).float()

    def _refuse_bad_scores(self, score: Tensor, experience: Experience) -> None:
        bad = (~torch.isfinite(score)).nonzero().flatten().tolist()
        if bad:
            ids = experience.prompts[bad[0]] + experience.completions[bad[0]]
            raise RewardError(
                f"the reward model gave {score[bad[0]].item()} to {len(bad)} of {len(score)} "
                f"completions; the first: {self.processing_class.decode(ids)!r}"
            )

    def _note_rollout(
        self, experience: Experience, parts: RewardParts, score: Tensor, kl: Tensor
    ) -> None:
        """Metric keys and meanings of TRL 1.12's PPOTrainer, over real tokens only."""
        summed = kl.masked_fill(~experience.mask, 0.0).sum(1)
        penalty = -self.args.kl_coef * summed
        note = self._note
        note("objective/kl", summed.mean())
        note("objective/entropy", (-experience.logprobs).sum(1).mean())
        note("objective/non_score_reward", penalty.mean())
        note("objective/scores", parts.scores.mean())
        note("objective/scores_std", parts.scores.std(unbiased=False))
        note("objective/rlhf_reward", penalty.mean() + score.mean())
        note("objective/length", experience.mask.sum(1).float().mean())
        note("objective/ended", parts.ended.float().mean())
        note("val/num_eos_tokens", parts.ended.sum())

    # ---- update: one role after the other, forward and backward inside its block

    def training_step(
        self, model: nn.Module, inputs: list[dict[str, Any]], num_items_in_batch: Any = None
    ) -> Tensor:
        """One micro-batch: the policy's loss, then the value's, each under its own adapter."""
        model.train()
        ready = self._prepare_inputs(inputs)
        batch, old, tokens = ready["batch"], ready["old"], ready["tokens"]
        with self.roles.using(POLICY) as policy:
            with self.accelerator.autocast():
                logprobs, entropy = completion_logprobs(
                    policy, batch, temperature=self.args.temperature, entropy=True
                )
            found = policy_loss(
                logprobs,
                old["logprobs"],
                old["advantages"],
                batch.mask,
                cliprange=self.args.cliprange,
            )
            self.accelerator.backward(found.loss / tokens)
        with self.roles.using(VALUE) as value:
            with self.accelerator.autocast():
                values = state_values(value, self.roles.heads[VALUE], batch)  # type: ignore[arg-type]
            vf_loss, vf_clipped = value_loss(
                values,
                old["values"],
                old["returns"],
                batch.mask,
                cliprange=self.args.cliprange_value,
            )
            self.accelerator.backward(self.args.vf_coef * vf_loss / tokens)
        share = (
            self.args.gradient_accumulation_steps / tokens
        )  # micro-batches are averaged in `log`
        note = self._note
        note("loss/policy_avg", found.loss.detach() * share)
        note("loss/value_avg", vf_loss.detach() * share)
        note("policy/approxkl_avg", found.approx_kl * share)
        note("policy/clipfrac_avg", found.clipped * share)
        assert entropy is not None
        note("policy/entropy_avg", entropy.sum() * share)
        note("val/clipfrac_avg", vf_clipped * share)
        note("val/ratio", found.ratio * share)
        note("val/explained_variance", _explained(old["values"], old["returns"], batch.mask))
        assert self._micro_step is not None
        self._micro_step += 1
        loss: Tensor = (found.loss + self.args.vf_coef * vf_loss).detach() / tokens
        return loss

    def _note(self, name: str, value: Tensor) -> None:
        self._metrics[name].append(float(value))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of what was noted since the last log."""
        logs.update({name: sum(seen) / len(seen) for name, seen in self._metrics.items()})
        if self._metrics:
            logs["episode"] = self.rollout_number * self.args.rollout_batch_size
        self._metrics.clear()
        super().log(logs, start_time)

    @property
    def rollout_number(self) -> int:
        """Rollouts made so far."""
        return math.ceil((self._micro_step or 0) / self.micro_steps_per_rollout)

    # ---- checkpoints: adapters as PEFT files, the value in a folder of its own, the open rollout

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        self.roles.save(POLICY, folder)
        self.roles.save(VALUE, folder / VALUE)
        self.processing_class.save_pretrained(folder)
        if folder != Path(self.args.output_dir) and self.experience is not None:
            self.experience.save(folder / EXPERIENCE_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        for name, place in ((POLICY, folder), (VALUE, folder / VALUE)):
            self.roles.load(name, place)
        file = folder / EXPERIENCE_FILE
        if not file.is_file():
            raise CheckpointError(
                f"{folder}: {EXPERIENCE_FILE} is missing, so it cannot be resumed"
            )
        self.experience = Experience.load(file, self.args.device)


def _explained(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Share of the returns' variance that the values explain; 1 is perfect, 0 a constant guess."""
    mean = masked_mean(returns, mask)
    variance = masked_mean((returns - mean) ** 2, mask)
    return 1 - masked_mean((returns - values) ** 2, mask) / variance.clamp_min(1e-8)
