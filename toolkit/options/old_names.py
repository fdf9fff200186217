"""Names that options have in other versions and programs, and their replacements here."""

from collections.abc import Iterable

RENAMED = {
    "adam_eps": "adam_epsilon",
    "base_model": "model_name_or_path",
    "batch_size": "per_device_train_batch_size",
    "bnb_4bit_compute_dtype": "dtype",
    "bnb_4bit_dtype": "dtype",
    "bnb_4bit_use_double_quant": "use_bnb_nested_quant",
    "clip_range": "cliprange",
    "data_path": "dataset_name",
    "dataset": "dataset_name",
    "dataset_path": "dataset_name",
    "epochs": "num_train_epochs",
    "eval_batch_size": "per_device_eval_batch_size",
    "evaluate_during_training": "eval_strategy",
    "evaluation_strategy": "eval_strategy",
    "group_by_length": "train_sampling_strategy",
    "horizon": "kl_horizon",
    "init_kl_coef": "kl_coef",
    "load_4bit": "load_in_4bit",
    "load_8bit": "load_in_8bit",
    "lora_modules": "lora_target_modules",
    "lora_rank": "lora_r",
    "lora_target": "lora_target_modules",
    "lr": "learning_rate",
    "max_new_tokens": "response_length",
    "max_seq_length": "max_length",
    "max_prompt_length": "max_length",
    "max_completion_length": "max_length",
    "mini_batches": "num_mini_batches",
    "model": "model_name_or_path",
    "model_name": "model_name_or_path",
    "modules_to_save": "lora_modules_to_save",
    "no_cuda": "use_cpu",
    "num_epochs": "num_train_epochs",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "ppo_epochs": "num_ppo_epochs",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "reward_model_path": "reward_model",
    "sft_model_path": "parent",
    "target_modules": "lora_target_modules",
    "torch_dtype": "dtype",
    "train_batch_size": "per_device_train_batch_size",
    "use_4bit": "load_in_4bit",
    "use_double_quant": "use_bnb_nested_quant",
    "use_double_quantization": "use_bnb_nested_quant",
    "use_flash_attention_2": "attn_implementation",
    "use_liger": "use_liger_kernel",
    "warmup_ratio": "warmup_steps",
}
_TOKENIZER = "remove it: the tokenizer is the base's; `chat_template` changes its template"
INSTEAD = {
    "adafactor": "set `optim: adafactor`",
    "bnb_4bit_compute_dtype": "`dtype` is also the compute type of a 4-bit base",
    "bnb_4bit_dtype": "`dtype` is also the compute type of a 4-bit base",
    "evaluate_during_training": "`steps` or `epoch` turn evaluation on",
    "fp16_backend": "remove it",
    "group_by_length": "set it to `group_by_length`",
    "half_precision_backend": "remove it",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "overwrite_output_dir": "remove it: a new run replaces a finished run in `output_dir`",
    "peft_config": "use `peft_method` and the options `lora_…`",
    "processing_class": _TOKENIZER,
    "quantization_config": "use `load_in_4bit` or `load_in_8bit`",
    "save_safetensors": "remove it: weights are always saved as safetensors",
    "tokenizer": _TOKENIZER,
    "tokenizer_name": _TOKENIZER,
    "tokenizer_name_or_path": _TOKENIZER,
    "use_flash_attention_2": "set it to `flash_attention_2`",
    "use_mps_device": "remove it: the device is detected",
    "warmup_ratio": "a value below 1 is a share of all steps",
}


def current_name(name: str, known: Iterable[str]) -> str | None:
    """The replacement of an old option name, as the end of a message; None for other names.

    Args:
        name: the unknown option.
        known: the options of the command.
    """
    key = name.lower().replace("-", "_")
    new, note = RENAMED.get(key), INSTEAD.get(key)
    if new is not None and new in known:
        return f"its name is `{new}`" + (f" ({note})" if note else "")
    return None if new is not None else note
