"""Names that options have in other versions and programs, their replacements here, and removed options."""

from collections.abc import Iterable

RENAMED = {
    "adam_eps": "adam_epsilon",
    "adap_kl_ctrl": "kl_target",
    "backward_batch_size": "per_device_train_batch_size",
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
    "exp_name": "run_name",
    "forward_batch_size": "local_rollout_forward_batch_size",
    "group_by_length": "train_sampling_strategy",
    "horizon": "kl_horizon",
    "include_tokens_per_second": "include_num_input_tokens_seen",
    "init_kl_coef": "kl_coef",
    "kl_penalty": "kl_estimator",
    "load_4bit": "load_in_4bit",
    "load_8bit": "load_in_8bit",
    "lora_modules": "lora_target_modules",
    "log_with": "report_to",
    "lora_rank": "lora_r",
    "lora_target": "lora_target_modules",
    "lr": "learning_rate",
    "max_new_tokens": "response_length",
    "max_seq_length": "max_length",
    "max_prompt_length": "max_length",
    "max_completion_length": "max_length",
    "mini_batch_size": "per_device_train_batch_size",
    "mini_batches": "num_mini_batches",
    "model": "model_name_or_path",
    "model_name": "model_name_or_path",
    "modules_to_save": "lora_modules_to_save",
    "no_cuda": "use_cpu",
    "non_eos_penalty": "missing_eos_penalty",
    "num_epochs": "num_train_epochs",
    "penalty_reward_value": "missing_eos_penalty",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "ppo_epochs": "num_ppo_epochs",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "reward_model_path": "reward_model",
    "score_clip": "reward_clip",
    "sft_model_path": "parent",
    "target_modules": "lora_target_modules",
    "torch_dtype": "dtype",
    "train_batch_size": "per_device_train_batch_size",
    "use_4bit": "load_in_4bit",
    "use_double_quant": "use_bnb_nested_quant",
    "use_double_quantization": "use_bnb_nested_quant",
    "use_flash_attention_2": "attn_implementation",
    "use_liger": "use_liger_kernel",
    "use_liger_loss": "use_liger_kernel",
    "warmup_ratio": "warmup_steps",
}
# options that TRL and transformers removed, and that have no replacement here
REMOVED = """
    base_model_attribute_name chars_per_token compare_steps dataset_batch_size dispatch_batches
    ds3_gather_for_generation force_use_ref_model fp16_opt_level
    fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap generate_during_eval half_precision_backend
    include_inputs_for_metrics is_encoder_decoder jit_mode_eval label_pad_token_id model_adapter_name
    mp_parameters num_of_sequences num_sample_generations optimize_cuda_cache
    optimize_device_cache padding_value past_index push_to_hub_organization ratio_threshold ray_scope
    ref_adapter_name ref_model_init_kwargs reference_free sharded_ddp split_batches stop_token
    stop_token_id tokenizer_kwargs torchdynamo tpu_metrics_debug tpu_num_cores tracker_kwargs
    tracker_project_name use_ipex use_legacy_prediction_loop use_logits_to_keep use_score_norm
    use_score_scaling world_size xpu_backend
""".split()
_TOKENIZER = "remove it: the tokenizer is the base's; `chat_template` changes its template"
INSTEAD = {
    "adafactor": "set `optim: adafactor`",
    "adap_kl_ctrl": "the KL to reach; without it β is constant",
    "bnb_4bit_compute_dtype": "`dtype` is also the compute type of a 4-bit base",
    "bnb_4bit_dtype": "`dtype` is also the compute type of a 4-bit base",
    "evaluate_during_training": "`steps` or `epoch` turn evaluation on",
    "early_stopping": "set `target_kl`",
    "fp16_backend": "remove it",
    "group_by_length": "set it to `group_by_length`",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "overwrite_output_dir": "remove it: a new run replaces a finished run in `output_dir`",
    "peft_config": "use `peft_method` and the options `lora_…`",
    "processing_class": _TOKENIZER,
    "quantization_config": "use `load_in_4bit` or `load_in_8bit`",
    "rpo_alpha": "TRL removed it: set `loss_type: [sigmoid, sft]` and `loss_weights: [1.0, rpo_alpha]`",
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
    removed = "its library removed it; remove it" if key in REMOVED else None
    new, note = RENAMED.get(key), INSTEAD.get(key, removed)
    if new is not None and new in known:
        return f"its name is `{new}`" + (f" ({note})" if note else "")
    return None if new is not None else note
