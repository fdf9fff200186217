"""PPO's settings; names are those of TRL 1.12's PPOConfig where the thing is the same."""

import dataclasses
import math
from dataclasses import dataclass, field

from trl.trainer.base_config import _BaseConfig

# names, their lower bound, whether it is excluded
BOUNDS: tuple[tuple[tuple[str, ...], float, bool], ...] = (
    (
        (
            "num_ppo_epochs",
            "num_mini_batches",
            "response_length",
            "max_prompt_length",
            "num_generations",
            "kl_horizon",
            "local_rollout_forward_batch_size",
            "generation_batch_size",
            "total_episodes",
            "ptx_batch_size",
        ),
        1,
        False,
    ),
    (("ptx_max_length",), 2, False),  # one token has nothing before it
    (
        ("temperature", "cliprange", "cliprange_value", "kl_target", "target_kl", "reward_clip"),
        0,
        True,
    ),
    (
        ("kl_coef", "vf_coef", "ptx_coef", "ent_coef", "reward_std_coef", "value_learning_rate"),
        0,
        False,
    ),
)
# what an evaluation while training measures; `eval_metrics` may add to it
EVALUATED = tuple(
    f"objective/{name}" for name in ("scores", "kl", "rlhf_reward", "length", "ended")
)
CHOICES = {
    "kl_estimator": ("k1", "k3"),
    "reward_aggregation": ("mean", "min", "mean_minus_std"),
    "value_role": ("adapter", "zero", "head"),
}


