"""The trainer of SFT, reward model, DPO or KTO on a phantom base: its data code and loss, no weights."""

import copy
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar, enable_progress_bar
from datasets.utils.logging import is_progress_bar_enabled as shows_progress
from peft import get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils

from toolkit.errors import ConfigError
from toolkit.kernels import chunked_logprobs as token_logprobs
from toolkit.models.roles import POLICY, Roles
from toolkit.preflight.fake_model import (
    adapter_config,
    made_in,
    phantom_base,
    phantom_mode,
    stored_bytes,
)
from toolkit.preflight.memory_tracker import ACTIVATIONS, LOGITS, LiveBytes
from toolkit.reward.ranking import RankingCollator, RankingTrainer
from toolkit.trainers.supervised import DPOTrainer, KTOTrainer, SFTTrainer

EIGHT_BIT = 2 + 8 / 256  # bytes of Adam's two states per parameter, with a scale for every 256


@dataclass(frozen=True)
class Peak:
    """The most bytes in one phase, and what they are; the parts sum to it."""

    phase: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.parts.values())


class _Stays:
    """A trainer whose model is not moved to the device: there is nothing to move."""

    def _move_model_to_device(self, *_: Any) -> None:
        return


class _DrySFT(_Stays, SFTTrainer):
    _name = "SFT"


class _Prepared(_Stays):
    """A trainer that takes rows which the recipe's own trainer prepared."""

    def _prepare_dataset(self, dataset: Dataset, *given: Any, **named: Any) -> Any:
        if "prompt_ids" in dataset.column_names:
            return dataset
        return super()._prepare_dataset(dataset, *given, **named)  # type: ignore[misc]


class _DryDPO(_Prepared, DPOTrainer):
    _name = "DPO"


class _DryKTO(_Prepared, KTOTrainer):
    _name = "KTO"


class _DryRanking(_Stays, RankingTrainer):
    _name = "Reward"


class Rehearsal:
    """A trainer on a phantom base.

    Args:
        recipe: sft, reward, dpo or kto.
        training: its TRL config.
        model: which base and what new adapter.
        rows: the train split, raw (tokenized here, as the recipe does) or tokenized.
        tokenizer: the base's.
        parent: a run whose adapter's shape is taken.
        cuda: count as on a GPU.
        layers: so many of the base's layers; default all.
    """

    def __init__(
        self,
        recipe: str,
        training: Any,
        model: Any,
        rows: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        *,
        parent: str | None,
        cuda: bool = False,
        layers: int | None = None,
    ) -> None:
        self.recipe, self.training, self.cuda = recipe, copy.copy(training), cuda
        if training.gradient_checkpointing_kwargs is not None:  # TRL's trainers write into it
            self.training.gradient_checkpointing_kwargs = dict(
                training.gradient_checkpointing_kwargs
            )
        self.mode = phantom_mode()
        base = phantom_base(
            model,
            self.mode,
            scalar=recipe == "reward",
            trust_remote_code=training.trust_remote_code,
            layers=layers,
        )
        base.config.pad_token_id = tokenizer.pad_token_id
        self.vocabulary = int(base.get_input_embeddings().weight.shape[0])
        self.base_bytes = stored_bytes(base)
        with undisturbed(), tempfile.TemporaryDirectory() as folder:
            self.training.output_dir, self.training.report_to = folder, []
            self.training.eval_strategy = "no"  # there are no rows to evaluate on
            self.trainer = self._trainer(base, model, rows, tokenizer, parent)
        self.adapted = self.trainer.model
        if self.training.gradient_checkpointing:
            self.adapted.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs=self.training.gradient_checkpointing_kwargs
            )
        self.adapted.train()

    def _trainer(
        self,
        base: PreTrainedModel,
        model: Any,
        rows: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        parent: str | None,
    ) -> Any:
        checkpointing = bool(self.training.gradient_checkpointing)
        config: Any = adapter_config(
            model, base, parent, gradient_checkpointing=checkpointing and self.recipe == "sft"
        )
        given = {"args": self.training, "processing_class": tokenizer, "train_dataset": rows}
        with made_in(self.mode):
            if self.recipe == "sft":
                return _DrySFT(get_peft_model(base, config), **given)
            if self.recipe in ("dpo", "kto"):
                trainer = _DryDPO if self.recipe == "dpo" else _DryKTO
                if hasattr(config, "r") and config.peft_type.value == "LORA":
                    roles = Roles(base, {})
                    roles.create(POLICY, config)
                    return trainer(roles.model, **given)
                return trainer(get_peft_model(base, config), **given)
            adapted = with_score_head(base, config)
            collator = RankingCollator(int(tokenizer.pad_token_id))
            return _DryRanking(adapted, data_collator=collator, **given)

    def step(self, row: dict[str, Any], batch: int) -> Peak:
        """The peak of a training step whose batch is one row, as often as the batch is large."""
        inputs = self.trainer.data_collator([copy.deepcopy(row) for _ in range(batch)])
        self.trainer.current_gradient_accumulation_steps = 1
        trained = [p for p in self.adapted.parameters() if p.requires_grad]
        live = LiveBytes(self.vocabulary, resident=not self.cuda)
        again = self.training.gradient_accumulation_steps > 1
        with undisturbed(), as_on_cuda(self.cuda), live:
            for _ in range(2 if again else 1):  # the second finds the first's gradients
                live.restart()
                with self.trainer.accelerator.autocast():
                    loss = self.trainer.compute_loss(self.adapted, dict(inputs))
                loss.backward()
                del loss
            gradients = live.alive_at_peak([p.grad for p in trained if p.grad is not None])
        for parameter in trained:
            parameter.grad = None
        parts = weights(self.adapted, self.base_bytes, str(self.training.optim))
        return Peak("update", parts | split(live, gradients=gradients))


