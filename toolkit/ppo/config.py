"""The settings of PPO, and those that it shares with RLOO and GRPO.

Options of TRL 1.12's PPOConfig with the same meaning keep their names.
"""

# ruff: noqa: RUF009 (`option` makes a dataclass field)
from dataclasses import dataclass
from typing import Any

from trl.trainer.base_config import _BaseConfig

from toolkit.options.fields import (
    AtLeast1,
    AtLeast2,
    Fraction,
    NotNegative,
    Positive,
    Share,
    check_options,
    option,
)

# the metrics of an evaluation during training; `eval_metrics` may add others
EVALUATED = tuple(
    f"objective/{name}" for name in "scores kl penalised_scores rlhf_reward length ended".split()
)


@dataclass
class OnlineOptions:
    """The options that PPO, RLOO and GRPO share: how answers are scored, and how they are evaluated.

    A mixin for a config of transformers or TRL.
    """

    max_prompt_length: AtLeast1[int | None] = option(
        None, "Drop prompts with more tokens and print how many; default: keep all."
    )
    length_penalty: float = option(
        0.0, "Penalty per completion token, subtracted from the score; discourages long answers."
    )
    missing_eos_penalty: float | None = option(
        None, "Penalty subtracted from the score of a completion without an end token."
    )
    reward_aggregation: str = option(
        "mean", "How the scores of an ensemble become one score.", "mean", "min", "mean_minus_std"
    )
    reward_std_coef: NotNegative[float] = option(1.0, "λ in mean − λ·std over the ensemble.")
    metric_for_best_model: str | None = option(
        None,
        "Metric by which `load_best_model_at_end` chooses; default objective/rlhf_reward, the "
        "held-out score minus the KL penalty; with `kl_target`, objective/scores. A metric of "
        "`eval_metrics`, such as gold/mean, is also allowed.",
    )
    greater_is_better: bool | None = option(
        None, "Whether a higher metric is better; default: true, but false for a KL or loss."
    )
    eval_on_start: bool | None = option(
        None, "Evaluate before the first rollout; default: if `eval_strategy` is set."
    )

    def __post_init__(self) -> None:
        config: Any = self  # the mixin and the library's config are one object
        self._set_best_metric(config)
        super().__post_init__()  # type: ignore[misc]
        if self.eval_on_start is None:  # so that curves of held-out metrics begin before training
            self.eval_on_start = config.eval_strategy != "no"
        own = [
            name
            for kind in type(self).__mro__
            if kind.__module__.startswith("toolkit.")
            for name in vars(kind).get("__annotations__", ())
        ]
        check_options(self, choices_of=own)
        if config.remove_unused_columns:
            raise ValueError("`remove_unused_columns` must be false: prompts are not model inputs")

    def _set_best_metric(self, config: Any) -> None:
        """Set our default metric, and whether higher is better, instead of the library's defaults."""
        plateau = config.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
        best = config.load_best_model_at_end or config.save_strategy == "best"
        if not self.metric_for_best_model and (best or plateau):
            # an adaptive β differs between checkpoints, and the reward depends on it
            adaptive = getattr(config, "kl_target", None) is not None
            self.metric_for_best_model = "objective/scores" if adaptive else "objective/rlhf_reward"
        if self.greater_is_better is None and (self.metric_for_best_model or "").endswith("/kl"):
            self.greater_is_better = False


