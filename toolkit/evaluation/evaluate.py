"""Samples the answers of every checkpoint on one base and scores them row by row."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from toolkit.data.encoding import Prompt, encode_prompt
from toolkit.errors import ConfigError, DatasetError
from toolkit.evaluation.best_of_n import best_of_n_kl, is_usable
from toolkit.evaluation.metrics import MAIN, behaviour_rates, rounded
from toolkit.evaluation.scoring import evaluating, pad_id, score_answers, summed_logprobs
from toolkit.models.roles import REWARD, Roles
from toolkit.models.tokenizer import stop_ids
from toolkit.reward.functions import RewardFunction
from toolkit.sampling.generation import Completion, check_sampling, complete
from toolkit.sampling.settings import Sampling
from toolkit.world.gold import Features, features
from toolkit.world.questions import parse

MAIN_TEMPERATURE = 0.7  # at T = 1, most of a win can come from a sharper distribution
GOLD_RATES = ("correct", "hallucinated", "harmful_compliance", "over_refusal", "polite")
Scores = dict[tuple[int, tuple[int, ...]], float]  # (prompt's row, token ids) -> score


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint: its role's name (None for the bare base), and the recipe that trained it."""

    role: str | None
    recipe: str


@dataclass(frozen=True)
class Answers:
    """One checkpoint's answers under one sampling setting, one row per prompt.

    `proxy` is the score: the reward model's (the mean score of an ensemble) plus the sum of the reward
    functions, or None without any of these. `features` is None for prompts outside the embedded world.
    """

    completions: list[Completion]
    proxy: list[float] | None
    features: list[Features] | None

    @property
    def gold(self) -> list[float] | None:
        """The true utility of each answer."""
        return None if self.features is None else [f.utility for f in self.features]


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
    bench = _Bench(roles, tokenizer, prompts, few_shot, batch_size)
    bare = any(checkpoint.role is None for checkpoint in checkpoints.values())
    bench.require_room(max(s.max_new_tokens for s in samplings.values()), bare=bare)
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
                completions[name][key] = bench.sample(
                    checkpoint, s, seed=seed, batch_size=generation_batch_size
                )
                bar.update(len(prompts))
        every = [rows for by_key in completions.values() for rows in by_key.values()]
        candidates: list[list[Completion]] = []  # each list has an answer to each prompt
        if best_of:
            bar.set_description(f"best of {most}: answers")
            drawn = bench.sample(  # other numbers than those of SFT's answers
                checkpoints[sft], main, seed=seed + 1, batch_size=generation_batch_size, n=most
            )
            candidates = [drawn[i * len(prompts) :][: len(prompts)] for i in range(most)]
            bar.update(len(drawn))
        bar.set_description("scores")
        every += candidates
        proxy = bench.score(every, rewards, reward_funcs, columns or {})
        measured = {}
        for name, checkpoint in checkpoints.items():
            bar.set_description(f"{name}: log-probabilities")
            answers = {key: bench.answers(rows, proxy) for key, rows in completions[name].items()}
            kl = bench.kl(completions[name][MAIN], checkpoint, checkpoints[sft], main.temperature)
            loss = lm_loss(roles, tokenizer, texts, role=checkpoint.role, batch_size=batch_size)
            surprise = bench.base_perplexity(completions[name][MAIN])
            measured[name] = Measured(checkpoint.recipe, answers, kl, loss, surprise)
            bar.update(len(prompts))
        for n in best_of:
            answers = {MAIN: bench.best(candidates[:n], proxy)}
            kl = [best_of_n_kl(n)] * len(prompts)
            surprise = bench.base_perplexity(answers[MAIN].completions)
            measured[f"best_of_{n}"] = Measured("best-of-n", answers, kl, None, surprise)
    return Evaluation(list(prompts), sft, seed, main, measured, len(few_shot))


def other_samplings(main: Sampling) -> dict[str, Sampling]:
    """The samplings T = 1 and greedy, without the main sampling."""
    samplings = {"1.0": replace(main, temperature=1.0), "0": replace(main, temperature=0.0)}
    return {key: s for key, s in samplings.items() if s != main}


