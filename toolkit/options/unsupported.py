"""Options of TRL and transformers that recipes ignore, wholly or in part, and their replacements."""

import dataclasses
from typing import Any

from toolkit.errors import ConfigError

_BASE = (
    "the recipe loads the base: use `dtype`, `attn_implementation`, `device_map` or `load_in_4bit`"
)
_TOKENIZER = "the tokenizer is the base's; remove it"
_TEMPLATE = "set `chat_template`, which every recipe and the app use"
_ROWS = "the recipe prepares the rows: rename columns with `columns`"
_ONE_PROCESS = "a run has one process; remove it"
_MEASURED = "the recipe chooses what an evaluation measures; remove it"
_PRECISION = "evaluations have the precision of the training: set `bf16` or `fp16`"
_FIXED_REFERENCE = "the reference is the parent's adapter and does not change; remove it"
_TOKENIZED = "the recipe tokenizes and pads pairs itself; remove it"
_PREFERENCE = "`label_smoothing` is the option of preference losses"
_SAMPLING = "prompts come in their own order, from `seed`; remove it"
_BATCHES = "evaluations have batches of `generation_batch_size`"

_DISTRIBUTION = "answers are sampled by the toolkit, or by `generate`; remove it"
_TEXT = "answers are texts without tools or images; remove it"
_GROUPS = {
    "cache_implementation": _DISTRIBUTION,
    "chat_template_kwargs": _TEMPLATE,
    "data_seed": "set `seed`",
    "dataloader_drop_last": _SAMPLING,
    "ds3_gather_for_generation": _ONE_PROCESS,
    "eval_accumulation_steps": _BATCHES,
    "label_smoothing_factor": "the losses have no smoothing; remove it",
    "length_column_name": _SAMPLING,
    "log_multimodal": _TEXT,
    "model_init_kwargs": _BASE,
    "num_generations_eval": _MEASURED,
    "per_device_eval_batch_size": _BATCHES,
    "ref_model_mixup_alpha": _FIXED_REFERENCE,
    "ref_model_sync_steps": _FIXED_REFERENCE,
    "sync_ref_model": _FIXED_REFERENCE,
    "train_sampling_strategy": _SAMPLING,
    "transformers_continuous_batching_config": _DISTRIBUTION,
    "use_transformers_continuous_batching": _DISTRIBUTION,
    "use_transformers_paged": _DISTRIBUTION,
    "use_vllm": "reward models are adapters on the policy's base, which vLLM would not get; remove it",
} | dict.fromkeys(
    """vllm_enable_sleep_mode vllm_gpu_memory_utilization vllm_group_port vllm_max_model_length vllm_mode
    vllm_model_impl vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout
    vllm_structured_outputs_regex vllm_tensor_parallel_size""".split(),
    "there is no vLLM; remove it",
)

