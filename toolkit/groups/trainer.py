"""RLOO and GRPO on one base: TRL's trainers, with policy, reference and rewards as adapters on it.

TRL computes log-probabilities, advantages, losses and metrics. Sampling and scoring are those of PPO.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerState
from trl import GRPOTrainer as TrlGRPOTrainer
from trl import RLOOTrainer as TrlRLOOTrainer
from trl.trainer.utils import RepeatSampler

from toolkit.models.passes import Batch, policy_pass
from toolkit.models.roles import POLICY, Roles
from toolkit.models.runtime import disable_dropout
from toolkit.models.tokenizer import pad_by_eos
from toolkit.models.weight_files import save_tensors
from toolkit.ppo.checkpoints import shared_settings
from toolkit.ppo.evaluation import EvalMetrics
from toolkit.ppo.online import OnlineTrainer
from toolkit.ppo.prompts import encode_prompts
from toolkit.ppo.requirements import check_shared_requirements, require
from toolkit.ppo.rollout import RolloutMaker, RolloutScores, read_rewards
from toolkit.reward.functions import RewardFunction
from toolkit.runs.run import write_json
from toolkit.trainers.checkpoints import WholeCheckpoints
from toolkit.trainers.supervised import WithReference
from toolkit.trainers.totals import read_state

OPTION = "max_completion_length"
STATE_FILE, BUFFER_FILE = "group_state.json", "generated.safetensors"
STATE = {"micro_step": int, "buffered": int}
# TRL's options that change how completions are sampled, with the values at which the whole distribution is
SAMPLING: dict[str, tuple[Any, ...]] = {
    "top_p": (1.0,),
    "top_k": (0,),
    "min_p": (None, 0.0),
    "repetition_penalty": (1.0,),
    "generation_kwargs": (None, {}),
    "cache_implementation": (None,),
}


@dataclass(frozen=True)
class Drawn:
    """Prompts, their sampled completions as token ids, and the scores; `rows` are the dataset's."""

    rows: list[dict[str, Any]]
    completions: list[list[int]]
    scores: RolloutScores


class EpochSampler(RepeatSampler):  # type: ignore[misc]
    """TRL's sampler; the order in an epoch depends on its number only, so that a run can resume."""

    def set_epoch(self, epoch: int) -> None:
        """Draw the next order for this epoch."""
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) * 1_000_003 + epoch)