def role_ids(names: Iterable[str]) -> dict[str, str]:
    """Display name -> a valid PEFT adapter name; a display name may contain any characters."""
    return {name: f"checkpoint_{number}" for number, name in enumerate(names)}


def lm_loss(
    roles: Roles,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    role: str | None,
    batch_size: int = 32,
    max_tokens: int = 1024,
) -> float | None:
    """Mean −log p per token of documents, in nats; None if no document has two tokens.

    A document starts with the BOS token if the tokenizer has one, and is truncated to `max_tokens`.
    """
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    documents = [encode_prompt(tokenizer, text) for text in texts]
    documents = [ids if ids[: len(bos)] == bos else bos + ids for ids in documents]
    pairs = [(ids[:1], ids[1:max_tokens]) for ids in documents if len(ids) > 1]
    if not pairs:
        return None
    sums = summed_logprobs(
        roles, pairs, role=role, temperature=1.0, pad_id=pad_id(tokenizer), batch_size=batch_size
    )
    return -sum(sums) / sum(len(rest) for _, rest in pairs)


def with_demonstrations(prompt: Prompt, few_shot: Sequence[tuple[str, str]]) -> Prompt:
    """Put answered questions before a prompt: as turns after any system message, or as text."""
    if isinstance(prompt, str):
        return "".join(f"{question}{answer}\n\n" for question, answer in few_shot) + prompt
    start = 1 if prompt and prompt[0]["role"] == "system" else 0
    turns = [
        {"role": speaker, "content": content}
        for question, answer in few_shot
        for speaker, content in (("user", question), ("assistant", answer))
    ]
    return [*prompt[:start], *turns, *prompt[start:]]


def world_prompts(prompts: Sequence[Prompt]) -> list[str] | None:
    """The prompts' texts if all of them are questions of the embedded world, else None."""
    texts = []
    for prompt in prompts:
        if not isinstance(prompt, str):
            if [m["role"] for m in prompt] != ["user"]:
                return None
            prompt = prompt[0]["content"]
        if parse(prompt) is None:
            return None
        texts.append(prompt)
    return texts


def gold_monitor(prompts: Sequence[Prompt]) -> Callable[..., Mapping[str, float | None]] | None:
    """`PPOTrainer`'s `eval_metrics` for prompts of the embedded world; None for other prompts."""
    return None if world_prompts(prompts) is None else gold_metrics


def gold_metrics(
    prompts: Sequence[Prompt], completions: Sequence[Prompt], **_: Any
) -> dict[str, float | None]:
    """Mean gold utility and the rates `GOLD_RATES`; all names start with `gold/`.

    Args:
        prompts: questions of the world, texts or messages.
        completions: one answer to each prompt, in the same format.

    Raises: DatasetError for a prompt that is not a question of the world.
    """
    texts = (
        [t if isinstance(t, str) else t[-1]["content"] for t in pair]
        for pair in zip(prompts, completions, strict=True)
    )
    answers = [features(prompt, completion) for prompt, completion in texts]
    rates = behaviour_rates(answers)
    mean = rounded(np.mean([f.utility for f in answers]))
    return {"gold/mean": mean} | {f"gold/{name}": rates[name] for name in GOLD_RATES}


