"""Every option of TRL and transformers either works in each recipe or is rejected."""

import dataclasses

import pytest
from transformers import TrainingArguments
from trl import (
    DatasetMixtureConfig,
    DPOConfig,
    KTOConfig,
    ModelConfig,
    RewardConfig,
    ScriptArguments,
    SFTConfig,
)
from trl import GRPOConfig as TrlGRPOConfig
from trl import RLOOConfig as TrlRLOOConfig

from toolkit.errors import ConfigError
from toolkit.groups.config import GroupOptions, GRPOConfig, RLOOConfig
from toolkit.options.unsupported import UNSUPPORTED, reject_unsupported, reject_unusable
from toolkit.ppo.config import PPOConfig
from toolkit.recipe import recipes

TRAINERS = (SFTConfig, RewardConfig, DPOConfig, KTOConfig, PPOConfig, RLOOConfig, GRPOConfig)
OURS = {f.name for f in dataclasses.fields(GroupOptions)}  # tested one by one
# Options that a recipe passes on, or that other checks reject, by argument class. A new option of a library
# needs a decision: find out from the library's code whether it has an effect although the recipes load the
# model, the tokenizer and the rows.
ONLINE = """
    beta disable_dropout epsilon epsilon_high generation_batch_size generation_kwargs log_completions
    log_unique_prompts mask_truncated_completions max_completion_length min_p num_completions_to_print
    num_generations num_iterations pad_to_multiple_of repetition_penalty reward_weights
    router_aux_loss_coef shuffle_dataset steps_per_generation temperature top_k top_p
    trust_remote_code """
WORKS = {
    TrainingArguments: """
        accelerator_config activation_checkpointing activation_checkpointing_kwargs adam_beta1
        adam_beta2 adam_epsilon auto_find_batch_size bf16 data_seed dataloader_drop_last
        dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers
        dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor debug
        disable_tqdm do_eval do_train enable_jit_checkpoint eval_accumulation_steps eval_delay
        eval_on_start eval_steps eval_strategy fp16 full_determinism gradient_accumulation_steps
        gradient_checkpointing gradient_checkpointing_kwargs greater_is_better hub_always_push
        hub_model_id hub_private_repo hub_revision hub_strategy hub_token ignore_data_skip
        include_num_input_tokens_seen label_smoothing_factor learning_rate length_column_name
        liger_kernel_config load_best_model_at_end log_level logging_first_step
        logging_nan_inf_filter logging_steps logging_strategy lr_scheduler_kwargs lr_scheduler_type
        max_grad_norm max_steps metric_for_best_model neftune_noise_alpha num_train_epochs optim
        optim_args output_dir per_device_eval_batch_size per_device_train_batch_size project
        push_to_hub remove_unused_columns report_to resume_from_checkpoint run_name save_only_model
        save_steps save_strategy save_total_limit seed skip_memory_metrics tf32 torch_compile
        torch_compile_backend torch_compile_mode torch_empty_cache_steps trackio_bucket_id
        trackio_space_id trackio_static_space_id train_sampling_strategy use_cpu use_liger_kernel
        warmup_steps weight_decay""",
    SFTConfig: """
        activation_offloading assistant_only_loss completion_only_loss dataset_num_proc eval_packing
        loss_type max_length packing packing_strategy pad_to_multiple_of padding_free
        router_aux_loss_coef shuffle_dataset truncation_mode trust_remote_code""",
    RewardConfig: """
        activation_offloading center_rewards_coefficient disable_dropout max_length
        trust_remote_code""",
    DPOConfig: """
        activation_offloading beta dataset_num_proc disable_dropout discopop_tau
        f_alpha_divergence_coef f_divergence_type label_smoothing ld_alpha loss_type loss_weights
        max_length pad_to_multiple_of padding_free precompute_ref_batch_size
        precompute_ref_log_probs router_aux_loss_coef truncation_mode trust_remote_code
        use_weighting""",
    KTOConfig: """
        activation_offloading beta dataset_num_proc desirable_weight disable_dropout loss_type
        max_length pad_to_multiple_of precompute_ref_batch_size precompute_ref_log_probs
        router_aux_loss_coef trust_remote_code undesirable_weight""",
    TrlRLOOConfig: ONLINE + "normalize_advantages reward_clip_range",
    TrlGRPOConfig: ONLINE
    + """
        cast_lm_head_to_fp32 delta entropy_coef entropy_coef_delta entropy_coef_max entropy_coef_min
        entropy_target importance_sampling_level log_completions_hub_repo loss_type
        multi_objective_aggregation off_policy_mask_threshold sapo_temperature_neg
        sapo_temperature_pos scale_rewards top_entropy_quantile use_adaptive_entropy
        use_bias_correction_kl vespo_k_neg vespo_k_pos vespo_lambda_neg vespo_lambda_pos""",
    ScriptArguments: """
        dataset_config dataset_name dataset_streaming dataset_test_split dataset_train_split""",
    DatasetMixtureConfig: "datasets streaming test_split_size",
    ModelConfig: """
        attn_implementation bnb_4bit_quant_storage bnb_4bit_quant_type dtype load_in_4bit
        load_in_8bit lora_alpha lora_dropout lora_modules_to_save lora_r lora_target_modules
        lora_target_parameters lora_task_type model_name_or_path model_revision use_bnb_nested_quant
        use_dora use_peft use_rslora""",
}


