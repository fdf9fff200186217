"""Loading the base once, its tokenizer, and the fingerprint by which adapters know it."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from toolkit.config import is_local_path
from toolkit.errors import CheckpointError, ConfigError
from toolkit.models.arguments import ModelArguments
from toolkit.models.templates import after_assistant, set_template, special_tokens
from toolkit.runs import write_json
from toolkit.world import resolve_base

if TYPE_CHECKING:
    from trl import ModelConfig

BASE_FILE = "base.json"
HASHED_WHOLE = 256 << 20  # larger weight files are told apart by size, head and tail
_NOTES = ("id", "dtype")  # recorded for the reader, not compared


def load_base(
    model: "ModelConfig",
    *,
    scalar: bool = False,
    parent: str | Path | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the frozen base and its tokenizer, in the precision that `model` asks for.

    It lands on the GPU where there is one, unless `device_map` says otherwise.

    Args:
        model: TRL's ModelConfig or ours; `model_name_or_path` is a hub id, a folder, or `world:base`
            (also the default), which ships with the package.
        scalar: load it with a linear head to one scalar instead of the language-model head.
        parent: a run whose adapter is gone on from; its chat template is taken.
        trust_remote_code: run Python that comes with the model.

    Raises: CheckpointError where there is no such model or it has no usable tokenizer; ConfigError
        for options that this model cannot have.
    """
    from trl import get_quantization_config

    model = ModelArguments.of(model)
    name = resolve_base(model.model_name_or_path)
    if model.model_revision != "main" and (is_local_path(name) or Path(name).is_dir()):
        raise ConfigError(
            f"model_revision: {model.model_revision} is for models of the hub; {name} is a folder"
        )
    if (model.load_in_4bit or model.load_in_8bit) and model.dtype in (None, "float32"):
        # TRL's default would make float32 the compute type of the quantized layers
        model = dataclasses.replace(model, dtype="bfloat16")
    quantized = get_quantization_config(model)
    dtype = "auto" if model.dtype in (None, "auto") else getattr(torch, model.dtype)
    kwargs: dict[str, Any] = {
        "revision": model.model_revision,
        "dtype": dtype,
        "attn_implementation": model.attn_implementation,
        "use_safetensors": True,  # a pickle is never opened
        "trust_remote_code": trust_remote_code,
    }
    if model.device_map is not None:
        kwargs["device_map"] = _device_map(model.device_map)
    elif quantized is not None:
        kwargs["device_map"] = {
            "": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
        }
    if quantized is not None:
        kwargs["quantization_config"] = quantized
    try:
        tokenizer = load_tokenizer(
            name,
            revision=model.model_revision,
            chat_template=model.chat_template,
            parent=parent,
            trust_remote_code=trust_remote_code,
        )
        if scalar:
            from trl.trainer.reward_trainer import suppress_seqcls_warning

            with suppress_seqcls_warning():
                base = AutoModelForSequenceClassification.from_pretrained(
                    name, num_labels=1, **kwargs
                )
        else:
            base = AutoModelForCausalLM.from_pretrained(name, **kwargs)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(
            f"{name}: cannot load the base model ({_first_line(error)}){_if_code(error)}"
        ) from error
    places = {str(place) for place in getattr(base, "hf_device_map", {}).values()}
    if len(places) > 1:
        raise ConfigError(
            f"device_map: {model.device_map} spreads the base over {', '.join(sorted(places))}, but "
            "adapters are trained on one device; load it in 4 bit, or take a smaller base"
        )
    if quantized is None and model.device_map is None and torch.cuda.is_available():
        base.to("cuda")
    base.requires_grad_(False)
    _keep_backward_on_cpu(base)
    base.config.pad_token_id = tokenizer.pad_token_id
    if not scalar:
        # a hub model's own defaults (a repetition penalty, top-k) would sample from another
        # distribution than the one that is scored; only its stop tokens are kept
        base.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=stop_ids(base, tokenizer),
            pad_token_id=tokenizer.pad_token_id,
        )
    return base, tokenizer


def _keep_backward_on_cpu(base: PreTrainedModel) -> None:
    """Stop bitsandbytes from packing 4-bit weights for inference on a CPU with AVX512-BF16.

    Its `Linear4bit` packs them at the first pass without gradient and keeps them so; the packed
    product has no backward, so that after a rollout no gradient reaches the layers below.
    """
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _device_map(asked: str) -> str | dict[str, str]:
    """`auto` and its kin as they are; a device is where everything goes."""
    if asked in ("auto", "balanced", "balanced_low_0", "sequential"):
        return asked
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise ConfigError(
            f"device_map: must be a device (cpu, cuda, cuda:1) or auto, got {asked!r}"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device_map: {asked} is not there; {torch.cuda.device_count()} CUDA devices are"
        )
    return {"": asked}


