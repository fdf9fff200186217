"""Updates: the rows of each micro-batch, then losses and backward passes, one role at a time."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from toolkit.models.passes import (
    Batch,
    by_length,
    collate,
    completion_logprobs,
    policy_pass,
    spread,
    state_values,
)
from toolkit.models.roles import POLICY, VALUE, Roles, belongs_to
from toolkit.ppo.config import PPOConfig
from toolkit.ppo.experience import Experience
from toolkit.ppo.losses import policy_loss, value_loss


def micro_batch_rows(
    experience: Experience, args: PPOConfig, micro_step: int
) -> tuple[list[int], int]:
    """Row numbers of a micro-batch, and the number of real tokens in its whole minibatch.

    The rows depend only on the seed and on `micro_step`, the number of micro-batches since training
    began. Every epoch over a rollout has its own order. A minibatch's rows are sorted into
    micro-batches by length, which changes the padding but not the gradient.
    """
    rollout, position = divmod(micro_step, args.micro_steps_per_rollout)
    minibatch, micro_batch = divmod(position, args.gradient_accumulation_steps)
    epoch, minibatch = divmod(minibatch, args.num_mini_batches)
    generator = torch.Generator().manual_seed((args.seed * 1_000_003 + rollout) * 1_009 + epoch)
    order = torch.randperm(len(experience), generator=generator).tolist()
    rows = order[minibatch * args.mini_batch_size : (minibatch + 1) * args.mini_batch_size]
    completions = [experience.completions[i] for i in rows]
    prompts = [experience.prompts[i] for i in rows]
    groups = list(by_length(prompts, completions, args.per_device_train_batch_size))
    return [rows[i] for i in groups[micro_batch]], sum(map(len, completions))


@dataclass(frozen=True)
class Update:
    """The result of a micro-batch."""

    loss: Tensor  # its part of the minibatch's loss
    approx_kl: Tensor  # its part of the minibatch's approximate KL; nats per token
    metrics: dict[str, Tensor]  # for the log, which averages micro-batches


@dataclass
class Updater:
    """Runs forward and backward passes of each role; the optimizer step is the trainer's.

    `accelerator` gives autocast and scales gradients; `ptx` are token ids of pretraining texts.
    """

    roles: Roles
    args: PPOConfig
    accelerator: Accelerator
    pad_id: int
    ptx: list[list[int]]

    def policy_and_value_step(self, batch: Batch, old: dict[str, Tensor], tokens: int) -> Update:
        """Compute the policy's and then the value's loss, each divided by the minibatch's real tokens.

        Each role's backward runs in the same block as its forward: gradient checkpointing recomputes
        under the active adapter.

        Args:
            batch: some rows of a rollout.
            old: their `logprobs`, `values`, `advantages`, `returns` at rollout time, `(B, T)`.
            tokens: number of real tokens in the whole minibatch.
        """
        args = self.args
        with self.roles.using(POLICY) as policy:
            with self.accelerator.autocast():
                forward = policy_pass(
                    policy,
                    batch,
                    temperature=args.temperature,
                    entropy=True,
                    entropy_gradient=bool(args.ent_coef),
                )
            policy_part = policy_loss(
                forward.logprobs,
                old["logprobs"],
                old["advantages"],
                batch.mask,
                cliprange=args.cliprange,
            )
            assert forward.entropy is not None
            bonus = args.ent_coef * forward.entropy.sum() if args.ent_coef else 0.0
            self.accelerator.backward((policy_part.loss - bonus) / tokens)
        states = forward.states.detach()  # the value's loss must not move the policy
        vf_loss, vf_clipped = self._value_step(batch, old, states, tokens)
        share = args.gradient_accumulation_steps / tokens
        metrics = {
            "loss/policy_avg": policy_part.loss.detach() * share,
            "loss/value_avg": vf_loss * share,
            "policy/approxkl_avg": policy_part.approx_kl * share,
            "policy/clipfrac_avg": policy_part.clipped * share,
            "policy/entropy_avg": forward.entropy.detach().sum() * share,
            "val/clipfrac_avg": vf_clipped * share,
            "val/ratio": policy_part.ratio * share,
        }
        loss = (policy_part.loss - bonus).detach() + args.vf_coef * vf_loss
        return Update(loss / tokens, policy_part.approx_kl / tokens, metrics)

    def _value_step(
        self, batch: Batch, old: dict[str, Tensor], states: Tensor, tokens: int
    ) -> tuple[Tensor, Tensor]:
        """Compute the value's loss and run its backward; return the loss and the clipped tokens.

        A value that is only a head reads the policy's `states`.
        """
        head: Any = self.roles.heads[VALUE]
        assert self.roles.model is not None
        has_adapter = VALUE in self.roles.model.peft_config
        with self.roles.using(VALUE if has_adapter else POLICY) as model:
            if has_adapter:
                with self.accelerator.autocast():
                    values = state_values(model, head, batch)
            else:
                values = spread(batch.mask, head(states))
            loss, clipped = value_loss(
                values,
                old["values"],
                old["returns"],
                batch.mask,
                cliprange=self.args.cliprange_value,
            )
            self.accelerator.backward(self.args.vf_coef * loss / tokens)
        return loss.detach(), clipped

    def pretraining_step(self, micro_step: int) -> Update:
        """PPO-ptx: compute γ times the loss on some pretraining texts, and run its backward.

        The texts of an optimizer step depend only on the seed and the step, so that a resumed run
        draws the same texts. The loss is a mean over the tokens of all micro-batches of the step.
        """
        args = self.args
        step, micro_batch = divmod(micro_step, args.gradient_accumulation_steps)
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        count = args.ptx_batch_size or args.mini_batch_size
        rows = torch.randint(len(self.ptx), (count,), generator=generator).tolist()
        tokens = sum(len(self.ptx[i]) - 1 for i in rows)
        texts = [self.ptx[i] for i in rows[micro_batch :: args.gradient_accumulation_steps]]
        zero = torch.zeros((), device=args.device)
        if not texts:
            return Update(zero, zero, {"loss/ptx_avg": zero})
        batch = collate([t[:1] for t in texts], [t[1:] for t in texts], self.pad_id, args.device)
        with self.roles.using(POLICY) as policy:
            with self.accelerator.autocast():
                logprobs, _ = completion_logprobs(policy, batch, temperature=1.0)
            nll = -logprobs.sum() / tokens
            self.accelerator.backward(args.ptx_coef * nll)
        nll = nll.detach()
        metrics = {"loss/ptx_avg": nll * args.gradient_accumulation_steps}
        return Update(args.ptx_coef * nll, zero, metrics)


def split_value_groups(optimizer: Optimizer, model: nn.Module, learning_rate: float) -> None:
    """Move the value's tensors into parameter groups with another learning rate.

    Adam normalizes gradients, so the weight of the value's loss (`vf_coef`) hardly changes how fast
    the value learns, but its learning rate does. The schedule scales the rates of all groups alike.
    """
    value = {id(p) for name, p in model.named_parameters() if belongs_to(name, VALUE)}
    for group in list(optimizer.param_groups):
        moved = [p for p in group["params"] if id(p) in value]
        if moved:
            group["params"] = [p for p in group["params"] if id(p) not in value]
            optimizer.add_param_group({**group, "params": moved, "lr": learning_rate})