def config_of(kind, **options):
    return kind(output_dir="x", use_cpu=True, bf16=False, **options)


@pytest.mark.parametrize("kind", [*TRAINERS, *list(WORKS)[-3:]], ids=lambda kind: kind.__name__)
def test_every_option_of_the_libraries_is_decided(kind):
    names = {f.name for f in dataclasses.fields(kind) if f.init}
    if kind is PPOConfig:  # its own options are tested one by one
        names = {f.name for f in dataclasses.fields(TrainingArguments) if f.init}
    names -= OURS if issubclass(kind, GroupOptions) else set()
    for parent in kind.__mro__:
        names -= set(WORKS.get(parent, "").split()) | UNSUPPORTED.get(parent.__name__, {}).keys()
    assert not names


@pytest.mark.parametrize("kind", TRAINERS)
def test_defaults_are_accepted(kind):
    reject_unsupported("x", config_of(kind))
    reject_unsupported("x", ScriptArguments())
    for recipe in recipes().values():
        reject_unusable(recipe.name, recipe.rows, config_of(recipe.arguments()[0]))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (SFTConfig, {"model_init_kwargs": {"dtype": "float32"}}, "`model_init_kwargs` .*`dtype`"),
        (SFTConfig, {"chat_template_path": "x.jinja"}, "`chat_template_path` .*`chat_template`"),
        (SFTConfig, {"dataset_kwargs": {"skip_prepare_dataset": True}}, "`columns`"),
        (RewardConfig, {"pad_to_multiple_of": 8}, "`pad_to_multiple_of` is not supported"),
        (RewardConfig, {"dataset_num_proc": 2}, "`dataset_num_proc` is not supported"),
        (DPOConfig, {"label_smoothing_factor": 0.1}, "`label_smoothing` is the option"),
        (KTOConfig, {"ref_model_sync_steps": 2}, "`ref_model_sync_steps` is not supported"),
        (PPOConfig, {"per_device_eval_batch_size": 3}, "`generation_batch_size`"),
        (PPOConfig, {"data_seed": 1}, "set `seed`"),
        (PPOConfig, {"include_for_metrics": ["loss"]}, "`include_for_metrics`"),
        (RLOOConfig, {"use_vllm": True}, "`use_vllm` is not supported"),
        (GRPOConfig, {"vllm_mode": "server"}, "`vllm_mode` is not supported: there is no vLLM"),
        (DPOConfig, {"do_eval": True}, "set `eval_strategy`"),
    ],
)
def test_option_without_effect_is_rejected(kind, options, message):
    with pytest.raises(ConfigError, match=message):
        reject_unsupported("x", config_of(kind, **options))


def test_unusable_options_are_rejected():
    with pytest.raises(ConfigError, match="needs rows of one text each"):
        reject_unusable(
            "x", "preference", config_of(DPOConfig, train_sampling_strategy="group_by_length")
        )
    with pytest.raises(ConfigError, match="the run uses the CPU"):
        reject_unusable("x", "unpaired", config_of(KTOConfig, activation_offloading=True))


def test_script_option_without_effect_is_rejected():
    with pytest.raises(ConfigError, match="`ignore_bias_buffers` is not supported"):
        reject_unsupported("x", ScriptArguments(ignore_bias_buffers=True))
