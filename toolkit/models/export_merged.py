"""Merge an adapter into its base, to export one model that needs no PEFT."""

import warnings
from pathlib import Path
from typing import NamedTuple

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
NOT_MERGED = {  # options of LoRA
    "alora_invocation_tokens": "an activated LoRA, which acts on some tokens only",
    "arrow_config": "an Arrow router of several LoRAs",
    "use_qalora": "a QALoRA",
}
PROBE = (
    "What does the merged model answer, token by token, that base and adapter do not?"  # any text
)


def require_full_precision(model: ModelArguments) -> None:
    """Raises: ConfigError for a base in 4 or 8 bit, or in a dtype other than `PRECISIONS`."""
    for name in ("load_in_4bit", "load_in_8bit"):
        if getattr(model, name):
            raise ConfigError(
                f"{name}: an adapter can only be merged in full precision, because rounding to 4 "
                "or 8 bits loses most of its change; remove the option (an adapter trained on a "
                "quantized base is merged into the unquantized weights of that base)"
            )
    if model.dtype not in PRECISIONS:
        raise ConfigError(
            f"dtype: the merged model is written in {' or '.join(PRECISIONS)}, got {model.dtype}"
        )


def require_mergeable(run: str | Path) -> None:
    """Check that a run holds a mergeable adapter: one of a language model that changes its weights.

    Raises: CheckpointError for a reward model, a value, or an adapter of virtual tokens.
    """
    folder = Path(run)
    config, _ = read_adapter(folder)
    if (folder / HEAD_FILE).is_file() or config.task_type == "SEQ_CLS":
        raise CheckpointError(
            f"{folder} is a reward model or a value: a language model's checkpoint cannot store its "
            "head; merge a run of SFT, PPO or DPO"
        )
    if isinstance(config, PromptLearningConfig):
        raise CheckpointError(
            f"{folder} is a {config.peft_type.value} adapter, whose virtual tokens cannot be "
            "merged into weights; load the base and the adapter with PEFT instead"
        )
    for option, name in NOT_MERGED.items():
        if getattr(config, option, None):
            raise CheckpointError(
                f"{folder} is {name} (`{option}`), which PEFT cannot merge into weights; use it with PEFT"
            )


def dequantized(base: PreTrainedModel, *, dtype: torch.dtype) -> PreTrainedModel:
    """The base with its weights in `dtype`, if they are stored quantized.

    An adapter on this base was trained on the dequantized weights, so nothing is lost.

    Raises: CheckpointError for a quantization that the library cannot undo.
    """
    settings = getattr(base.config, "quantization_config", None)
    if settings is None:
        return base
    try:
        base = base.dequantize(dtype=dtype)
        base._weight_conversions = (
            None  # else the library tries to save the weights quantized again
        )
        return base
    except (NotImplementedError, ValueError, ImportError) as error:
        details = settings if isinstance(settings, dict) else settings.to_dict()
        method = details.get("quant_method", "an unknown method")
        raise CheckpointError(
            f"{base.config.name_or_path}: its weights are stored quantized with "
            f"{getattr(method, 'value', method)}, which transformers cannot undo, so no adapter can be "
            "merged into them; use base and adapter together with PEFT, or train the adapter again on "
            "the unquantized model"
        ) from error


def merge_into_base(model: PeftModel, *, dtype: torch.dtype) -> PreTrainedModel:
    """Merge the adapter into the base's weights, layer by layer; `model` cannot be used afterwards.

    Sums are computed in float32 and rounded once to `dtype`.

    Raises: CheckpointError if a sum is not finite, if PEFT cannot merge this kind of adapter, or if
        the adapter changes one of two tied weights, which a checkpoint stores only once.
    """
    base: PreTrainedModel = model.get_base_model()
    changed = [
        m for m in base.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)
    ]
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    tied = base.config.get_text_config().tie_word_embeddings
    if tied and any(end is layer for end in ends for layer in changed):
        raise CheckpointError(
            "this base ties its input and output embeddings, and the adapter changes only one of "
            "them, which a checkpoint cannot store; use base and adapter with PEFT"
        )
    for layer in changed:
        if not isinstance(layer, BaseTunerLayer):
            continue
        inner: nn.Module = layer.get_base_layer()
        inner.float()
        try:
            layer.merge(safe_merge=True)
        except (ValueError, RuntimeError) as error:  # NotImplementedError too
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"the adapter cannot be merged ({reason}); use base and adapter together with PEFT"
            ) from error
        inner.to(dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All adapters are already merged")
        merged: PreTrainedModel = model.merge_and_unload()  # removes PEFT's layers
    return merged.to(dtype)


class Differences(NamedTuple):
    """How the predictions of a merged model differ from those of base and adapter."""

    same_greedy_token: float  # share of positions with the same most likely token
    mean_kl: float  # KL(base and adapter ‖ merged), nats per token
    largest_logit_difference: float

    def __str__(self) -> str:
        return (
            f"the most likely token is the same at {self.same_greedy_token:.0%} of the positions of a "
            f"probe text; KL {self.mean_kl:.2g} nats per token; logits differ by at most "
            f"{self.largest_logit_difference:.2g}"
        )


def differences(before: Tensor, after: Tensor) -> Differences:
    """Compare logits `(T, V)` before and after merging."""
    old, new = before.log_softmax(-1), after.log_softmax(-1)
    kl = nn.functional.kl_div(new, old, reduction="none", log_target=True).sum(-1)
    same = (before.argmax(-1) == after.argmax(-1)).float()
    return Differences(
        same.mean().item(), kl.mean().clamp_min(0).item(), (after - before).abs().max().item()
    )


@torch.no_grad()
def probe_logits(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Logits `(T, V)` in float32 on one sentence, to compare a model before and after merging."""
    ids = torch.tensor([tokenizer(PROBE)["input_ids"]])  # (1, T)
    model.eval()
    device = next(model.parameters()).device
    logits: Tensor = model(input_ids=ids.to(device)).logits[0].float().cpu()
    return logits
