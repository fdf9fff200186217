"""The settings of RLOO and GRPO: TRL's, and those of scoring and evaluation that they share with PPO."""

# ruff: noqa: RUF009 (`option` makes a dataclass field)
from dataclasses import dataclass
from typing import Any, ClassVar

from trl import GRPOConfig as TrlGRPOConfig
from trl import RLOOConfig as TrlRLOOConfig

from toolkit.options.fields import NotNegative, Positive, option
from toolkit.ppo.config import OnlineOptions

CHOICES = {
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}


@dataclass
class GroupOptions(OnlineOptions):
    """The options of RLOO and GRPO that TRL lacks, and other defaults. The properties have PPO's names."""

    with_other_bounds: ClassVar[tuple[str, ...]] = ("beta",)
    # warnings use the names of PPO's options
    named_in_ppo: ClassVar[dict[str, str]] = {
        "kl_coef": "beta",
        "response_length": "max_completion_length",
        "num_mini_batches": "steps_per_generation",
    }
    learning_rate: float = option(
        1e-4, "Peak learning rate; an adapter needs at least ten times that of full fine-tuning."
    )
    temperature: Positive[float] = option(1.0, "Sampling temperature, above 0.")
    num_generations_eval: int | None = option(1, "Evaluations have one answer per prompt.")
    resample_uniform_groups: NotNegative[int] = option(
        0,
        "Times per generation that groups whose rewards are all equal are replaced by groups of other "
        "prompts (dynamic sampling, arXiv:2503.14476); 0: such groups stay.",
    )

    @property
    def response_length(self) -> int:
        """Maximum tokens of a completion."""
        return int(self._trl.max_completion_length)

    @property
    def rollout_batch_size(self) -> int:
        """Completions per generation."""
        return int(self._trl.per_device_train_batch_size * self._trl.steps_per_generation)

    @property
    def local_rollout_forward_batch_size(self) -> int:
        """Rows per scoring pass."""
        return int(self._trl.per_device_train_batch_size)

    @property
    def reward_clip(self) -> None:
        """None: RLOO has `reward_clip_range`, which TRL applies."""

    @property
    def _trl(self) -> Any:
        return self  # the mixin and TRL's config are one object


@dataclass
class RLOOConfig(GroupOptions, TrlRLOOConfig):  # type: ignore[misc]
    """Arguments of `RLOOTrainer`, on top of TRL's."""

    beta: NotNegative[float] = option(0.05, "Weight of the KL penalty; 0: no reference.")


@dataclass
class GRPOConfig(GroupOptions, TrlGRPOConfig):  # type: ignore[misc]
    """Arguments of `GRPOTrainer`, on top of TRL's."""

    beta: NotNegative[float] = option(0.0, "Weight of the KL penalty; 0: no reference.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in CHOICES.items():  # TRL checks them during the first step
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"`{name}` must be {' or '.join(choices)}, got {getattr(self, name)!r}"
                )
