"""One micro-batch of PPO: losses and their backward, one role after the other."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from toolkit.models.passes import (
    Batch,
    collate,
    completion_logprobs,
    policy_pass,
    spread,
    state_values,
)
from toolkit.models.roles import POLICY, VALUE, Roles
from toolkit.ppo.config import PPOConfig
from toolkit.ppo.losses import policy_loss, value_loss


@dataclass(frozen=True)
class Update:
    """What a micro-batch came to.

    `loss` is its share of the minibatch's; `approx_kl` likewise, nats per token; `notes` are for
    the log, where micro-batches are averaged.
    """

    loss: Tensor
    approx_kl: Tensor
    notes: dict[str, Tensor]


class Updater:
    """Runs forward and backward of each role inside its block; stepping is the trainer's.

    Args:
        roles: `default` and `value`, trainable.
        args: settings.
        accelerator: for autocast and the scaling of gradients.
        pad_id: of the tokenizer.
        ptx: token ids of pretraining texts.
    """

    def __init__(
        self,
        roles: Roles,
        args: PPOConfig,
        *,
        accelerator: Accelerator,
        pad_id: int,
        ptx: list[list[int]],
    ) -> None:
        self.roles, self.args, self.accelerator = roles, args, accelerator
        self.pad_id, self.ptx = pad_id, ptx

    def learn(self, batch: Batch, old: dict[str, Tensor], tokens: int) -> Update:
        """The policy's loss, then the value's, each over the minibatch's count of real tokens.

        Args:
            batch: some rows of a rollout.
            old: their `logprobs`, `values`, `advantages`, `returns` of rollout time, `(B, T)`.
            tokens: of the whole minibatch.
        """
        args = self.args
        with self.roles.using(POLICY) as policy:
            with self.accelerator.autocast():
                seen = policy_pass(
                    policy,
                    batch,
                    temperature=args.temperature,
                    entropy=True,
                    entropy_gradient=bool(args.ent_coef),
                )
            found = policy_loss(
                seen.logprobs,
                old["logprobs"],
                old["advantages"],
                batch.mask,
                cliprange=args.cliprange,
            )
            assert seen.entropy is not None
            bonus = args.ent_coef * seen.entropy.sum() if args.ent_coef else 0.0
            self.accelerator.backward((found.loss - bonus) / tokens)
        vf_loss, vf_clipped = self._learn_values(batch, old, seen.states.detach(), tokens)
        share = args.gradient_accumulation_steps / tokens
        notes = {
            "loss/policy_avg": found.loss.detach() * share,
            "loss/value_avg": vf_loss * share,
            "policy/approxkl_avg": found.approx_kl * share,
            "policy/clipfrac_avg": found.clipped * share,
            "policy/entropy_avg": seen.entropy.detach().sum() * share,
            "val/clipfrac_avg": vf_clipped * share,
            "val/ratio": found.ratio * share,
        }
        loss = (found.loss - bonus).detach() + args.vf_coef * vf_loss
        return Update(loss / tokens, found.approx_kl / tokens, notes)

    def _learn_values(
        self, batch: Batch, old: dict[str, Tensor], states: Tensor, tokens: int
    ) -> tuple[Tensor, Tensor]:
        """The value's loss and its backward; a head on the policy's trunk reads its states."""
        head: Any = self.roles.heads[VALUE]
        assert self.roles.model is not None
        if VALUE not in self.roles.model.peft_config:
            return self._value_backward(spread(batch.mask, head(states)), batch, old, tokens)
        with self.roles.using(VALUE) as value:
            with self.accelerator.autocast():
                values = state_values(value, head, batch)
            return self._value_backward(values, batch, old, tokens)

    def _value_backward(
        self, values: Tensor, batch: Batch, old: dict[str, Tensor], tokens: int
    ) -> tuple[Tensor, Tensor]:
        loss, clipped = value_loss(
            values, old["values"], old["returns"], batch.mask, cliprange=self.args.cliprange_value
        )
        self.accelerator.backward(self.args.vf_coef * loss / tokens)
        return loss.detach(), clipped

    def remember(self, micro_step: int) -> Update:
        """PPO-ptx: γ times the loss on some pretraining texts, and its backward.

        An optimizer step has its texts drawn together, by the seed and the step's number alone, so
        that a resumed run draws the same; its micro-batches take turns, and the loss is a mean over
        the tokens of all of them.
        """
        args = self.args
        step, turn = divmod(micro_step, args.gradient_accumulation_steps)
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        count = args.ptx_batch_size or args.mini_batch_size
        drawn = torch.randint(len(self.ptx), (count,), generator=generator).tolist()
        tokens = sum(len(self.ptx[i]) - 1 for i in drawn)
        texts = [self.ptx[i] for i in drawn[turn :: args.gradient_accumulation_steps]]
        if not texts:
            nothing = torch.zeros((), device=args.device)
            return Update(nothing, nothing, {"loss/ptx_avg": nothing})
        batch = collate([t[:1] for t in texts], [t[1:] for t in texts], self.pad_id, args.device)
        with self.roles.using(POLICY) as policy:
            with self.accelerator.autocast():
                logprobs, _ = completion_logprobs(policy, batch, temperature=1.0)
            nll = -logprobs.sum() / tokens
            self.accelerator.backward(args.ptx_coef * nll)
        share = nll.detach() * args.gradient_accumulation_steps
        nothing = torch.zeros_like(share)
        return Update((args.ptx_coef * nll).detach(), nothing, {"loss/ptx_avg": share})
