"""The fingerprint of a base, by which its adapters know it again."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from toolkit.errors import CheckpointError, ConfigError
from toolkit.runs.run import write_json
from toolkit.world import resolve_base

if TYPE_CHECKING:
    from trl import ModelConfig

BASE_FILE = "base.json"
HASHED_WHOLE = 256 << 20  # larger weight files are told apart by size, head and tail
_NOTES = ("id", "dtype")  # recorded for the reader, not compared


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
