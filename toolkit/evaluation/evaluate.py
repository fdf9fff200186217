"""Samples the answers of every checkpoint on one base, scores them, and compares them with SFT."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from toolkit.data.encoding import Prompt
from toolkit.errors import ConfigError, DatasetError
from toolkit.evaluation.answers import Answers, AnswerScorer
from toolkit.evaluation.best_of_n import best_of_n_kl
from toolkit.evaluation.gold import world_prompts
from toolkit.evaluation.metrics import MAIN
from toolkit.evaluation.overoptimization import BEST_OF_N
from toolkit.evaluation.scoring import evaluating, lm_loss
from toolkit.models.roles import REWARD, Roles
from toolkit.reward.functions import RewardFunction
from toolkit.sampling.generation import Completion
from toolkit.sampling.settings import Sampling

MAIN_TEMPERATURE = 0.7  # at T = 1, most of a win can come from a sharper distribution


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint: its role's name (None for the bare base), and the recipe that trained it."""

    role: str | None
    recipe: str


@dataclass(frozen=True)
class Measured:
    """A checkpoint's answers by sampling, kl in nats per completion, lm_loss in nats per token.

    `base_perplexity` is the perplexity of the main sampling's answers under the bare base: exp of the mean
    −log p per token at temperature 1. None if every answer is empty.
    """

    recipe: str
    answers: dict[str, Answers]
    kl_to_sft: list[float] | None
    lm_loss: float | None
    base_perplexity: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate_all`; `sft` names the checkpoint that the others are compared with.

    `few_shot` is the number of demonstrations before each prompt of the bare base.
    """

    prompts: list[Prompt]
    sft: str
    seed: int
    sampling: Sampling
    checkpoints: dict[str, Measured]
    few_shot: int = 0


def evaluate_all(
    roles: Roles,
    tokenizer: PreTrainedTokenizerBase,
    checkpoints: Mapping[str, Checkpoint],
    prompts: Sequence[Prompt],
    *,
    sampling: Sampling | None = None,
    others: Mapping[str, Sampling] | None = None,
    sft: str = "sft",
    rewards: Sequence[str] = (REWARD,),
    reward_funcs: Sequence[RewardFunction] = (),
    columns: Mapping[str, Sequence[Any]] | None = None,
    few_shot: Sequence[tuple[str, str]] = (),
    texts: Sequence[str] = (),
    best_of: Sequence[int] = (),
    seed: int = 0,
    batch_size: int = 32,
    generation_batch_size: int = 32,
    show_progress: bool = False,
) -> Evaluation:
    """Sample, score and compare checkpoints whose adapters are attached to one base.

    Args:
        checkpoints: display name -> checkpoint; the others are compared with `sft`.
        prompts: texts or messages.
        sampling: the main sampling, used for all checkpoints; T = 0.7 by default.
        others: further samplings by name; by default none, or T = 1 and greedy if all prompts are questions
            of the embedded world.
        rewards: the roles whose mean score is the proxy, each with a head; empty without a reward model.
        reward_funcs: functions whose sum is added to the proxy, as in PPO (docs/ppo.md).
        columns: further columns of the prompts' rows, which the functions get.
        few_shot: (question, answer) turns before each prompt of the bare base, which was never trained to
            answer. The base's answers are scored as answers to the prompt without these turns.
        texts: held-out pretraining documents for lm_loss.
        best_of: also measure best-of-n of `sft` for each of these n: the answer with the best score of n.
        generation_batch_size: answers sampled together.
        seed: set before each checkpoint and sampling, so that all of them draw the same numbers.
        show_progress: show a progress bar with the checkpoint's name.

    Returns: the measurements. The global random state, modes and active adapters are restored.
    Raises: ConfigError for an unknown `sft` or prompts that leave no room for an answer,
        DatasetError without prompts, RewardError for a result that is no finite number.
    """
    if sft not in checkpoints:
        known = ", ".join(checkpoints) or "none"
        raise ConfigError(f"`sft` is {sft!r}, but no checkpoint has this name; use one of {known}")
    if best_of and not rewards and not reward_funcs:
        raise ConfigError("`best_of` needs a score: name a `reward_model` or `reward_funcs`")
    if not prompts:
        raise DatasetError("the evaluation got no prompts; pass at least one")
    main = sampling or Sampling(temperature=MAIN_TEMPERATURE)
    if others is None:
        others = {} if world_prompts(prompts) is None else other_samplings(main)
    samplings = {MAIN: main, **others}
    scorer = AnswerScorer(roles, tokenizer, prompts, few_shot, batch_size)
    bare = any(checkpoint.role is None for checkpoint in checkpoints.values())
    scorer.require_room(max(s.max_new_tokens for s in samplings.values()), bare=bare)
    most = max(best_of, default=0)
    steps = ((1 + len(samplings)) * len(checkpoints) + most) * len(prompts)
    with (
        evaluating(roles),
        torch.random.fork_rng(),
        tqdm(total=steps, disable=None if show_progress else True, unit="answer") as bar,
    ):
        completions: dict[str, dict[str, list[Completion]]] = {}
        for name, checkpoint in checkpoints.items():
            bar.set_description(f"{name}: answers")
            completions[name] = {}
            for key, s in samplings.items():
                completions[name][key] = scorer.sample(
                    checkpoint.role, s, seed=seed, batch_size=generation_batch_size
                )
                bar.update(len(prompts))
        every = [rows for by_key in completions.values() for rows in by_key.values()]
        candidates: list[list[Completion]] = []  # each list has an answer to each prompt
        if best_of:
            bar.set_description(f"best of {most}: answers")
            drawn = scorer.sample(  # other numbers than those of SFT's answers
                checkpoints[sft].role, main, seed=seed + 1, batch_size=generation_batch_size, n=most
            )
            candidates = [drawn[i * len(prompts) :][: len(prompts)] for i in range(most)]
            bar.update(len(drawn))
        bar.set_description("scores")
        every += candidates
        proxy = scorer.score(every, rewards, reward_funcs, columns or {})
        measured = {}
        for name, checkpoint in checkpoints.items():
            bar.set_description(f"{name}: log-probabilities")
            answers = {key: scorer.answers(rows, proxy) for key, rows in completions[name].items()}
            rows, role = completions[name][MAIN], checkpoint.role
            kl = scorer.kl(rows, role, checkpoints[sft].role, main.temperature)
            loss = lm_loss(roles, tokenizer, texts, role=role, batch_size=batch_size)
            surprise = scorer.base_perplexity(rows)
            measured[name] = Measured(checkpoint.recipe, answers, kl, loss, surprise)
            bar.update(len(prompts))
        for n in best_of:
            answers = {MAIN: scorer.best(candidates[:n], proxy)}
            kl = [best_of_n_kl(n)] * len(prompts)
            surprise = scorer.base_perplexity(answers[MAIN].completions)
            measured[f"best_of_{n}"] = Measured(BEST_OF_N, answers, kl, None, surprise)
    return Evaluation(list(prompts), sft, seed, main, measured, len(few_shot))


def other_samplings(main: Sampling) -> dict[str, Sampling]:
    """The samplings T = 1 and greedy, without the main sampling."""
    samplings = {"1.0": replace(main, temperature=1.0), "0": replace(main, temperature=0.0)}
    return {key: s for key, s in samplings.items() if s != main}
