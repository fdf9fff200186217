"""Checks before training that the rows of a batch or packed row do not affect each other's outputs."""

from collections.abc import Sequence
from typing import Any

from peft import PeftModel

from toolkit.errors import ConfigError
from toolkit.models.independence import check_packed_rows, check_padded_rows


def check_rows(trainer: Any, lengths: Sequence[int], *, one_per_batch: bool = False) -> None:
    """Run the trainer's model on a short and a long row, alone and together.

    Args:
        trainer: a `transformers.Trainer`; TRL's SFTTrainer may pack rows.
        lengths: number of tokens of each row.
        one_per_batch: the run never puts two rows into one batch.

    Raises: ConfigError for a model whose output for a row depends on the other rows.
    """
    model, shortest, longest = trainer.model, max(1, min(lengths)), max(1, *lengths)
    is_adapted, is_packed = isinstance(model, PeftModel), getattr(trainer, "padding_free", False)
    if is_packed and is_adapted and model.active_peft_config.is_prompt_learning:
        raise ConfigError(
            "packing: with adapters of virtual tokens, such as prefix and prompt, PEFT drops the positions "
            "that separate packed rows; set `packing: false`, or choose another `peft_method`"
        )
    causal: Any = model.get_base_model() if is_adapted else model
    with trainer.accelerator.autocast():
        check_padded_rows(
            causal, shortest, longest, shorten="`max_length`", one_per_batch=one_per_batch
        )
        if is_packed:
            check_packed_rows(causal, trainer.data_collator, longest, shortest)
