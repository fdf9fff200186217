"""The settings that a resumed run shares with its checkpoint, and the options that may change."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from toolkit.errors import CheckpointError
from toolkit.reading import read_mapping
from toolkit.runs.integrity import hashes
from toolkit.runs.provenance import plain

SETTINGS_FILE, MAX_SETTINGS_BYTES = "settings.json", 1 << 20  # of a checkpoint
# Why a resumed run may change an option -> the options. All others, also those that a later version
# of a library adds, must keep their values.
FREE: Mapping[str, str] = {
    "where results go, and when a run logs, saves and evaluates": """
        output_dir resume_from_checkpoint run_name project report_to disable_tqdm
        log_level log_level_replica log_on_each_node logging_strategy logging_steps logging_first_step
        logging_nan_inf_filter include_num_input_tokens_seen trackio_space_id trackio_bucket_id
        trackio_static_space_id push_to_hub hub_token hub_private_repo hub_model_id hub_strategy
        hub_always_push hub_revision save_strategy save_steps save_total_limit save_only_model
        save_on_each_node eval_strategy eval_steps eval_delay eval_on_start eval_prompts
        write_best write_pairs do_train do_eval do_predict restore_callback_states_from_checkpoint""",
    "it changes speed, memory or rounding, not the objective": """
        use_cpu device_map attn_implementation local_rank ddp_backend ddp_timeout
        ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph debug
        skip_memory_metrics full_determinism torch_compile torch_compile_backend torch_compile_mode
        torch_empty_cache_steps gradient_checkpointing gradient_checkpointing_kwargs
        activation_checkpointing activation_checkpointing_kwargs activation_offloading use_cache
        per_device_eval_batch_size eval_accumulation_steps dataloader_num_workers dataloader_pin_memory
        dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context
        batch_size dataset_num_proc precompute_ref_batch_size ignore_bias_buffers trust_remote_code""",
    "the answers that are sampled next differ, but not their distribution": """
        local_rollout_forward_batch_size generation_batch_size""",
    "its content is compared, so that a folder may move": """
        model_name_or_path model_revision parent reward_model reward_funcs ptx_texts
        max_prompt_length""",
    "a training that diverged continues with a lower limit": "max_grad_norm",
    "the members of an ensemble are independent": "ensemble",
}
# Their rows are compared instead; for a stream, only the first rows and these options.
DATA = """dataset_name dataset_config dataset_train_split dataset_test_split datasets sources columns
    dataset_format max_rows pairs turns drop_bad_rows drop_duplicates test_split_size""".split()
LENGTH = ("max_steps", "total_episodes", "num_train_epochs")
# schedules whose learning rate at a step does not depend on the number of steps
ENDLESS = ("constant", "constant_with_warmup", "inverse_sqrt")
ROWS = {"train": "training rows", "test": "test rows"}  # inputs of a run, by split
_FREE = frozenset(" ".join(FREE.values()).split())


def settings_of(configs: Iterable[Any]) -> dict[str, Any]:
    """The options of some configs that a resumed run must keep, as JSON values."""
    return kept({name: value for config in configs for name, value in plain(config).items()})


def kept(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a resumed run must keep, as JSON values."""
    return {name: value for name, value in _as_json(options).items() if name not in _FREE}


def changed_options(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The options that differ: name -> old and new value."""
    old, new = _as_json(old), _as_json(new)
    names = [n for n in new if n in old and n not in ("resume_from_checkpoint", "output_dir")]
    return {name: [old[name], new[name]] for name in names if old[name] != new[name]}


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values after writing them to JSON and reading them again."""
    return dict(json.loads(json.dumps(values, default=str)))


def hash_adapter(folder: str) -> str:
    """A short hash of the adapter in a folder."""
    return "adapter " + hashlib.sha256(repr(hashes(Path(folder))).encode()).hexdigest()[:12]


def read_settings(checkpoint: Path) -> dict[str, Any] | None:
    """The settings that a checkpoint was written with; None if an earlier version wrote it.

    Raises: CheckpointError for a damaged file.
    """
    file = checkpoint / SETTINGS_FILE
    try:
        return read_mapping(file, at_most=MAX_SETTINGS_BYTES)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error


def require_same(
    place: Path,
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    *,
    inputs: bool = True,
    longer: bool = True,
) -> None:
    """Check that a run resumes with the settings and the data that it began with.

    A setting that the checkpoint does not record is not compared.

    Args:
        place: the checkpoint, for the error message.
        saved: its settings.
        current: the settings of the run that resumes.
        inputs: whether `current` includes the inputs in addition to the options.
        longer: whether the run may have more steps, if its learning rate does not depend on their number.

    Raises: CheckpointError that names the first difference, both values and the fix.
    """
    streams = bool(saved.get("dataset_streaming"))
    for name, old in saved.items():
        new = current.get(name)
        if old == new or (name in DATA and not streams) or not (inputs or name in current):
            continue
        reason = "a run resumes only with the settings and data that it began with"
        if name in LENGTH:
            if (longer and _is_longer(name, saved, current)) or _has_no_effect(
                name, saved, current
            ):
                continue
            reason = (
                "a run can only become longer, and only with a learning rate that does not depend on "
                f"its length (lr_scheduler_type {' or '.join(ENDLESS)})"
            )
        changed = [n for n in DATA if name in ROWS.values() and saved.get(n) != current.get(n)]
        causes = ", ".join(f"`{n}` was {saved.get(n)}, is {current.get(n)}" for n in changed)
        raise CheckpointError(
            f"{place}: written with `{name}` {old}, but this run has {new}"
            f"{f' ({causes})' if causes else ''}; {reason}. Use the old value, or start anew in another "
            "output_dir"
        )


def _has_no_effect(name: str, saved: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Whether `max_steps` replaces this option in both runs."""
    steps = [_length(settings, "max_steps") for settings in (saved, current)]
    return name != "max_steps" and min(steps) > 0


def _is_longer(name: str, saved: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Whether a run only gets more steps, and its earlier steps keep their learning rate."""
    old, new = (_length(settings, name) for settings in (saved, current))
    kind, warmup = current.get("lr_scheduler_type"), current.get("warmup_steps") or 0
    independent = kind == "constant" or (kind in ENDLESS and not 0 < warmup < 1)
    return bool(independent and 0 < old < new)


def _length(settings: Mapping[str, Any], name: str) -> float:
    """The value of an option in `LENGTH`; -1 if it is not a number."""
    value = settings.get(name)
    return value if isinstance(value, int | float) else -1
