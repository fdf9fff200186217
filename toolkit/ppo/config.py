"""PPO's settings. Options of TRL 1.12's PPOConfig with the same meaning keep their names."""

# ruff: noqa: RUF009 (`option` makes a dataclass field)
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, TypeVar, get_type_hints

from trl.trainer.base_config import _BaseConfig

T = TypeVar("T")


class Bound(NamedTuple):
    """The range of an option's number, as text and as a test."""

    text: str
    holds: Callable[[float], bool]


# the range, stated in an option's type
Positive = Annotated[T, Bound("above 0", lambda x: x > 0)]
NotNegative = Annotated[T, Bound("at least 0", lambda x: x >= 0)]
AtLeast1 = Annotated[T, Bound("at least 1", lambda x: x >= 1)]
AtLeast2 = Annotated[T, Bound("at least 2", lambda x: x >= 2)]
Share = Annotated[T, Bound("in [0, 1]", lambda x: 0 <= x <= 1)]
Fraction = Annotated[T, Bound("between 0 and 1", lambda x: 0 < x < 1)]
# whether a resumed run must keep the value that the run began with, stated in an option's type
SAME, MAY_CHANGE = "same on resume", "may change on resume"
Same = Annotated[T, SAME]
MayChange = Annotated[T, MAY_CHANGE]
# the same for the options of transformers' TrainingArguments and of TRL's base config
INHERITED = dict.fromkeys(
    """per_device_train_batch_size lr_scheduler_type lr_scheduler_kwargs warmup_steps optim optim_args
    weight_decay adam_beta1 adam_beta2 gradient_accumulation_steps seed""".split(),
    SAME,
) | dict.fromkeys(
    """output_dir num_train_epochs max_steps optim_target_modules average_tokens_across_devices
    max_grad_norm label_smoothing_factor bf16 fp16 bf16_full_eval fp16_full_eval tf32
    activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing
    gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode
    use_liger_kernel liger_kernel_config use_cache neftune_noise_alpha torch_empty_cache_steps
    auto_find_batch_size logging_strategy logging_steps logging_first_step log_on_each_node
    logging_nan_inf_filter include_num_input_tokens_seen log_level log_level_replica disable_tqdm
    report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id
    eval_strategy eval_steps eval_delay per_device_eval_batch_size prediction_loss_only
    eval_on_start eval_do_concat_batches eval_use_gather_object eval_accumulation_steps
    include_for_metrics batch_eval_metrics save_only_model save_strategy save_steps
    save_on_each_node save_total_limit enable_jit_checkpoint push_to_hub hub_token hub_private_repo
    hub_model_id hub_strategy hub_always_push hub_revision load_best_model_at_end ignore_data_skip
    restore_callback_states_from_checkpoint full_determinism data_seed use_cpu accelerator_config
    parallelism_config dataloader_drop_last dataloader_num_workers dataloader_pin_memory
    dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context
    dataloader_in_order label_names train_sampling_strategy length_column_name
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend
    ddp_timeout fsdp fsdp_config deepspeed debug skip_memory_metrics do_train do_eval do_predict
    resume_from_checkpoint local_rank""".split(),
    MAY_CHANGE,
)
# the metrics of an evaluation during training; `eval_metrics` may add others
EVALUATED = tuple(f"objective/{name}" for name in "scores kl rlhf_reward length ended".split())


def option(default: Any, help: str, *choices: str) -> Any:
    """A dataclass field with its help text and its choices."""
    return field(
        default=default, metadata={"help": help} | ({"choices": choices} if choices else {})
    )