def with_score_head(base: PreTrainedModel, config: Any) -> Any:
    """A reward model as `scalar_adapter` makes it, its weights aside."""
    config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
    return get_peft_model(base, config)


def weights(adapted: Any, base_bytes: int, optimizer: str) -> dict[str, int]:
    """Bytes that are held all the time: base, adapters, heads, optimizer."""
    named = list(adapted.named_parameters())
    heads = sum(p.untyped_storage().nbytes() for n, p in named if ".score." in n or "heads." in n)
    trained = [p for _, p in named if p.requires_grad]
    return {
        "base": base_bytes,
        "adapters": max(0, stored_bytes(adapted) - base_bytes - heads),
        "heads": heads,
        "optimizer": sum(_state_bytes(p, optimizer) for p in trained),
    }


def _state_bytes(parameter: torch.Tensor, optimizer: str) -> int:
    """What the optimizer remembers of a parameter: Adam two numbers, its 8-bit kinds two bytes."""
    if "adafactor" in optimizer or optimizer in ("sgd", "lomo"):
        return 0
    size = parameter.numel()
    if "8bit" in optimizer and size >= 4096:  # bitsandbytes keeps smaller ones in 32 bit
        return int(EIGHT_BIT * size)
    return 2 * size * parameter.element_size()


def split(live: LiveBytes, *, gradients: int = 0, **known: int) -> dict[str, int]:
    """A phase's live bytes by what they are: gradients and `known` parts are among the activations."""
    rest = live.at_peak[ACTIVATIONS] - gradients - sum(known.values())
    return {
        "gradients": gradients,
        "activations": max(0, rest),
        "logits": live.at_peak[LOGITS],
    } | known


@contextmanager
def undisturbed() -> Iterator[None]:
    """Random numbers go on afterwards as if nothing had been drawn; no progress bars."""
    states, bars = (random.getstate(), np.random.get_state()), shows_progress()
    disable_progress_bar()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if bars:
            enable_progress_bar()


@contextmanager
def as_on_cuda(wanted: bool) -> Iterator[None]:
    """Heads as on a GPU. TRL's fused one: only tokens with a label, no copies of a tile of logits, and
    products summed in float32 without a copy of what is multiplied. Ours: larger slices.
    """
    if not wanted:
        yield
        return
    places: list[tuple[Any, str, Any]] = [
        (trl_utils, "_use_triton", lambda _: True),
        (token_logprobs, "is_on_gpu", lambda _: True),
    ]
    places += [
        (chunked_logprob, name, lambda *_, **__: None)
        for name in ("_forward_tile", "_backward_tile", "_addmm_fp32")
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in places]
    try:
        for module, name, stand_in in places:
            setattr(module, name, stand_in)
        yield
    finally:
        for module, name, original in before:
            setattr(module, name, original)


def require_rows(rows: Dataset) -> None:
    """Raises: ConfigError where no row is left to train on."""
    if len(rows) == 0:
        raise ConfigError("no row is left to train on: all are dropped or longer than the limit")
