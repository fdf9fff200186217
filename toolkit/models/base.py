"""Load the base in the precision and on the device of the options; compute its fingerprint."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from toolkit.errors import CheckpointError, ConfigError, ToolkitError
from toolkit.models.arguments import ModelArguments
from toolkit.models.fixed_date import without_date
from toolkit.models.precision import (
    check_stored_quantization,
    keep_backward_on_cpu,
    loading_options,
)
from toolkit.models.tokenizer import has_tokenizer, load_tokenizer, saved_template, stop_ids
from toolkit.models.vocabulary import check_vocabulary
from toolkit.models.weight_files import CONVERT, weight_files
from toolkit.options.config import is_local_path
from toolkit.reading import check_types, read_mapping
from toolkit.runs.integrity import HASHED_WHOLE
from toolkit.runs.run import write_json
from toolkit.world import resolve_base

if TYPE_CHECKING:
    from trl import ModelConfig

BASE_FILE = "base.json"
_NOTES = ("id", "dtype")  # recorded for the reader, not compared


def load_base(
    model: "ModelConfig",
    *,
    scalar: bool = False,
    parent: str | Path | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the frozen base and its tokenizer; on the GPU if there is one, unless `device_map` is set.

    Args:
        model: TRL's ModelConfig or ours; `model_name_or_path` is a hub id, a folder, or the packaged
            `world:base` (the default).
        scalar: load a linear head to one scalar instead of the language-model head.
        parent: a run whose adapter training or sampling starts from; its chat template is used.
        trust_remote_code: run Python code that the model's repository contains.

    Raises: CheckpointError if the model or a usable tokenizer cannot be loaded; ConfigError for
        options that this model does not support.
    """
    model = ModelArguments.of(model)
    name = resolve_base(model.model_name_or_path)
    if model.model_revision != "main" and (is_local_path(name) or Path(name).is_dir()):
        raise ConfigError(
            f"model_revision: {model.model_revision} applies only to models of the hub, but {name} "
            "is a folder; remove the option"
        )
    if Path(name).is_dir():
        if (Path(name) / "adapter_config.json").is_file():
            raise CheckpointError(
                f"{name}: an adapter, expected a base; name the adapter's base as "
                "`model_name_or_path`, and this folder as `parent`"
            )
        weight_files(Path(name))
    kwargs = loading_options(model) | {"trust_remote_code": trust_remote_code}
    if parent is not None:
        check_template(Path(parent))
    try:
        tokenizer = load_tokenizer(
            name,
            revision=model.model_revision,
            chat_template=model.chat_template,
            parent=parent,
            trust_remote_code=trust_remote_code,
        )
        content, _ = PreTrainedConfig.get_config_dict(name, revision=model.model_revision)
        check_stored_quantization(content, model, name)
        if scalar:
            from trl.trainer.reward_trainer import suppress_seqcls_warning

            kwargs["num_labels"] = 1
            with suppress_seqcls_warning():
                base = AutoModelForSequenceClassification.from_pretrained(name, **kwargs)
        else:
            kwargs["output_loading_info"] = True
            base, report = AutoModelForCausalLM.from_pretrained(name, **kwargs)
            _check_complete(name, report)
    except ToolkitError:
        raise
    except Exception as error:  # damaged files raise many types of exceptions
        reason = _reason(error)
        advice = (
            "; if you trust its code, add --trust_remote_code true to a recipe (not to the app)"
        )
        advice = advice if "trust_remote_code" in str(error) else ""
        if "safetensors" in str(error) and not Path(name).is_dir():
            convert = CONVERT.format(old=name, new=f"{Path(name).name}-safetensors")
            advice = f". Pickles (.bin) are never opened, because they can run code; {convert}"
        raise CheckpointError(f"{name}: cannot load the base model ({reason}){advice}") from error
    check_vocabulary(tokenizer, int(base.get_input_embeddings().weight.shape[0]), name)
    devices = {str(device) for device in getattr(base, "hf_device_map", {}).values()}
    if len(devices) > 1:
        raise ConfigError(
            f"device_map: {model.device_map} spreads the base over {', '.join(sorted(devices))}, but "
            "adapters are trained on one device; load it in 4 bit, or choose a smaller base"
        )
    if "device_map" not in kwargs and torch.cuda.is_available():
        base.to("cuda")
    base.requires_grad_(False)
    keep_backward_on_cpu(base)
    _name_experts(base)
    base.config.pad_token_id = tokenizer.pad_token_id
    if not scalar:
        # with a hub model's own defaults (a repetition penalty, top-k) the sampled distribution
        # would differ from the scored one; only its stop tokens are kept
        base.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=stop_ids(base, tokenizer),
            pad_token_id=tokenizer.pad_token_id,
        )
    return base, tokenizer


