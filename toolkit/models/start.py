"""The adapter that a run goes on training, loaded from its parent."""

from pathlib import Path

from peft import PeftModel, PrefixTuningConfig, get_peft_model
from transformers import PreTrainedModel

from toolkit.errors import ConfigError
from toolkit.models.adapters import fill, read_adapter
from toolkit.models.base import check_fingerprint
from toolkit.models.inserted import INSERTED
from toolkit.models.roles import POLICY, Roles


def trainable_policy(
    base: PreTrainedModel,
    base_fingerprint: dict[str, str],
    parent: str | Path,
    *,
    gradient_checkpointing: bool,
) -> PeftModel:
    """The parent's adapter of whatever kind as `default`, trainable, alone on its base.

    Raises: CheckpointError where it is damaged or of another base; ConfigError for a prefix under
        gradient checkpointing.
    """
    parent = Path(parent)
    config, weights = read_adapter(parent)
    if not isinstance(config, INSERTED):
        roles = Roles(base, base_fingerprint)
        roles.attach(POLICY, parent, trainable=True)
        assert roles.model is not None
        return roles.model
    check_fingerprint(parent, base_fingerprint)
    if isinstance(config, PrefixTuningConfig) and gradient_checkpointing:
        raise ConfigError(
            f"{parent} is a prefix, whose keys and values travel in the cache, which gradient "
            "checkpointing drops; set `gradient_checkpointing: false`"
        )
    config.inference_mode = False
    model = get_peft_model(base, config, adapter_name=POLICY)
    fill(model, POLICY, weights, parent)
    return model