@dataclass
class PPOConfig(OnlineOptions, _BaseConfig):  # type: ignore[misc]
    """Arguments of `PPOTrainer`, on top of transformers' TrainingArguments.

    One optimizer step is one PPO minibatch of `per_device_train_batch_size ×
    gradient_accumulation_steps` episodes. A rollout has `num_mini_batches` of them and is used for
    `num_ppo_epochs` epochs.
    """

    learning_rate: float = option(
        1e-4, "Peak learning rate; an adapter needs at least ten times that of full fine-tuning."
    )
    value_learning_rate: NotNegative[float | None] = option(
        None, "Peak learning rate of the value (the critic); default: learning_rate."
    )
    adam_epsilon: float = option(1e-5, "Adam's epsilon; 1e-5 is usual in RLHF (arXiv:2403.17031).")
    total_episodes: AtLeast1[int | None] = option(
        None, "Episodes to sample; default num_train_epochs × prompts × num_generations."
    )
    gradient_accumulation_steps: int = option(
        8, "Passes per optimizer step; with 8 episodes per pass, a rollout has 64 (docs/ppo.md)."
    )
    num_ppo_epochs: AtLeast1[int] = option(4, "Passes over each rollout.")
    num_mini_batches: AtLeast1[int] = option(1, "Minibatches per rollout.")
    response_length: AtLeast1[int] = option(53, "Maximum tokens of a completion.")
    temperature: Positive[float] = option(0.7, "Rollout temperature, above 0.")
    kl_coef: NotNegative[float] = option(0.05, "β: reward units per nat of KL.")
    kl_target: Positive[float | None] = option(
        None, "Adapt β to reach this KL, in nats per completion; default: β is kl_coef."
    )
    kl_horizon: AtLeast1[int] = option(10_000, "Episodes over which β may change by a fifth.")
    target_kl: Positive[float | None] = option(
        None, "Skip a rollout's remaining optimizer steps once approx_kl exceeds this."
    )
    kl_estimator: str = option("k1", "Per-token estimator of the KL.", "k1", "k3")
    cliprange: Positive[float] = option(0.2, "Largest distance of the policy ratio from 1.")
    cliprange_value: Positive[float] = option(0.2, "Largest distance from the old value.")
    vf_coef: NotNegative[float] = option(0.1, "Weight of the value loss.")
    gamma: Share[float] = option(1.0, "Discount per token.")
    lam: Share[float] = option(0.95, "λ of generalized advantage estimation.")
    whiten_rewards: bool = option(False, "Scale each rollout's rewards to variance 1.")
    reward_clip: Positive[float | None] = option(None, "Largest absolute score, before penalties.")
    reward_weights: list[float] | None = option(None, "Weights of reward functions; default 1.")
    ent_coef: NotNegative[float] = option(0.0, "Weight of the entropy bonus in the loss.")
    num_generations: AtLeast1[int] = option(1, "Completions per prompt.")
    value_role: str = option(
        "adapter",
        "What the value (PPO's critic) is: adapter, which starts from the reward model; zero, a new "
        "adapter; or head, only a head on the policy's trunk (cheapest).",
        "adapter",
        "zero",
        "head",
    )
    ptx_coef: NotNegative[float] = option(0.0, "γ of PPO-ptx: weight of the pretraining loss.")
    ptx_batch_size: AtLeast1[int | None] = option(
        None, "Pretraining texts per optimizer step; default: the number of episodes."
    )
    ptx_max_length: AtLeast2[int] = option(512, "Maximum tokens of a pretraining text.")
    ema_decay: Fraction[float | None] = option(
        None,
        "Decay of the moving average of the policy's adapter, such as 0.9; default: no average. "
        "With it, the run's adapter is the average, and `last/` holds the policy itself. With "
        "`load_best_model_at_end`, both come from the best checkpoint.",
    )
    local_rollout_forward_batch_size: AtLeast1[int] = option(64, "Rows per scoring pass.")
    generation_batch_size: AtLeast1[int | None] = option(
        None, "Rows sampled together; default local_rollout_forward_batch_size."
    )
    trust_remote_code: bool = option(
        False, "Run Python code of the model; only on the command line."
    )
    remove_unused_columns: bool = option(False, "Must be false: prompts are not model inputs.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rollout_batch_size % self.num_generations:
            raise ValueError(
                f"`num_generations` {self.num_generations} must divide a rollout of "
                f"{self.rollout_batch_size} episodes"
            )
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError(
                "`kl_coef` must be above 0 with `kl_target`, which adapts β by multiplying it"
            )
        # the factor is at least 1 − 0.2 · episodes / horizon, which must stay positive
        if self.kl_target is not None and self.kl_horizon < self.rollout_batch_size:
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
