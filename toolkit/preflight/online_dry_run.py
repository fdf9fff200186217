"""The phases of PPO, RLOO and GRPO on fake tensors: sampling, scoring, update. `dry_run` selects them."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from toolkit.groups.trainer import GroupTrainer
from toolkit.kernels.chunked_logprobs import VocabularyHead
from toolkit.models.passes import collate
from toolkit.models.roles import POLICY, belongs_to
from toolkit.ppo.rollout import read_by_roles
from toolkit.ppo.trainer import PPOTrainer
from toolkit.preflight.dry_run import DryRun, DryTraining, Peak
from toolkit.sampling.decoding import Decoded, GrowingLayer, growing_cache, next_token, read

TOKEN = 1  # the id of every token: memory does not depend on it


class OnlineDryRun(DryRun):
    """Runs the phases with the same functions as the trainer's rollout and update.

    A whole rollout cannot run, because the rows that stay in the batch depend on the sampled tokens. So it
    prefills the prompts, samples one token with a full cache, and scores completions of full length.
    """

    is_fused = True

    def _step(self, prompt: list[int], batch: int) -> Callable[[], None]:
        """Forward and backward of a batch of answers to this prompt, each as long as allowed."""
        raise NotImplementedError

    def _peaks(self, batch: int) -> list[Peak]:
        args = self.args
        args.per_device_train_batch_size = batch  # the size of a rollout depends on it
        prompt = [TOKEN] * len(self.row["prompt_ids"])
        # rows of a rollout, or of a larger evaluation, which samples and scores in the same way
        at_once = max(int(args.rollout_batch_size), self.evaluated)
        scored = min(args.local_rollout_forward_batch_size, at_once)
        sampled = min(args.generation_batch_size or scored, at_once)
        if (sampled, scored) not in self._rollouts:
            with self.trainer.sampling_mode():
                peaks = [*self._sampling(prompt, sampled), self._scoring(prompt, scored)]
            self._rollouts[sampled, scored] = peaks
        return [*self._rollouts[sampled, scored], self._update(self._step(prompt, batch))]

    @cached_property
    def _rollouts(self) -> dict[tuple[int, int], list[Peak]]:
        """The peaks of a rollout's phases by the rows that are sampled and scored together."""
        return {}

    @torch.no_grad()
    def _sampling(self, prompt: list[int], rows: int) -> list[Peak]:
        """Prefill the prompts, and sample the last token of the longest completions.

        The prefill's memory depends on a layer's activations, sampling's on the number of layers.
        """
        args, made = self.args, self.args.response_length - 1
        tracker = self._tracker()
        with tracker, self.trainer.roles.merged(POLICY) as policy:
            adapted: Any = policy
            causal: Any = adapted.get_base_model()
            merged = tracker.total
            cache, head = growing_cache(causal), VocabularyHead.of(causal)
            attention = torch.ones((rows, len(prompt)), dtype=torch.long)
            hidden = read(causal, torch.tensor([prompt] * rows), attention, cache)
            parts = {"kv_cache": _cache_bytes(cache), "merged_weights": merged}
            reading = self._peak("reading", tracker, **parts)
            tracker.restart()
            if made > 0:
                for layer in cache.layers:
                    _fill(layer, made - 1)
                tracker.restart()
                attention = torch.ones((rows, len(prompt) + made), dtype=torch.long)
                hidden = read(causal, torch.full((rows, 1), TOKEN), attention, cache)
            next_token(head, hidden, args.temperature)
            parts = {"kv_cache": _cache_bytes(cache), "merged_weights": merged}
            return [reading, self._peak("sampling", tracker, **parts)]

    def _scoring(self, prompt: list[int], rows: int) -> Peak:
        """Run the passes of reference, value and reward, and the policy's pass if it rescores answers."""
        args, maker = self.args, self.trainer.rollouts
        shape = (rows, args.response_length)
        completions = [[TOKEN] * args.response_length] * rows
        tracker = self._tracker()
        with tracker:
            read_by_roles(
                self.trainer.roles,
                [prompt] * rows,
                Decoded(completions, torch.zeros(shape), torch.zeros(shape)),
                temperature=args.temperature,
                pad_id=TOKEN,
                batch_size=rows,
                rescore=maker.rescore,
            )
        return self._peak("scoring", tracker)


