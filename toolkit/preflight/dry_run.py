"""A dry run: a step of the recipe's own trainer on fake tensors, without weights, to measure memory."""

import copy
import dataclasses
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar, enable_progress_bar
from datasets.utils.logging import is_progress_bar_enabled as shows_progress
from peft import AdaLoraConfig, LoraConfig, PeftConfig, get_peft_model
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils

from toolkit.data.convert import COLUMNS
from toolkit.data.splits import Splits
from toolkit.errors import ConfigError
from toolkit.kernels import chunked_logprobs
from toolkit.models.adapter_config import read_config
from toolkit.models.peft_methods import build_peft_config
from toolkit.models.prompt_and_ia3_adapters import HOOKED
from toolkit.models.roles import POLICY
from toolkit.ppo.roles import attach_ppo_roles
from toolkit.preflight.fake_model import (
    UntrainedRoles,
    fake_base,
    fake_tensors,
    new_fake_mode,
    stored_bytes,
)
from toolkit.preflight.memory_tracker import ACTIVATIONS, LOGITS, MemoryTracker
from toolkit.stages import Stage, has_adapter_config
from toolkit.training import Training

EMPTY_SAFETENSORS = (2).to_bytes(8, "little") + b"{}"
# share of the forward pass's blocks that glibc keeps in holes of its heap: fitted to
# docs/results/preflight.json, for a base in 16 bits, and for float32 and quantized bases
FRAGMENTATION_16, FRAGMENTATION = 0.14, 0.30
ADAM_8BIT = 2 + 8 / 256  # bytes of two states per parameter, with two float32 scales per 256
# rows of every kind, short enough for any limit
TOY_ROWS = [
    {"prompt": "Sky?", "completion": "Blue.", "chosen": "Blue.", "rejected": "Green.", "label": label}
    for label in (True, False)
]  # fmt: skip


@dataclass(frozen=True)
class Peak:
    """The peak memory of one phase of training, by part, in bytes."""

    phase: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.parts.values())