def base_tokenizer(
    model: "ModelConfig",
    *,
    parent: str | Path | None,
    trust_remote_code: bool,
    resume: str | None = None,
) -> PreTrainedTokenizerBase:
    """Load only the base's tokenizer, with any parent's chat template; see `load_tokenizer`.

    Raises: CheckpointError if it cannot be loaded; ConfigError if `load_tokenizer` raises it.
    """
    model = ModelArguments.of(model)
    name = resolve_base(model.model_name_or_path)
    try:
        return load_tokenizer(
            name,
            revision=model.model_revision,
            chat_template=model.chat_template,
            parent=parent,
            trust_remote_code=trust_remote_code,
            resume=resume,
        )
    except ToolkitError:
        raise
    except Exception as error:  # as in `load_base`
        raise CheckpointError(f"{name}: cannot load the base model ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """The first line of a library's error, with its type unless its text explains itself."""
    text = (str(error).strip().splitlines() or [""])[0]
    if text and isinstance(error, OSError | ValueError | ImportError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _check_complete(name: str, report: dict[str, Any]) -> None:
    """Raise CheckpointError if weights are missing, which would stay random; report unused ones."""
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{name}: {len(missing)} weights of the model are not in its files, the first is "
            f"{missing[0]}; they would be random. Download the model again, or correct its config.json"
        )
    unused = sorted(report["unexpected_keys"])
    if unused:
        print(
            f"{name}: {len(unused)} weights in its files are not used, the first is {unused[0]}; if they "
            "are a part of the language model, correct its config.json",
            flush=True,
        )


def _name_experts(base: PreTrainedModel) -> None:
    """Set `num_experts`, the config field that TRL's load-balancing loss reads.

    Some families (Granite, PhiMoE) have only `num_local_experts`. Models without experts have no such loss.
    """
    config = base.config.get_text_config()
    experts = getattr(config, "num_local_experts", None)
    if experts is None or hasattr(config, "num_experts"):
        return
    config.num_experts = experts
    if experts == 0 and hasattr(config, "router_aux_loss_coef"):
        config.router_aux_loss_coef = 0.0


def fingerprint(model: "ModelConfig", tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The properties of a base that an adapter depends on.

    Returns: `id`, `weights` (a hash of the files, or the hub's commit), `quantization`, `tokenizer`,
    `chat_template`, and `dtype`; `id` and `dtype` are for information only and are not compared.
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
        "chat_template": _digest(without_date(str(tokenizer.chat_template)).encode()),
    }


def save_fingerprint(folder: Path, base_fingerprint: dict[str, str]) -> None:
    """Store the base's fingerprint beside an adapter."""
    write_json(folder / BASE_FILE, base_fingerprint)


def saved_fingerprint(folder: Path) -> dict[str, str]:
    """The fingerprint stored beside an adapter; empty for an adapter made elsewhere.

    Raises: CheckpointError if the file is damaged.
    """
    file = folder / BASE_FILE
    if not file.is_file():
        return {}
    try:
        content = read_mapping(file)
        check_types(content, dict.fromkeys(content, str))
        return content
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: damaged ({error})") from error


def check_template(folder: Path) -> None:
    """Check that the chat template saved beside an adapter has not changed since training.

    Raises: CheckpointError if it is missing, damaged or changed.
    """
    trained = saved_fingerprint(folder).get("chat_template")
    several = (folder / "additional_chat_templates").is_dir()
    if trained is None or several or not has_tokenizer(folder):
        return
    template = saved_template(folder)
    if _digest(without_date(str(template)).encode()) != trained:
        state = "is empty" if template == "" else "was changed after the run was trained"
        raise CheckpointError(
            f"{folder}: its chat template {'is missing' if template is None else state}; restore "
            "chat_template.jinja, or train the run again"
        )


def check_fingerprint(folder: Path, base: dict[str, str], *, any_precision: bool = False) -> None:
    """Reject an adapter that was trained on another base; accept an adapter without `base.json`.

    Args:
        folder: the adapter's directory.
        base: the fingerprint of the base in memory.
        any_precision: accept the same weights in another quantization.

    Raises: CheckpointError naming both bases.
    """
    stored = saved_fingerprint(folder)
    if not stored:
        return
    check_template(folder)
    for key in base:
        skipped = key in _NOTES or (any_precision and key == "quantization")
        if not skipped and stored.get(key) != base[key]:
            raise CheckpointError(
                f"{folder}: trained on base {stored.get('id')} with {key} {stored.get(key)}, but the "
                f"base in memory is {base['id']} with {key} {base[key]}; load the adapter's own base"
                + _commit_option(stored, base)
            )


def _commit_option(stored: dict[str, str], base: dict[str, str]) -> str:
    """The option that loads the adapter's commit, if base and adapter differ only in the commit."""
    name, _, commit = str(stored.get("weights")).rpartition("@")
    if not name or commit == "unknown" or name != base["weights"].rpartition("@")[0]:
        return ""
    return f" with --model_revision {commit}"


def _weights_hash(name: str, revision: str | None) -> str:
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        commit = Path(cached).parent.name if isinstance(cached, str) else "unknown"
        return f"{name}@{commit}"
    digest = hashlib.sha256()
    for file in weight_files(folder):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(size if size <= HASHED_WHOLE else 1 << 20))
            if size > HASHED_WHOLE:
                stream.seek(-(1 << 20), 2)
                digest.update(stream.read())
    return digest.hexdigest()[:16]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