class PPODryRun(OnlineDryRun):
    """PPO: the update of policy and value, and the average of `ema_decay`."""

    def _held(self) -> dict[str, int]:
        parts = super()._held()
        if self.args.ema_decay is not None:
            named = self.model.named_parameters()
            parts["adapters"] += sum(
                p.numel() * p.element_size() for n, p in named if belongs_to(n, POLICY)
            )
        return parts

    def _step(self, prompt: list[int], batch: int) -> Callable[[], None]:
        updater = self.trainer.updater
        if self.args.ptx_coef:
            updater.ptx = [max(updater.ptx, key=len)]
        rows = collate([prompt] * batch, [[TOKEN] * self.args.response_length] * batch, TOKEN)
        names = ("logprobs", "values", "advantages", "returns")
        old = {name: torch.zeros(rows.mask.shape) for name in names}

        def step() -> None:
            updater.policy_and_value_step(rows, old, rows.mask.numel())
            if self.args.ptx_coef:
                updater.pretraining_step(0)

        return step


class GroupDryRun(OnlineDryRun):
    """RLOO and GRPO: TRL's loss."""

    def _peaks(self, batch: int) -> list[Peak]:
        self.args.generation_batch_size = batch * self.args.steps_per_generation
        return super()._peaks(batch)

    def _step(self, prompt: list[int], batch: int) -> Callable[[], None]:
        self.trainer.current_gradient_accumulation_steps = 1
        length = self.args.response_length
        answers, logprobs = torch.full((batch, length), TOKEN), torch.zeros((batch, length))
        inputs = {
            "prompt_ids": torch.tensor([prompt] * batch),
            "prompt_mask": torch.ones((batch, len(prompt)), dtype=torch.long),
            "completion_ids": answers,
            "completion_mask": torch.ones_like(answers),
            "advantages": torch.zeros(batch),
            "old_logps": torch.zeros(batch),
            "old_per_token_logps": logprobs,
            "ref_per_token_logps": logprobs,
            "num_items_in_batch": torch.tensor(answers.numel()),
        }
        return lambda: self._loss(inputs).backward()


def dry_run(
    training: DryTraining, row: dict[str, Any] | None = None, *, cuda: bool = False
) -> DryRun:
    """Build the trainer of a dry training, ready to run a step on a row (default: the trainer's first).

    Raises: ConfigError as `DryTraining.build`.
    """
    trainer = training.build()
    kinds = ((PPOTrainer, PPODryRun), (GroupTrainer, GroupDryRun), (object, DryRun))
    kind = next(kind for trainers, kind in kinds if isinstance(trainer, trainers))
    return kind(training, trainer, row or dict(trainer.train_dataset[0]), cuda=cuda)


def _fill(layer: Any, tokens: int) -> None:
    """Add `tokens` tokens to a cache layer without spare room, so that the next token allocates memory."""
    if getattr(layer, "keys", None) is None:
        return
    rows, heads, _, size = layer.keys.shape
    layer.update(*(old.new_empty(rows, heads, tokens, size) for old in (layer.keys, layer.values)))
    if isinstance(layer, GrowingLayer):
        layer.keys, layer.values, layer._room = layer.keys.clone(), layer.values.clone(), None


def _cache_bytes(cache: Any) -> int:
    """Bytes of a cache."""
    total = 0
    for layer in cache.layers:
        states = getattr(layer, "keys", None), getattr(layer, "values", None)
        tensors = getattr(layer, "_room", None) or states
        total += sum(t.untyped_storage().nbytes() for t in tensors if t is not None)
    return total