def load_tokenizer(
    name: str,
    *,
    revision: str | None = None,
    chat_template: str | None = None,
    parent: str | Path | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """The base's tokenizer, padding on the left, its EOS the token that ends a turn of its template.

    A base model's own EOS often ends documents, while its chat template ends turns with another
    token (Qwen3's `<|endoftext|>` and `<|im_end|>`): an answer would be taught to end with the one
    and be waited for to end with the other. A missing pad token becomes the EOS token; masks never
    come from `ids != pad`, so that is safe here. For the chat template see `set_template`.
    """
    tokenizer = AutoTokenizer.from_pretrained(
        name, revision=revision, padding_side="left", trust_remote_code=trust_remote_code
    )
    if tokenizer.eos_token is None:
        raise CheckpointError(f"{name}: the tokenizer has no EOS token, so no answer could end")
    set_template(tokenizer, asked=chat_template, parent=parent)
    end = _end_of_turn(tokenizer)
    pad_by_eos(tokenizer)
    if end is not None:
        tokenizer.eos_token = end
    return tokenizer


def pad_by_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    """A missing pad token becomes the EOS token; masks never come from `ids != pad`."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The special token that the chat template writes right after an assistant's words."""
    if tokenizer.chat_template is None:
        return None
    rest = after_assistant(tokenizer).lstrip()
    starts = [t for t in special_tokens(tokenizer) if rest.startswith(t)]
    return max(starts, key=len, default=None)


def stop_ids(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a completion: the tokenizer's EOS and what the model declares."""
    declared = getattr(base.generation_config, "eos_token_id", None)
    listed = declared if isinstance(declared, list) else [] if declared is None else [declared]
    return list(dict.fromkeys([tokenizer.eos_token_id, *listed]))


def fingerprint(model: "ModelConfig", tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """What an adapter must find again: weights, quantization, tokenizer and chat template.

    Returns: `id`, `weights` (a hash of the files, or the hub's commit), `quantization`,
    `tokenizer`, `chat_template`, and `dtype`; `id` and `dtype` are notes, not compared.
    """
    name = resolve_base(model.model_name_or_path)
    bits = "4bit" if model.load_in_4bit else "8bit" if model.load_in_8bit else "none"
    quantization = f"{bits}-{model.bnb_4bit_quant_type}" if bits == "4bit" else bits
    if model.use_bnb_nested_quant:
        quantization += "-double"
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
    return {
        "id": model.model_name_or_path or "world:base",
        "dtype": str(model.dtype),
        "weights": _weights_hash(name, model.model_revision),
        "quantization": quantization,
        "tokenizer": _digest(vocabulary.encode()),
        "chat_template": _digest(str(tokenizer.chat_template).encode()),
    }


def save_fingerprint(folder: Path, found: dict[str, str]) -> None:
    """Store the base's fingerprint beside an adapter."""
    write_json(folder / BASE_FILE, found)


def saved_fingerprint(folder: Path) -> dict[str, str]:
    """The fingerprint beside an adapter; empty where the adapter was made elsewhere.

    Raises: CheckpointError where the file is damaged.
    """
    file = folder / BASE_FILE
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged ({error})") from error


def check_fingerprint(folder: Path, base: dict[str, str], *, any_precision: bool = False) -> None:
    """Refuse an adapter that was trained on another base.

    Args:
        folder: the adapter's directory; one without `base.json` (made elsewhere) is let through.
        any_precision: accept the same weights in another quantization.

    Raises: CheckpointError naming both sides.
    """
    stored = saved_fingerprint(folder)
    if not stored:
        return
    for key in base:
        skipped = key in _NOTES or (any_precision and key == "quantization")
        if not skipped and stored.get(key) != base[key]:
            raise CheckpointError(
                f"{folder}: trained on base {stored.get('id')} with {key} {stored.get(key)}, but the "
                f"base in memory is {base['id']} with {key} {base[key]}; load the adapter's own base"
                + _at_commit(stored, base)
            )


def _at_commit(stored: dict[str, str], base: dict[str, str]) -> str:
    """How to load the base as it was, where a hub's model got another commit, if only of its README."""
    name, _, commit = str(stored.get("weights")).rpartition("@")
    if not name or commit == "unknown" or name != base["weights"].rpartition("@")[0]:
        return ""
    return f" as it was: --model_revision {commit}"


def _weights_hash(name: str, revision: str | None) -> str:
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        commit = Path(cached).parent.name if isinstance(cached, str) else "unknown"
        return f"{name}@{commit}"
    digest = hashlib.sha256()
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{name}: no weight files (*.safetensors) in this folder")
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as stream:
            if size <= HASHED_WHOLE:
                digest.update(stream.read())
            else:
                digest.update(stream.read(1 << 20))
                stream.seek(-(1 << 20), 2)
                digest.update(stream.read())
    return digest.hexdigest()[:16]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _if_code(error: BaseException) -> str:
    """How to go on where a model comes with Python of its own."""
    if "trust_remote_code" not in str(error):
        return ""
    return "; if you trust its code, add --trust_remote_code true to a recipe (the app runs none)"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