class GroupTrainer(OnlineTrainer, WithReference, WholeCheckpoints):
    """Mixin for TRL's trainers on groups of answers.

    Args:
        roles: a trainable policy (`default`), of which TRL adds a frozen copy as the reference, and frozen
            reward roles.
        args: settings.
        processing_class: the tokenizer.
        train_dataset: rows with a `prompt`, text or messages; `reward_funcs` get the other columns.
        eval_dataset: held-out rows; see `evaluate`.
        reward_funcs: one or more Python functions with TRL's signature. Their sum, weighted by
            `args.reward_weights`, is added to the reward models' score.
        eval_metrics: further metrics of an evaluation; see `PPOTrainer`.
        callbacks: further callbacks.
        optimizers: optimizer and schedule to use instead of those that `args` describes.
    """

    length_option = OPTION
    _metrics: Any
    _step: int
    _buffered_inputs: list[dict[str, Any]] | None
    num_generations: int

    def __init__(
        self,
        roles: Roles,
        args: Any,
        *,
        processing_class: PreTrainedTokenizerBase,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        reward_funcs: RewardFunction | Sequence[RewardFunction] = (),
        eval_metrics: EvalMetrics | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: Any = (None, None),
    ) -> None:
        functions = [reward_funcs] if callable(reward_funcs) else list(reward_funcs)
        has_metrics = eval_metrics is not None
        check_shared_requirements(
            roles, args, processing_class, train_dataset, functions, has_eval_metrics=has_metrics
        )
        pad_by_eos(processing_class)
        assert roles.model is not None
        disable_dropout(roles.model)  # with dropout the ratio is not 1 before the first update
        train, held_out = (
            rows and encode_prompts(rows, processing_class, roles, args, option=OPTION)
            for rows in (train_dataset, eval_dataset)
        )
        assert train is not None
        self.roles, self.base_fingerprint = roles, roles.fingerprint
        self.functions, self.eval_metrics = functions, eval_metrics
        config = copy.copy(args)
        config.reward_weights = None  # the columns of rewards are known after the first generation
        super().__init__(
            roles.model,
            reward_funcs=_not_called,
            args=config,
            processing_class=processing_class,
            train_dataset=train,
            eval_dataset=held_out,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        config.reward_weights = args.reward_weights
        self.rollouts = RolloutMaker(roles, config, processing_class, functions, lambda: self.state)
        self.eos_token_ids = self.rollouts.stop
        self._drawn: Drawn | None = None
        self._samples_as_trl = any(
            getattr(args, name) not in plain for name, plain in SAMPLING.items()
        )

    @property
    def kl_weight(self) -> float:
        """The option `beta`."""
        return float(self.args.beta)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train as the library's trainer does.

        Raises: ConfigError also for fewer prompts than a generation takes.
        """
        prompts = self.args.generation_batch_size // self.num_generations
        require(
            len(self.train_dataset) >= prompts,
            f"there are {len(self.train_dataset)} training prompts, but a generation takes {prompts}; "
            "raise `num_generations`, or lower `generation_batch_size` or `steps_per_generation`",
        )
        self.check_base()
        return super().train(resume_from_checkpoint, **kwargs)

    # ---- sampling and scoring

    def draw(self, rows: list[dict[str, Any]]) -> Drawn:
        """Sample and score a completion for each row.

        Groups whose rewards are all equal are replaced at most `resample_uniform_groups` times.
        """
        start = time.perf_counter()
        drawn = self._sample_and_score(rows)
        uniform = self._uniform_groups(drawn)
        metrics = {"groups/uniform": len(uniform) * self.num_generations / len(rows)}
        replaced = 0
        for _ in range(self.args.resample_uniform_groups):
            fresh = self._fresh_rows(drawn, len(uniform))
            if not fresh:
                break
            replaced += len(fresh)
            drawn = self._with_groups(drawn, uniform[: len(fresh)], fresh)
            uniform = self._uniform_groups(drawn)
        if self.args.resample_uniform_groups:
            left = len(uniform) * self.num_generations / len(rows)
            metrics |= {"groups/replaced": float(replaced), "groups/uniform_left": left}
        scores = drawn.scores
        metrics |= scores.metrics | {
            "objective/scores": float(scores.raw.mean()),
            "objective/scores_std": float(scores.raw.std(unbiased=False)),
            "objective/penalised_scores": float(scores.penalised.mean()),
            "objective/penalties_std": float(scores.penalties.std(unbiased=False)),
            "objective/length": sum(map(len, drawn.completions)) / len(rows),
            "objective/ended": float(scores.ended.float().mean()),
            "time/rollout": time.perf_counter() - start,
        }
        for name, value in metrics.items():
            if not name.startswith("rewards/"):  # TRL logs the mean of each reward
                self._metrics["train"][name].append(value)
        return drawn

    def _sample_and_score(self, rows: list[dict[str, Any]]) -> Drawn:
        prompts = [row["prompt_ids"] for row in rows]
        if self._samples_as_trl:
            generated = super()._generate_single_turn(*self._generate_arguments(prompts))  # type: ignore[misc]
            completions = generated[0] if isinstance(generated, tuple) else generated
        with self.sampling_mode():
            if not self._samples_as_trl:
                completions = self.rollouts.sample(prompts).completions
            model_scores = read_rewards(
                self.roles,
                prompts,
                completions,
                pad_id=self.rollouts.pad_id,
                batch_size=self.args.local_rollout_forward_batch_size,
            )
            return Drawn(rows, completions, self.rollouts.score(rows, completions, model_scores))

    def _generate_arguments(self, prompts: list[list[int]]) -> tuple[Any, ...]:
        """The arguments of TRL's `_generate_single_turn`."""
        return prompts, None, {}

    def _uniform_groups(self, drawn: Drawn) -> list[int]:
        """The numbers of the groups whose rewards are all equal."""
        groups = drawn.scores.penalised.view(-1, self.num_generations)
        spread = groups.amax(1) - groups.amin(1)
        equal = torch.isclose(spread, torch.zeros_like(spread))
        return [int(number) for number in equal.nonzero().flatten()]

    def _fresh_rows(self, drawn: Drawn, most: int) -> list[dict[str, Any]]:
        """Random rows with other prompts than those drawn, at most `most`."""
        used = {tuple(row["prompt_ids"]) for row in drawn.rows}
        fresh: list[dict[str, Any]] = []
        for index in torch.randperm(len(self.train_dataset)).tolist():
            if len(fresh) == most:
                break
            row = self.train_dataset[index]
            if tuple(row["prompt_ids"]) not in used:
                fresh.append(row)
                used.add(tuple(row["prompt_ids"]))
        return fresh

    def _with_groups(self, drawn: Drawn, numbers: list[int], rows: list[dict[str, Any]]) -> Drawn:
        """Replace groups by new answers to other rows."""
        size = self.num_generations
        new = self._sample_and_score([row for row in rows for _ in range(size)])
        return _replaced(drawn, new, [size * n + i for n in numbers for i in range(size)])

    # ---- TRL's hooks

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._drawn = self.draw(inputs)
        result: dict[str, Any] = super()._generate_and_score_completions(self._drawn.rows)  # type: ignore[misc]
        self._drawn = None
        return result

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        assert self._drawn is not None
        return [row["prompt_ids"] for row in self._drawn.rows], None, {}

    def _calculate_rewards(self, *_: Any) -> Tensor:
        """`(B, F)`: the reward models' score, each function's reward, and the negative penalties."""
        assert self._drawn is not None
        scores, args = self._drawn.scores, self.args
        columns, weights = dict(scores.sources), [1.0] * len(scores.sources)
        if self.functions and args.reward_weights is not None:
            weights[len(columns) - len(self.functions) :] = args.reward_weights
        if args.missing_eos_penalty or args.length_penalty:
            columns |= {"penalties": -scores.penalties}
            weights.append(1.0)
        self.reward_func_names, self.reward_funcs = [*columns], [_not_called] * len(columns)
        self.reward_weights = torch.tensor(weights)
        return torch.stack([*columns.values()], 1)

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """TRL's method with the passes of PPO, which compute no padding; 0 where masked."""
        if compute_aux_loss or getattr(self.args, "cast_lm_head_to_fp32", False):
            of_trl: tuple[Tensor, Tensor | None, Tensor | None]
            of_trl = super()._get_per_token_logps_and_entropies(  # type: ignore[misc]
                model, input_ids, attention_mask, logits_to_keep, batch_size,
                compute_entropy, compute_aux_loss, **others,
            )  # fmt: skip
            return of_trl
        rows = range(0, len(input_ids), batch_size or len(input_ids))
        attention, passes = attention_mask.bool(), []
        for start in rows:
            some = slice(start, start + rows.step)
            batch = Batch(input_ids[some], attention[some], attention[some, -logits_to_keep:])
            with self.accelerator.autocast():
                passes.append(
                    policy_pass(
                        model,
                        batch,
                        temperature=self.args.temperature,
                        entropy=compute_entropy,
                        entropy_gradient=getattr(self, "_entropy_bonus_enabled", False),
                    )
                )
        logprobs = torch.cat([one.logprobs for one in passes])
        entropies = [one.entropy for one in passes if one.entropy is not None]
        return logprobs, torch.cat(entropies) if entropies else None, None

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler[int]:
        args = self.args
        return EpochSampler(
            self.train_dataset if dataset is None else dataset,
            mini_repeat_count=args.num_generations,
            batch_size=args.generation_batch_size // args.num_generations,
            repeat_count=args.num_iterations * args.steps_per_generation,
            shuffle=args.shuffle_dataset,
            seed=args.seed,
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the KL and the entropy per answer to TRL's metrics, which are means per token."""
        means = {
            name: sum(values) / len(values)
            for name, values in self._metrics["train"].items()
            if values and name in ("kl", "entropy", "objective/length")
        }
        if self.model.training and "objective/length" in means:
            for name in means.keys() & {"kl", "entropy"}:
                logs[f"objective/{name}"] = means[name] * means["objective/length"]
        super().log(logs, start_time)

    def log_evaluation(self, metrics: dict[str, float]) -> None:
        """Log an evaluation; TRL adds the metrics of the training in training mode only."""
        self.model.eval()
        self.log(metrics)
        self.model.train()

    # ---- checkpoints

    @property
    def settings(self) -> dict[str, Any]:
        """The library's settings, plus reward functions, prompts and frozen weights."""
        prompts = self.train_dataset["prompt_ids"]
        return super().settings | shared_settings(self.roles, self.functions, prompts)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        self.roles.save(POLICY, folder)
        self.processing_class.save_pretrained(folder)
        if not folder.name.startswith("checkpoint-"):
            return
        every = self.args.steps_per_generation * self.args.num_iterations
        is_open = self._buffered_inputs is not None and self._step % every != 0
        buffered = self._buffered_inputs if is_open and self._buffered_inputs is not None else []
        write_json(folder / STATE_FILE, {"micro_step": self._step, "buffered": len(buffered)})
        tensors = {
            f"{i}.{name}": x.clone() for i, part in enumerate(buffered) for name, x in part.items()
        }
        if tensors:
            save_tensors(tensors, folder / BUFFER_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.roles.load(POLICY, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        self.roles.load(POLICY, Path(str(self.state.best_model_checkpoint)))

    def begin(self, state: TrainerState) -> None:
        """Continue with the checkpoint's completions if they are still in use."""
        super().begin(state)
        self._step, self._buffered_inputs = 0, None
        if self._resumed is None:
            return
        saved = read_state(self._resumed / STATE_FILE, STATE)
        self._step = saved["micro_step"]
        if saved["buffered"]:
            parts: list[dict[str, Any]] = [{} for _ in range(saved["buffered"])]
            for key, tensor in load_file(self._resumed / BUFFER_FILE).items():
                number, name = key.split(".", 1)
                parts[int(number)][name] = tensor.to(self.args.device)
            self._buffered_inputs = parts


class RLOOTrainer(GroupTrainer, TrlRLOOTrainer):  # type: ignore[misc]
    """REINFORCE leave-one-out; see `GroupTrainer` for the arguments.

    Source: Ahmadian et al. 2024, arXiv:2402.14740.
    """

    def _generate_single_turn(self, *_: Any) -> list[list[int]]:
        assert self._drawn is not None
        return self._drawn.completions


class GRPOTrainer(GroupTrainer, TrlGRPOTrainer):  # type: ignore[misc]
    """Group relative policy optimization; see `GroupTrainer` for the arguments.

    Source: Shao et al. 2024, arXiv:2402.03300.
    """

    def _generate_single_turn(self, *_: Any) -> tuple[list[list[int]], None]:
        assert self._drawn is not None
        return self._drawn.completions, None

    def _generate_arguments(self, prompts: list[list[int]]) -> tuple[Any, ...]:
        return prompts, None, {}, self.num_generations


def _not_called(**_: Any) -> list[float]:
    """Stands for the rewards, of which TRL needs the number; `_calculate_rewards` returns them."""
    raise NotImplementedError


def _replaced(drawn: Drawn, new: Drawn, places: list[int]) -> Drawn:
    """`drawn` with the completions of `new` at these places."""
    rows, completions, scores = list(drawn.rows), list(drawn.completions), drawn.scores
    for place, row, ids in zip(places, new.rows, new.completions, strict=True):
        rows[place], completions[place] = row, ids

    def put(old: Tensor, other: Tensor) -> Tensor:
        return old.index_copy(0, torch.tensor(places, device=old.device), other)

    return Drawn(
        rows,
        completions,
        replace(
            scores,
            raw=put(scores.raw, new.scores.raw),
            penalties=put(scores.penalties, new.scores.penalties),
            penalised=put(scores.penalised, new.scores.penalised),
            ended=put(scores.ended, new.scores.ended),
            sources={n: put(xs, new.scores.sources[n]) for n, xs in scores.sources.items()},
        ),
    )
