"""Rollouts: sampled completions, scored by every role in passes of similar length, as experience."""

import itertools
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from toolkit.models.passes import (
    Batch,
    by_length,
    collate,
    policy_pass,
    scores,
    spread,
    state_values,
)
from toolkit.models.roles import POLICY, REFERENCE, VALUE, Roles
from toolkit.sampling.generation import sample
from toolkit.sampling.settings import Sampling


@dataclass
class Experience:
    """One rollout and what PPO learns from it. T is the longest completion.

    `prompts` and `completions` are token ids per row; the tensors are `(B, T)` and zero where
    `mask` is False. `advantages` and `returns` are filled in after the rewards are known.
    """

    prompts: list[list[int]]
    completions: list[list[int]]
    mask: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def __len__(self) -> int:
        return len(self.prompts)

    def rows(self, index: list[int], pad_id: int) -> tuple[Batch, dict[str, Tensor]]:
        """Some rows, with no column of padding that none of them needs.

        Returns: the tokens, and `logprobs`, `values`, `advantages`, `returns` cut to their width.
        """
        batch = collate(
            [self.prompts[i] for i in index],
            [self.completions[i] for i in index],
            pad_id,
            self.mask.device,
        )
        width = batch.mask.shape[1]
        names = ("logprobs", "values", "advantages", "returns")
        return batch, {n: getattr(self, n)[index, :width] for n in names}

    def save(self, file: Path) -> None:
        """Write everything to one safetensors file, so that training resumes inside a rollout."""
        tensors = {f.name: getattr(self, f.name).cpu().contiguous() for f in fields(self)[2:]}
        for name in ("prompts", "completions"):
            ragged = getattr(self, name)
            tensors[name] = torch.tensor([token for row in ragged for token in row])
            tensors[name + "_lengths"] = torch.tensor([len(row) for row in ragged])
        save_file(tensors, file)

    @classmethod
    def load(cls, file: Path, device: torch.device) -> "Experience":
        """Read what `save` wrote."""
        tensors = load_file(file)

        def ragged(name: str) -> list[list[int]]:
            flat = iter(tensors.pop(name).tolist())
            lengths = tensors.pop(name + "_lengths").tolist()
            return [list(itertools.islice(flat, length)) for length in lengths]

        prompts, completions = ragged("prompts"), ragged("completions")
        on_device = {name: tensor.to(device) for name, tensor in tensors.items()}
        return cls(prompts, completions, **on_device)


@dataclass(frozen=True)
class Seen:
    """What the reward roles and the stop tokens say of a rollout.

    `scores` is `(M, B)`, one row per reward adapter; `ended` is `(B,)` bool; `seconds` is how long
    sampling and scoring took.
    """

    scores: Tensor
    ended: Tensor
    seconds: dict[str, float]


def roll_out(
    roles: Roles,
    prompts: list[list[int]],
    *,
    sampling: Sampling,
    stop: list[int],
    pad_id: int,
    batch_size: int,
    generation_batch_size: int,
    rescore: bool = True,
) -> tuple[Experience, Seen]:
    """Sample one completion per prompt from the policy and let every role look at it once.

    Without a `ref` adapter the reference is the base with adapters disabled.

    Args:
        rescore: take the policy's log-probabilities from a pass of its own. In float32 those that
            the tokens were drawn with are the same to 1e-5, and a pass is saved; in lower precision
            they differ by enough to make the first ratios noisy.

    Dropout must be off. Raises: nothing of its own; see `Roles.using`.
    """
    assert roles.model is not None
    began = time.perf_counter()
    own_trunk = VALUE in roles.model.peft_config
    head: Any = roles.heads[VALUE]
    with roles.merged(POLICY) as policy:
        said = sample(
            policy,
            prompts,
            sampling=sampling,
            stop=stop,
            pad_id=pad_id,
            batch_size=generation_batch_size,
            value_head=None if own_trunk else head,
        )
        device = next(policy.parameters()).device
    sampled, completions = time.perf_counter(), said.completions
    shape = (len(prompts), max(map(len, completions)))
    known = {"logprobs": said.logprobs, "values": said.values, "ref_logprobs": None}
    found = {k: torch.zeros(shape, device=device) if v is None else v for k, v in known.items()}
    look_again = rescore or said.logprobs is None
    judges = roles.rewards
    score = torch.zeros((len(judges), len(prompts)), device=device)
    for index in by_length(prompts, completions, batch_size):
        batch = collate(
            [prompts[i] for i in index], [completions[i] for i in index], pad_id, device
        )
        seen = _look(roles, batch, temperature=sampling.temperature, policy=look_again)
        if judges:
            score[:, index] = _judge(roles, judges, batch)
        for name, tensor in seen.items():
            found[name][index, : tensor.shape[1]] = tensor
    lengths = torch.tensor([len(c) for c in completions], device=device)
    mask = torch.arange(shape[1], device=device) < lengths.unsqueeze(1)
    ended = torch.tensor([bool(c) and c[-1] in stop for c in completions], device=device)
    empty = torch.zeros(shape, device=device)
    experience = Experience(prompts, completions, mask, **found, advantages=empty, returns=empty)
    seconds = {"generate": sampled - began, "score": time.perf_counter() - sampled}
    return experience, Seen(score, ended, seconds)


@torch.no_grad()
def _look(roles: Roles, batch: Batch, *, temperature: float, policy: bool) -> dict[str, Tensor]:
    """One pass each of reference, of value if it has a trunk of its own, and of policy if asked."""
    assert roles.model is not None
    head: Any = roles.heads[VALUE]
    found: dict[str, Tensor] = {}
    with roles.using(REFERENCE if REFERENCE in roles.model.peft_config else None) as model:
        found["ref_logprobs"] = policy_pass(model, batch, temperature=temperature).logprobs
    if VALUE in roles.model.peft_config:
        with roles.using(VALUE) as model:
            found["values"] = state_values(model, head, batch)
    if policy:
        with roles.using(POLICY) as model:
            seen = policy_pass(model, batch, temperature=temperature)
        found["logprobs"] = seen.logprobs
        if VALUE not in roles.model.peft_config:
            found["values"] = spread(batch.mask, head(seen.states))
    return found


@torch.no_grad()
def _judge(roles: Roles, judges: list[str], batch: Batch) -> Tensor:
    """Every reward adapter's score, `(M, B)`."""
    found = []
    for name in judges:
        head: Any = roles.heads[name]
        with roles.using(name) as model:
            found.append(scores(model, head, batch))
    return torch.stack(found)