# argument class -> option -> its replacement
UNSUPPORTED: dict[str, dict[str, str]] = {
    "TrainingArguments": {
        "average_tokens_across_devices": _ONE_PROCESS,
        "batch_eval_metrics": _MEASURED,
        "bf16_full_eval": _PRECISION,
        "ddp_backend": _ONE_PROCESS,
        "ddp_broadcast_buffers": _ONE_PROCESS,
        "ddp_bucket_cap_mb": _ONE_PROCESS,
        "ddp_find_unused_parameters": _ONE_PROCESS,
        "ddp_static_graph": _ONE_PROCESS,
        "ddp_timeout": _ONE_PROCESS,
        "deepspeed": _ONE_PROCESS,
        "do_predict": "use `toolkit evaluate`",
        "eval_do_concat_batches": _MEASURED,
        "eval_use_gather_object": _MEASURED,
        "fp16_full_eval": _PRECISION,
        "fsdp": _ONE_PROCESS,
        "fsdp_config": _ONE_PROCESS,
        "include_for_metrics": _MEASURED,
        "label_names": _MEASURED,
        "local_rank": _ONE_PROCESS,
        "log_level_replica": _ONE_PROCESS,
        "log_on_each_node": _ONE_PROCESS,
        "optim_target_modules": "layer-wise optimizers work only without adapters; remove it",
        "parallelism_config": _ONE_PROCESS,
        "prediction_loss_only": _MEASURED,
        "restore_callback_states_from_checkpoint": "a resumed run restores all of its state; remove it",
        "save_on_each_node": _ONE_PROCESS,
        "use_cache": "training needs no cache, and sampling always uses it; remove it",
    },
    "ScriptArguments": {"ignore_bias_buffers": _ONE_PROCESS},
    "SFTConfig": {
        "chat_template_path": _TEMPLATE,
        "dataset_kwargs": _ROWS,
        "dataset_text_field": _ROWS,
        "eos_token": _TOKENIZER,
        "model_init_kwargs": _BASE,
        "pad_token": _TOKENIZER,
    },
    "RewardConfig": {
        "chat_template_path": _TEMPLATE,
        "dataset_num_proc": _TOKENIZED,
        "eos_token": _TOKENIZER,
        "label_smoothing_factor": "the ranking loss has no smoothing; remove it",
        "model_init_kwargs": _BASE,
        "pad_to_multiple_of": _TOKENIZED,
        "pad_token": _TOKENIZER,
        "torch_compile": "the ranking loss calls only parts of the model; remove it",
        "torch_compile_backend": "the ranking loss calls only parts of the model; remove it",
        "torch_compile_mode": "the ranking loss calls only parts of the model; remove it",
    },
    "DPOConfig": {
        "label_smoothing_factor": _PREFERENCE,
        "model_init_kwargs": _BASE,
        "pad_token": _TOKENIZER,
        "ref_model_mixup_alpha": _FIXED_REFERENCE,
        "ref_model_sync_steps": _FIXED_REFERENCE,
        "sync_ref_model": _FIXED_REFERENCE,
    },
    "KTOConfig": {
        "data_seed": "the rows are shuffled with `seed`",
        "label_smoothing_factor": "KTO's losses have no smoothing; remove it",
        "model_init_kwargs": _BASE,
        "ref_model_mixup_alpha": _FIXED_REFERENCE,
        "ref_model_sync_steps": _FIXED_REFERENCE,
        "sync_ref_model": _FIXED_REFERENCE,
    },
    "PPOConfig": {
        "data_seed": "set `seed`",
        "dataloader_drop_last": _SAMPLING,
        "eval_accumulation_steps": _BATCHES,
        "include_num_input_tokens_seen": "`metrics.jsonl` counts episodes; remove it",
        "label_smoothing_factor": "PPO's losses have no smoothing; remove it",
        "length_column_name": _SAMPLING,
        "per_device_eval_batch_size": _BATCHES,
        "train_sampling_strategy": _SAMPLING,
    },
    "RLOOConfig": _GROUPS,
    "GRPOConfig": _GROUPS | {"max_tool_calling_iterations": _TEXT} | dict.fromkeys(
        """vllm_importance_sampling_cap vllm_importance_sampling_clip_max
        vllm_importance_sampling_clip_min vllm_importance_sampling_correction
        vllm_importance_sampling_mode""".split(),
        "there is no vLLM; remove it",
    ),
}  # fmt: skip
BY_LENGTH = ("group_by_length", "batch_rebalance")  # need rows with the column `input_ids`


def reject_unsupported(recipe: str, config: Any) -> None:
    """Reject options of a config that the recipe would ignore, unless they have their default.

    Raises: ConfigError that names the option and its replacement.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    for kind in type(config).__mro__:
        for name, instead in UNSUPPORTED.get(kind.__name__, {}).items():
            if name in fields and not _is_default(fields[name], getattr(config, name)):
                raise ConfigError(f"{recipe}: `{name}` is not supported: {instead}")
    if getattr(config, "do_eval", False) and config.eval_strategy == "no":
        raise ConfigError(f"{recipe}: `do_eval` alone is not supported: set `eval_strategy`")


def reject_unusable(recipe: str, rows: str, config: Any) -> None:
    """Reject options of a trainer's config that stop its trainer with an error of a library.

    Args:
        rows: the kind of rows that the recipe trains on.

    Raises: ConfigError that names the option and the fix.
    """
    strategy = config.train_sampling_strategy
    if strategy in BY_LENGTH and rows != "prompt-completion":
        raise ConfigError(
            f"{recipe}: `train_sampling_strategy` {strategy} needs rows of one text each; set it to "
            "random or sequential"
        )
    if getattr(config, "activation_offloading", False) and config.use_cpu:
        raise ConfigError(
            f"{recipe}: `activation_offloading` moves activations from a GPU to the CPU, but the run "
            "uses the CPU; remove it"
        )


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    """Whether an option has its default, or the value that the library computes from its default."""
    if field.default_factory is not dataclasses.MISSING:
        return bool(value == field.default_factory())
    return value is None or bool(value == field.default)