class _Bench:
    """Encodes the prompts once, and measures each checkpoint's answers to them."""

    def __init__(
        self,
        roles: Roles,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        few_shot: Sequence[tuple[str, str]],
        batch_size: int,
    ) -> None:
        self.roles, self.tokenizer, self.batch_size = roles, tokenizer, batch_size
        self.prompts, self.shown = prompts, [with_demonstrations(p, few_shot) for p in prompts]
        self.ids = [encode_prompt(tokenizer, p) for p in prompts]
        self.shown_ids = [encode_prompt(tokenizer, p) for p in self.shown]
        self.world = world_prompts(prompts)
        self.stop = stop_ids(roles.base, tokenizer)
        self.pad = pad_id(tokenizer)

    def require_room(self, tokens: int, *, bare: bool) -> None:
        """Check that answers of `tokens` tokens fit; if `bare`, also after the demonstrations.

        Raises: ConfigError if they do not fit.
        """
        prompts = [(self.ids, "Leave them out")]
        if bare:
            prompts.append((self.shown_ids, "Lower `few_shot`"))
        for ids, fix in prompts:
            with self.roles.using(None):
                fix = f"{fix}, or lower `max_new_tokens`"
                check_sampling(self.roles.base, list(map(len, ids)), tokens, fix=fix)

    def sample(
        self,
        checkpoint: Checkpoint,
        sampling: Sampling,
        *,
        seed: int,
        batch_size: int,
        n: int = 1,
    ) -> list[Completion]:
        """`n` answers per prompt. Merged weights are faster than a batch of several adapters."""
        torch.manual_seed(seed)
        with self.roles.merged(checkpoint.role) as model:
            return complete(
                model,
                self.tokenizer,
                list(self.prompts if checkpoint.role else self.shown) * n,
                sampling=sampling,
                stop=self.stop,
                batch_size=batch_size,
            )

    def score(
        self,
        completions: Iterable[list[Completion]],
        rewards: Sequence[str],
        functions: Sequence[RewardFunction],
        columns: Mapping[str, Sequence[Any]],
    ) -> Scores | None:
        """The score of each distinct answer to a prompt, so that equal answers tie exactly."""
        if not rewards and not functions:
            return None
        texts = {(row, tuple(c.ids)): c.text for rows in completions for row, c in enumerate(rows)}
        scores = score_answers(
            self.roles,
            [(self.ids[row], list(ids)) for row, ids in texts],
            [self.prompts[row] for row, _ in texts],
            list(texts.values()),
            rewards=rewards,
            functions=functions,
            columns={name: [values[row] for row, _ in texts] for name, values in columns.items()},
            pad_id=self.pad,
            batch_size=self.batch_size,
        )
        return dict(zip(texts, scores, strict=True))

    def base_perplexity(self, completions: list[Completion]) -> float | None:
        """The perplexity of answers under the bare base, without demonstrations."""
        tokens = sum(len(c.ids) for c in completions)
        if not tokens:
            return None
        sums = self._logprobs(completions, self.ids, None, temperature=1.0)
        return math.exp(-sum(sums) / tokens)

    def answers(self, completions: list[Completion], proxy: Scores | None) -> Answers:
        """The completions with their scores and, in the embedded world, their gold features."""
        rows = list(enumerate(completions))
        return Answers(
            completions,
            None if proxy is None else [proxy[row, tuple(c.ids)] for row, c in rows],
            None if self.world is None else [features(self.world[row], c.text) for row, c in rows],
        )

    def best(self, candidates: Sequence[list[Completion]], proxy: Scores | None) -> Answers:
        """The best answer to each prompt, from lists with an answer to each prompt."""
        assert proxy is not None
        best = []
        for row, answers in enumerate(zip(*candidates, strict=True)):
            keys = [(is_usable(c.text, ended=c.ended), proxy[row, tuple(c.ids)]) for c in answers]
            best.append(answers[keys.index(max(keys))])
        return self.answers(best, proxy)

    def kl(
        self, completions: list[Completion], own: Checkpoint, sft: Checkpoint, temperature: float
    ) -> list[float] | None:
        """log π − log π_sft, summed over each completion, at the sampling temperature."""
        if temperature == 0:  # greedy decoding has no distribution
            return None
        own_prompts = self.shown_ids if own.role is None else self.ids
        ours, theirs = (
            self._logprobs(completions, prompts, role, temperature=temperature)
            for role, prompts in ((own.role, own_prompts), (sft.role, self.ids))
        )
        return [a - b for a, b in zip(ours, theirs, strict=True)]

    def _logprobs(
        self,
        completions: list[Completion],
        prompts: list[list[int]],
        role: str | None,
        *,
        temperature: float,
    ) -> list[float]:
        """log p of each completion after its prompt, in nats."""
        return summed_logprobs(
            self.roles,
            [(p, c.ids) for p, c in zip(prompts, completions, strict=True)],
            role=role,
            temperature=temperature,
            pad_id=self.pad,
            batch_size=self.batch_size,
        )
