"""Load the models that recipes start from: a base for roles, or a base with a parent's adapter."""

from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftConfig, PeftModel, PrefixTuningConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.errors import ConfigError
from toolkit.models.adapters import fill, read_adapter
from toolkit.models.base import check_fingerprint, fingerprint, load_base, saved_fingerprint
from toolkit.models.prompt_and_ia3_adapters import HOOKED
from toolkit.models.roles import POLICY, Roles
from toolkit.sampling.compatibility import check_supported

if TYPE_CHECKING:
    from trl import ModelConfig


def load_roles(
    model: "ModelConfig", *, parent: str | Path | None = None, trust_remote_code: bool = False
) -> tuple[Roles, PreTrainedTokenizerBase]:
    """Load the base and its tokenizer; no adapter is attached yet.

    Raises: the errors of `load_base`, and of `check_supported` for a base that cannot be sampled from.
    """
    base, tokenizer = load_base(model, parent=parent, trust_remote_code=trust_remote_code)
    check_supported(base)
    return Roles(base, fingerprint(model, tokenizer)), tokenizer


def trainable_policy(
    base: PreTrainedModel,
    base_fingerprint: dict[str, str],
    parent: str | Path,
    *,
    gradient_checkpointing: bool,
) -> PeftModel:
    """The base with the parent's adapter, of any kind, as the trainable adapter `default`.

    Raises: CheckpointError if the adapter is damaged or of another base; ConfigError for a prefix with
        gradient checkpointing.
    """
    parent = Path(parent)
    config, weights = read_adapter(parent)
    if not isinstance(config, HOOKED):
        roles = Roles(base, base_fingerprint)
        roles.attach(POLICY, parent, trainable=True)
        assert roles.model is not None
        return roles.model
    check_fingerprint(parent, base_fingerprint)
    if isinstance(config, PrefixTuningConfig) and gradient_checkpointing:
        raise ConfigError(
            f"{parent} is a prefix, which needs the key-value cache, but gradient checkpointing "
            "disables the cache; set `gradient_checkpointing: false`"
        )
    config.inference_mode = False
    return _with_adapter(base, config, weights, parent)


def adapted_base(
    base: PreTrainedModel, base_fingerprint: dict[str, str], parent: str | Path
) -> PeftModel:
    """The base with the parent's frozen adapter, as PEFT itself would load it.

    An adapter trained on the same weights in another quantization is accepted with a notice.

    Raises: CheckpointError if the adapter is damaged or of another base.
    """
    parent = Path(parent)
    config, weights = read_adapter(parent)
    check_fingerprint(parent, base_fingerprint, any_precision=True)
    trained_on = saved_fingerprint(parent).get("quantization", base_fingerprint["quantization"])
    if trained_on != base_fingerprint["quantization"]:
        print(
            f"{parent} was trained on a base in {trained_on}; on the unquantized base, its answers differ "
            "a little"
        )
    config.inference_mode = True
    return _with_adapter(base, config, weights, parent)


def _with_adapter(
    base: PreTrainedModel, config: PeftConfig, weights: dict[str, Tensor], parent: Path
) -> PeftModel:
    model = get_peft_model(base, config, adapter_name=POLICY)
    fill(model, POLICY, weights, parent)
    return model
