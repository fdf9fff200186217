"""An adapter merged into its base for good: one model that needs neither PEFT nor this toolkit."""

import warnings
from pathlib import Path

import torch
from peft import PeftModel, PromptLearningConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.errors import CheckpointError, ConfigError
from toolkit.models.adapters import read_adapter
from toolkit.models.arguments import ModelArguments
from toolkit.models.heads import HEAD_FILE

PRECISIONS = ("float32", "bfloat16")
PROBE = "What does the merged model answer, token by token, that base and adapter do not?"


def require_full_precision(model: ModelArguments) -> None:
    """Raises: ConfigError for a base that would be loaded in 4 or 8 bit, or in another dtype."""
    for name in ("load_in_4bit", "load_in_8bit"):
        if getattr(model, name):
            raise ConfigError(
                f"{name}: an adapter is merged in full precision only, since rounding to so few bits "
                "loses most of what it adds; remove the option (an adapter trained on a quantized "
                "base merges into the same weights unquantized)"
            )
    if model.dtype not in PRECISIONS:
        raise ConfigError(
            f"dtype: the merged model is written in {' or '.join(PRECISIONS)}, got {model.dtype}"
        )


def require_mergeable(run: str | Path) -> None:
    """Refuse what is no language model's adapter, or has nothing to add to any weight.

    Raises: CheckpointError with the reason.
    """
    folder = Path(run)
    config, _ = read_adapter(folder)
    if (folder / HEAD_FILE).is_file() or config.task_type == "SEQ_CLS":
        raise CheckpointError(
            f"{folder} is a reward model or a value: a language model's checkpoint has no place for "
            "its head; merge a run of SFT, PPO or DPO"
        )
    if isinstance(config, PromptLearningConfig):
        raise CheckpointError(
            f"{folder} is a {config.peft_type.value} adapter: virtual tokens stand before the text, "
            "and there is no weight that they could be added to; use it with PEFT"
        )


def merge_into_base(model: PeftModel, *, dtype: torch.dtype) -> PreTrainedModel:
    """The base with the adapter in its weights; `model` is used up.

    Every sum is taken in float32 and rounded once, a layer at a time.

    Raises: CheckpointError where a sum is not finite, where the base's weights are stored quantized, or
        where the adapter changes one of two tied weights, of which a checkpoint holds only one.
    """
    base: PreTrainedModel = model.get_base_model()
    if getattr(base.config, "quantization_config", None) is not None:
        raise CheckpointError(
            "the base's own weights are stored quantized, and nothing is merged into rounded weights; "
            "take the model that they were made from"
        )
    changed = [
        m for m in base.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)
    ]
    _refuse_tied(base, changed)
    for layer in changed:
        if not isinstance(layer, BaseTunerLayer):
            continue
        inner: nn.Module = layer.get_base_layer()
        inner.float()
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:
            raise CheckpointError(f"the adapter cannot be merged ({error})") from error
        inner.to(dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All adapters are already merged")
        merged: PreTrainedModel = model.merge_and_unload()  # takes PEFT's layers away
    return merged.to(dtype)


def _refuse_tied(base: PreTrainedModel, changed: list[nn.Module]) -> None:
    if not base.config.get_text_config().tie_word_embeddings:
        return
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    if any(end is layer for end in ends for layer in changed):
        raise CheckpointError(
            "this base reads and writes tokens with one tied weight, and the adapter changes it on one "
            "side only, which its checkpoint cannot say; use the adapter with PEFT"
        )


@torch.no_grad()
def probe_logits(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Logits `(T, V)` in float32 on one sentence, by which a model is compared with itself merged."""
    ids = torch.tensor([tokenizer(PROBE)["input_ids"]])  # (1, T)
    model.eval()
    device = next(model.parameters()).device
    found: Tensor = model(input_ids=ids.to(device)).logits[0].float().cpu()
    return found