class DryTraining(Training):
    """A `Training` whose base, adapters and roles are fake tensors.

    The recipe's parents are replaced by folders that contain an adapter's config but no weights.

    Args:
        rows: the train split; default: two short rows, without demonstrations.
        layers: number of layers of the base; default: all.
    """

    def __init__(
        self,
        stage: Stage,
        tokenizer: PreTrainedTokenizerBase,
        rows: Dataset | None = None,
        *,
        layers: int | None = None,
    ) -> None:
        super().__init__(stage.recipe, stage.options)
        self.stage, self.layers, self.mode = stage, layers, new_fake_mode()
        self.evaluated = 0  # rows of an evaluation that are in memory together
        if self.evaluates:
            self.evaluated = getattr(self.own, "eval_prompts", self.args.per_device_eval_batch_size)
        self.tokenizer = tokenizer
        self.base_bytes = self.vocabulary = 0
        self._folder = tempfile.TemporaryDirectory()
        self.args = args = copy.copy(self.args)
        args.output_dir, args.report_to, args.eval_strategy = self._folder.name, [], "no"
        if args.gradient_checkpointing_kwargs is not None:  # TRL's trainers write into it
            args.gradient_checkpointing_kwargs = dict(args.gradient_checkpointing_kwargs)
        replaced: dict[str, Any] = {}
        if rows is None:
            columns = COLUMNS[self.recipe.rows]
            rows = Dataset.from_list([{name: row[name] for name in columns} for row in TOY_ROWS])
            replaced = {"demonstrations": None} if hasattr(self.own, "demonstrations") else {}
        self.splits = Splits({"train": rows}, kind=self.recipe.rows, origins={})
        if self.parent is not None:
            self.parent = replaced["parent"] = self._config_folder(self.parent, "parent")
        if self.rewards:
            self.rewards = replaced["reward_model"] = [
                self._config_folder(run, f"reward-{i}") for i, run in enumerate(self.rewards)
            ]
        if replaced:
            self.own = dataclasses.replace(self.own, **replaced)

    def build(self) -> Any:
        """Build the recipe's own trainer.

        Raises: ConfigError if the trainer's model does not come from `training`.
        """
        with undisturbed(), fake_tensors(self.mode):
            trainer = self.recipe.build(self)
        if not any(isinstance(p, FakeTensor) for p in trainer.model.parameters()):
            raise ConfigError(
                f"{self.recipe.name}: `build` must get the trainer's model from its argument `training`; "
                "use training.base, training.policy(), training.roles() or training.load_base()"
            )
        return trainer

    @property
    def rows(self) -> Dataset:
        """The training rows, or the first rows of a stream."""
        return self.splits["train"]

    @property
    def held_out(self) -> None:
        """None: the batch of an evaluation repeats a training row."""

    @property
    def callbacks(self) -> list[TrainerCallback]:
        """None: nothing is recorded."""
        return []

    def load_base(self, *, scalar: bool = False) -> PreTrainedModel:
        """A fake base."""
        base = fake_base(
            self.model,
            self.mode,
            scalar=scalar,
            trust_remote_code=self.args.trust_remote_code,
            layers=self.layers,
        )
        base.config.pad_token_id = self.tokenizer.pad_token_id
        self.base_bytes = stored_bytes(base)
        self.vocabulary = int(base.get_input_embeddings().weight.shape[0])
        return base

    def policy(self) -> Any:
        """The base with a new trainable adapter of the parent's shape."""
        config = read_config(Path(str(self.parent)))
        if isinstance(config, HOOKED):
            config.inference_mode = False
            return get_peft_model(self.base, config)
        roles = UntrainedRoles(self.base, {})
        roles.attach(POLICY, str(self.parent), trainable=True)
        return roles.model

    def roles(self) -> UntrainedRoles:
        """The roles of `Training.roles`, with new adapters."""
        roles = UntrainedRoles(self.base, {})
        attach_ppo_roles(
            roles,
            policy=self.parent,
            rewards=self.rewards,
            model=self.model,
            value=getattr(self.args, "value_role", None),
        )
        return roles

    def adapter_config(self, run: str) -> PeftConfig:
        """The config of a run's adapter, or of the policy's adapter if the run does not exist yet."""
        parent, model = self.stage.starting_adapter()
        for folder in (run, parent):
            if folder is not None and has_adapter_config(folder):
                return read_config(Path(folder))
        return self.new_adapter_config(model)

    def new_adapter_config(self, model: Any) -> PeftConfig:
        """The config of a new adapter in the form in which it is saved: AdaLoRA becomes LoRA.

        Raises: ConfigError without `use_peft`.
        """
        config = build_peft_config(model, self.base)
        if config is None:
            raise ConfigError("no adapter: set `use_peft: true`, or name a `parent`")
        if isinstance(config, AdaLoraConfig):
            return LoraConfig(
                task_type=config.task_type,
                r=config.target_r,
                lora_alpha=config.lora_alpha,
                lora_dropout=config.lora_dropout,
                target_modules=config.target_modules,
            )
        return config

    def _config_folder(self, run: str, name: str) -> str:
        """A folder with the config of a run's adapter and no weights."""
        config, folder = self.adapter_config(run), Path(self._folder.name) / name
        config.base_model_name_or_path = self.base.config._name_or_path  # else PEFT warns
        config.save_pretrained(str(folder))
        (folder / "adapter_model.safetensors").write_bytes(EMPTY_SAFETENSORS)
        return str(folder)