@dataclass
class PPOConfig(_BaseConfig):  # type: ignore[misc]
    """Arguments of `PPOTrainer`, on top of transformers' TrainingArguments.

    One optimizer step is one PPO minibatch of `per_device_train_batch_size ×
    gradient_accumulation_steps` episodes; a rollout is `num_mini_batches` of them, gone through
    `num_ppo_epochs` times.
    """

    learning_rate: float = field(default=3e-6, metadata={"help": "Peak learning rate."})
    value_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the value; default learning_rate."}
    )
    adam_epsilon: float = field(
        default=1e-5, metadata={"help": "Adam's epsilon; 1e-5 is usual in RLHF (arXiv:2403.17031)."}
    )
    total_episodes: int | None = field(
        default=None,
        metadata={
            "help": "Episodes to sample in all; default num_train_epochs × prompts × num_generations."
        },
    )
    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over each rollout."})
    num_mini_batches: int = field(default=1, metadata={"help": "Minibatches per rollout."})
    response_length: int = field(default=53, metadata={"help": "Most tokens of a completion."})
    max_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Leave out prompts of more tokens, saying how many; default: keep all."},
    )
    temperature: float = field(default=0.7, metadata={"help": "Rollout temperature, above 0."})
    kl_coef: float = field(default=0.05, metadata={"help": "β: reward units per nat of KL."})
    kl_target: float | None = field(
        default=None,
        metadata={"help": "Steer β to this KL, nats per completion; default: β stays kl_coef."},
    )
    kl_horizon: int = field(
        default=10_000, metadata={"help": "Episodes over which a steered β may change by a fifth."}
    )
    target_kl: float | None = field(
        default=None,
        metadata={"help": "Skip the rest of a rollout's updates once approx_kl is above this."},
    )
    kl_estimator: str = field(
        default="k1", metadata={"help": "Per-token estimator of the KL.", "choices": ["k1", "k3"]}
    )
    cliprange: float = field(default=0.2, metadata={"help": "Clip of the policy ratio."})
    cliprange_value: float = field(default=0.2, metadata={"help": "Clip around the old value."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    gamma: float = field(default=1.0, metadata={"help": "Discount per token."})
    lam: float = field(default=0.95, metadata={"help": "λ of generalized advantage estimation."})
    whiten_rewards: bool = field(
        default=False, metadata={"help": "Scale each rollout's rewards to variance 1."}
    )
    reward_clip: float | None = field(
        default=None, metadata={"help": "Clip scores to ± this, before penalties."}
    )
    length_penalty: float = field(
        default=0.0, metadata={"help": "Taken from the score per token of the completion."}
    )
    reward_aggregation: str = field(
        default="mean",
        metadata={
            "help": "One score from several reward models.",
            "choices": ["mean", "min", "mean_minus_std"],
        },
    )
    reward_std_coef: float = field(
        default=1.0, metadata={"help": "λ of mean_minus_std: mean − λ·std over the ensemble."}
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weights of the reward functions; default 1 each."}
    )
    ent_coef: float = field(
        default=0.0, metadata={"help": "Weight of the entropy bonus in the policy's loss."}
    )
    num_generations: int = field(
        default=1, metadata={"help": "Completions per prompt; they divide a rollout."}
    )
    value_role: str = field(
        default="adapter",
        metadata={
            "help": "The critic: an adapter started from the reward model, an adapter started from "
            "zero, or only a head on the policy's trunk (cheapest).",
            "choices": ["adapter", "zero", "head"],
        },
    )
    ptx_coef: float = field(
        default=0.0,
        metadata={"help": "γ of PPO-ptx: weight of the pretraining loss in every update."},
    )
    ptx_batch_size: int | None = field(
        default=None,
        metadata={"help": "Pretraining texts per optimizer step; default as many as episodes."},
    )
    ptx_max_length: int = field(
        default=512, metadata={"help": "Pretraining texts are cut at this many tokens."}
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "Average the policy's adapter over the steps with this decay, such as 0.9; the run's "
            "adapter is then the average, and `last/` holds the policy itself (both of the best checkpoint "
            "where that is loaded at the end). Default: no average."
        },
    )
    metric_for_best_model: str | None = field(
        default=None,
        metadata={
            "help": "By what `load_best_model_at_end` chooses; default objective/rlhf_reward, the held-out "
            "score less the KL penalty, and with `kl_target` the score. Also a name of the task's own, "
            "such as gold/mean."
        },
    )
    greater_is_better: bool | None = field(
        default=None,
        metadata={"help": "Whether more of that is better; default yes, but for a KL or a loss."},
    )
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Taken from the score of a completion that did not end."}
    )
    local_rollout_forward_batch_size: int = field(
        default=64, metadata={"help": "Rows per scoring pass of a rollout."}
    )
    generation_batch_size: int | None = field(
        default=None,
        metadata={"help": "Rows sampled together; default local_rollout_forward_batch_size."},
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run Python that comes with the model; on the command line only."},
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: prompts are no model inputs."}
    )

    def __post_init__(self) -> None:
        self._choose_best_by()
        super().__post_init__()
        self._require_finite()
        for names, low, strict in BOUNDS:
            for name in names:
                value = getattr(self, name)
                if value is None:
                    continue
                if not (value > low if strict else value >= low):
                    wanted = f"above {low}" if strict else f"at least {low}"
                    raise ValueError(f"`{name}` must be {wanted}, got {value}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"`{name}` must be {' or '.join(choices)}, got {getattr(self, name)!r}"
                )
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {getattr(self, name)}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must be between 0 and 1, got {self.ema_decay}")
        if self.rollout_batch_size % self.num_generations:
            raise ValueError(
                f"`num_generations` {self.num_generations} must divide a rollout of "
                f"{self.rollout_batch_size} episodes"
            )
        if self.kl_target is not None:
            self._check_steering()
        if self.remove_unused_columns:
            raise ValueError("`remove_unused_columns` must be false: prompts are no model inputs")

    def _require_finite(self) -> None:
        """Refuse NaN and infinities; a command line and a YAML are looked at where they are read."""
        for f in dataclasses.fields(self):
            given = getattr(self, f.name)
            for value in given if isinstance(given, list | tuple) else [given]:
                if isinstance(value, float) and not math.isfinite(value) and given is not f.default:
                    raise ValueError(f"`{f.name}` must be a finite number, got {value}")

    def _choose_best_by(self) -> None:
        """The library's defaults are a loss, and the largest of whatever is named otherwise."""
        led = self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
        chosen = self.load_best_model_at_end or self.save_strategy == "best"
        if not self.metric_for_best_model and (chosen or led):
            # a β that is steered differs from one checkpoint to the next
            steered = self.kl_target is not None
            self.metric_for_best_model = "objective/scores" if steered else "objective/rlhf_reward"
        if self.greater_is_better is None and (self.metric_for_best_model or "").endswith("/kl"):
            self.greater_is_better = False

    def _check_steering(self) -> None:
        """A steered β is multiplied: 0 would stay, and a horizon below a rollout's fifth turn its sign."""
        if self.kl_coef == 0:
            raise ValueError("`kl_target` steers `kl_coef` by a factor, so it must not start at 0")
        if self.kl_horizon < self.rollout_batch_size:
            raise ValueError(
                f"`kl_horizon` must be at least a rollout's {self.rollout_batch_size} episodes, got "
                f"{self.kl_horizon}"
            )

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