@dataclass
class PPOConfig(_BaseConfig):  # type: ignore[misc]
    """Arguments of `PPOTrainer`, on top of transformers' TrainingArguments.

    One optimizer step is one PPO minibatch of `per_device_train_batch_size ×
    gradient_accumulation_steps` episodes. A rollout has `num_mini_batches` of them and is used for
    `num_ppo_epochs` epochs.
    """

    learning_rate: Same[float] = option(3e-6, "Peak learning rate.")
    value_learning_rate: Same[NotNegative[float | None]] = option(
        None, "Peak learning rate of the value; default learning_rate."
    )
    adam_epsilon: Same[float] = option(1e-5, "Adam's epsilon, as usual in RLHF (arXiv:2403.17031).")
    total_episodes: MayChange[AtLeast1[int | None]] = option(
        None, "Episodes to sample; default num_train_epochs × prompts × num_generations."
    )
    num_ppo_epochs: Same[AtLeast1[int]] = option(4, "Passes over each rollout.")
    num_mini_batches: Same[AtLeast1[int]] = option(1, "Minibatches per rollout.")
    response_length: Same[AtLeast1[int]] = option(53, "Maximum tokens of a completion.")
    max_prompt_length: MayChange[AtLeast1[int | None]] = option(
        None, "Drop prompts with more tokens and print how many; default: keep all."
    )
    temperature: Same[Positive[float]] = option(0.7, "Rollout temperature, above 0.")
    kl_coef: Same[NotNegative[float]] = option(0.05, "β: reward units per nat of KL.")
    kl_target: Same[Positive[float | None]] = option(
        None, "Adapt β towards this KL, nats per completion; default: β stays kl_coef."
    )
    kl_horizon: Same[AtLeast1[int]] = option(10_000, "Episodes over which β may change by a fifth.")
    target_kl: Same[Positive[float | None]] = option(
        None, "Skip the remaining optimizer steps on a rollout once approx_kl is above this."
    )
    kl_estimator: Same[str] = option("k1", "Per-token estimator of the KL.", "k1", "k3")
    cliprange: Same[Positive[float]] = option(0.2, "Largest distance of the policy ratio from 1.")
    cliprange_value: Same[Positive[float]] = option(0.2, "Largest distance from the old value.")
    vf_coef: Same[NotNegative[float]] = option(0.1, "Weight of the value loss.")
    gamma: Same[Share[float]] = option(1.0, "Discount per token.")
    lam: Same[Share[float]] = option(0.95, "λ of generalized advantage estimation.")
    whiten_rewards: Same[bool] = option(False, "Scale each rollout's rewards to variance 1.")
    reward_clip: Same[Positive[float | None]] = option(
        None, "Largest absolute score, before penalties."
    )
    length_penalty: Same[float] = option(
        0.0, "Penalty per completion token, subtracted from the score; discourages long answers."
    )
    reward_aggregation: Same[str] = option(
        "mean", "How the scores of an ensemble become one score.", "mean", "min", "mean_minus_std"
    )
    reward_std_coef: Same[NotNegative[float]] = option(1.0, "λ of mean − λ·std over the ensemble.")
    reward_weights: Same[list[float] | None] = option(
        None, "Weights of reward functions; default 1."
    )
    ent_coef: Same[NotNegative[float]] = option(0.0, "Weight of the entropy bonus in the loss.")
    num_generations: Same[AtLeast1[int]] = option(1, "Completions per prompt.")
    value_role: Same[str] = option(
        "adapter",
        "What the value (PPO's critic) is: adapter, which starts from the reward model; zero, a new "
        "adapter; or head, only a head on the policy's trunk (cheapest).",
        "adapter",
        "zero",
        "head",
    )
    ptx_coef: Same[NotNegative[float]] = option(
        0.0, "γ of PPO-ptx: weight of the pretraining loss."
    )
    ptx_batch_size: Same[AtLeast1[int | None]] = option(
        None, "Pretraining texts per optimizer step; default: the number of episodes."
    )
    ptx_max_length: Same[AtLeast2[int]] = option(512, "Maximum tokens of a pretraining text.")
    ema_decay: MayChange[Fraction[float | None]] = option(
        None,
        "Decay of an average of the policy's adapter over the steps, such as 0.9; default: no average. "
        "The run's adapter is then the average, and `last/` holds the policy itself. With "
        "`load_best_model_at_end` they come from the best checkpoint.",
    )
    metric_for_best_model: MayChange[str | None] = option(
        None,
        "Metric by which `load_best_model_at_end` chooses; default objective/rlhf_reward, the held-out "
        "score minus the KL penalty, or, with `kl_target`, objective/scores. A metric of the task is "
        "possible, such as gold/mean.",
    )
    greater_is_better: MayChange[bool | None] = option(
        None, "Whether a higher metric is better; default true, except for a KL or a loss."
    )
    missing_eos_penalty: Same[float | None] = option(
        None, "Penalty subtracted from the score of a completion without an end token."
    )
    local_rollout_forward_batch_size: MayChange[AtLeast1[int]] = option(
        64, "Rows per scoring pass."
    )
    generation_batch_size: MayChange[AtLeast1[int | None]] = option(
        None, "Rows sampled together; default local_rollout_forward_batch_size."
    )
    trust_remote_code: MayChange[bool] = option(
        False, "Run Python code of the model; only on the command line."
    )
    remove_unused_columns: MayChange[bool] = option(
        False, "Must be false: prompts are not model inputs."
    )

    def __post_init__(self) -> None:
        self._set_best_metric()
        super().__post_init__()
        annotations = annotations_of(type(self))
        for f in dataclasses.fields(self):
            value, choices = getattr(self, f.name), f.metadata.get("choices")
            for number in value if isinstance(value, list | tuple) else [value]:
                infinite = isinstance(number, float) and not math.isfinite(number)
                if infinite and number is not f.default:
                    raise ValueError(f"`{f.name}` must be a finite number, got {number}")
            if f.name in PPOConfig.__annotations__ and choices and value not in choices:
                raise ValueError(f"`{f.name}` must be {' or '.join(choices)}, got {value!r}")
            for bound in annotations[f.name]:
                if isinstance(bound, Bound) and value is not None and not bound.holds(value):
                    raise ValueError(f"`{f.name}` must be {bound.text}, got {value}")
        if self.rollout_batch_size % self.num_generations:
            raise ValueError(
                f"`num_generations` {self.num_generations} must divide a rollout of "
                f"{self.rollout_batch_size} episodes"
            )
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError(
                "`kl_coef` must be above 0 with `kl_target`, because `kl_target` multiplies it"
            )
        # the factor is at least 1 − 0.2 · episodes / horizon, which must stay positive
        if self.kl_target is not None and self.kl_horizon < self.rollout_batch_size:
            raise ValueError(
                f"`kl_horizon` must be at least a rollout's {self.rollout_batch_size} episodes, got "
                f"{self.kl_horizon}"
            )
        if self.remove_unused_columns:
            raise ValueError("`remove_unused_columns` must be false: prompts are not model inputs")

    def _set_best_metric(self) -> None:
        """Replace the library's defaults: the loss, and the highest value of any other metric."""
        plateau = self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
        best = self.load_best_model_at_end or self.save_strategy == "best"
        if not self.metric_for_best_model and (best or plateau):
            # an adaptive β differs between checkpoints, and the reward depends on it
            adaptive = self.kl_target is not None
            self.metric_for_best_model = "objective/scores" if adaptive else "objective/rlhf_reward"
        if self.greater_is_better is None and (self.metric_for_best_model or "").endswith("/kl"):
            self.greater_is_better = False

    @property
    def mini_batch_size(self) -> int:
        """Episodes per optimizer step."""
        return int(self.per_device_train_batch_size * self.gradient_accumulation_steps)

    @property
    def rollout_batch_size(self) -> int:
        """Episodes per rollout."""
        return self.mini_batch_size * self.num_mini_batches

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps between two rollouts."""
        return self.num_mini_batches * self.num_ppo_epochs

    @property
    def micro_steps_per_rollout(self) -> int:
        """Forward and backward passes between two rollouts."""
        return self.steps_per_rollout * int(self.gradient_accumulation_steps)


def annotations_of(config: type[PPOConfig]) -> dict[str, tuple[Any, ...]]:
    """The resume rule and the bounds of each option; inherited options have only a rule."""
    hints = get_type_hints(config, include_extras=True)
    own = {f.name: getattr(hints[f.name], "__metadata__", ()) for f in dataclasses.fields(config)}
    return {name: (*stated, INHERITED.get(name)) for name, stated in own.items()}


def same_on_resume(config: type[PPOConfig] = PPOConfig) -> list[str]:
    """The options whose value a resumed run must keep."""
    return [name for name, stated in annotations_of(config).items() if SAME in stated]