class DryRun:
    """A trainer's step on fake tensors: `compute_loss` and backward.

    Args:
        row: the row that every batch repeats.
        cuda: count as a GPU does.
    """

    is_fused = False  # whether the passes are autograd functions of our own

    def __init__(
        self, training: DryTraining, trainer: Any, row: dict[str, Any], *, cuda: bool
    ) -> None:
        self.trainer, self.args, self.row, self.cuda = trainer, trainer.args, row, cuda
        self.mode, self.evaluated = training.mode, training.evaluated
        self.base_bytes, self.vocabulary = training.base_bytes, training.vocabulary
        self.model = trainer.model
        is_quantized = training.model.load_in_4bit or training.model.load_in_8bit
        is_half = (self.args.bf16 or self.args.fp16) and (self.is_fused or not is_quantized)
        self.share = FRAGMENTATION_16 if is_half else FRAGMENTATION
        self.forward = 0  # bytes
        if self.args.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs or None
            )
        self.model.train()

    def peaks(self, batch: int) -> list[Peak]:
        """The peak of every phase for a batch."""
        with undisturbed(), heads_as_on_cuda(self.cuda):
            peaks = self._peaks(batch)
        if self.cuda:
            return peaks
        # an evaluation finds the holes of the update; PPO returns them before it samples
        holes = {"fragmentation": round(self.share * self.forward)}
        has_holes = ("update", "evaluation")
        return [Peak(p.phase, p.parts | holes) if p.phase in has_holes else p for p in peaks]

    def _peaks(self, batch: int) -> list[Peak]:
        self.trainer.current_gradient_accumulation_steps = 1
        inputs = self._inputs(batch)

        def step() -> None:
            self._loss(inputs).backward()

        return [self._update(step), *([self._evaluation] if self.evaluated else [])]

    @cached_property
    def _evaluation(self) -> Peak:
        inputs = self._inputs(self.evaluated)
        self.model.eval()
        with self._tracker() as tracker, torch.no_grad():
            self._loss(inputs)
        self.model.train()
        return self._peak("evaluation", tracker)

    def _inputs(self, batch: int) -> dict[str, Any]:
        return dict(self.trainer.data_collator([copy.deepcopy(self.row) for _ in range(batch)]))

    def _loss(self, inputs: dict[str, Any]) -> Any:
        with self.trainer.accelerator.autocast():
            return self.trainer.compute_loss(self.model, dict(inputs))

    def _update(self, step: Any) -> Peak:
        """The peak of forward and backward; with accumulation, earlier gradients exist at the same time."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        tracker = self._tracker()
        tracker.is_fused = self.is_fused
        with tracker:
            if self.args.gradient_accumulation_steps > 1:
                for parameter in trained:
                    parameter.grad = torch.zeros_like(parameter)
                tracker.forward = 0
            step()
            gradients = tracker.bytes_at_peak([p.grad for p in trained if p.grad is not None])
        for parameter in trained:
            parameter.grad = None
        self.forward = tracker.forward
        return self._peak("update", tracker, gradients=gradients)

    def _tracker(self) -> MemoryTracker:
        return MemoryTracker(self.mode, self.vocabulary, resident=not self.cuda)

    def _peak(
        self, phase: str, tracker: MemoryTracker, *, gradients: int = 0, **parts: int
    ) -> Peak:
        """The tracker's peak plus permanent memory; the tracker counts `parts` among the activations."""
        rest = tracker.at_peak[ACTIVATIONS] - gradients - sum(parts.values())
        tracked = {
            "gradients": gradients,
            "activations": max(0, rest),
            "logits": tracker.at_peak[LOGITS],
        }
        return Peak(phase, self._held() | tracked | parts)

    def _held(self) -> dict[str, int]:
        """Bytes of base, adapters, heads and optimizer."""
        named = list(self.model.named_parameters())
        heads = sum(
            p.untyped_storage().nbytes() for n, p in named if ".score." in n or "heads." in n
        )
        optimizer = str(self.args.optim)
        return {
            "base": self.base_bytes,
            "adapters": max(0, stored_bytes(self.model) - self.base_bytes - heads),
            "heads": heads,
            "optimizer": sum(_state_bytes(p, optimizer) for _, p in named if p.requires_grad),
        }


def _state_bytes(parameter: Tensor, optimizer: str) -> int:
    """Bytes of the optimizer's state for a parameter: Adam stores two numbers per weight."""
    if "adafactor" in optimizer or optimizer in ("sgd", "lomo"):
        return 0
    size = parameter.numel()
    if "8bit" in optimizer and size >= 4096:  # bitsandbytes keeps smaller ones in 32 bit
        return int(ADAM_8BIT * size)
    return 2 * size * parameter.element_size()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hide progress bars inside the block; restore the random generators after it."""
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
def heads_as_on_cuda(cuda: bool) -> Iterator[None]:
    """With `cuda`, run language-model heads as on a GPU.

    TRL's fused head then computes only tokens with a label, without copies of a tile of logits, and sums
    products in float32 without copies of the factors. Our chunked head uses larger slices.
    """
    if not cuda:
        yield
        return
    kernels: dict[str, Any] = dict.fromkeys(
        ("_forward_tile", "_backward_tile", "_addmm_fp32"), _do_nothing
    )
    with (
        patch.object(trl_utils, "_use_triton", lambda _: True),
        patch.object(chunked_logprobs, "is_on_gpu", lambda _: True),
        patch.multiple(chunked_logprob, **kernels),
    ):
        yield


def _do_nothing(*_: Any, **__: Any) -> None: ...
