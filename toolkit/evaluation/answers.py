"""Samples answers to the prompts of an evaluation, and measures each answer."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from toolkit.data.encoding import Prompt, encode_prompt
from toolkit.evaluation.gold import world_prompts
from toolkit.evaluation.scoring import pad_id, score_answers, summed_logprobs
from toolkit.models.roles import Roles
from toolkit.models.tokenizer import stop_ids
from toolkit.reward.functions import RewardFunction
from toolkit.sampling.generation import Completion, check_sampling, complete
from toolkit.sampling.settings import Sampling
from toolkit.world.gold import Features, features

Scores = dict[tuple[int, tuple[int, ...]], float]  # (prompt's row, token ids) -> score


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


class AnswerScorer:
    """Encodes the prompts once, and measures each checkpoint's answers to them."""

    def __init__(
        self,
        roles: Roles,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        few_shot: Sequence[tuple[str, str]],
        batch_size: int,
    ) -> None:
        self.roles, self.tokenizer = roles, tokenizer
        self.batching: Any = {"pad_id": pad_id(tokenizer), "batch_size": batch_size}
        self.prompts, self.shown = prompts, [with_demonstrations(p, few_shot) for p in prompts]
        self.ids = [encode_prompt(tokenizer, p) for p in prompts]
        self.shown_ids = [encode_prompt(tokenizer, p) for p in self.shown]
        self.world = world_prompts(prompts)
        self.stop = stop_ids(roles.base, tokenizer)

    def require_room(self, tokens: int, *, bare: bool) -> None:
        """Check that answers of `tokens` tokens fit; if `bare`, also after the demonstrations.

        Raises: ConfigError if they do not fit.
        """
        prompts = [(self.ids, "Leave them out")]
        prompts += [(self.shown_ids, "Lower `few_shot`")] if bare else []
        for ids, fix in prompts:
            fix += ", or lower `max_new_tokens`"
            with self.roles.using(None):
                check_sampling(self.roles.base, list(map(len, ids)), tokens, fix=fix)

    def sample(
        self,
        role: str | None,
        sampling: Sampling,
        *,
        seed: int | Sequence[int],
        batch_size: int,
        n: int = 1,
    ) -> list[Completion]:
        """`n` answers per prompt: one to each prompt, then another to each prompt, and so on.

        Merged weights are faster than a batch of several adapters.

        Args:
            seed: one seed, or the seed of each answer.
        """
        if isinstance(seed, int):
            torch.manual_seed(seed)
        with self.roles.merged(role) as model:
            return complete(
                model,
                self.tokenizer,
                list(self.prompts if role else self.shown) * n,
                sampling=sampling,
                stop=self.stop,
                batch_size=batch_size,
                seeds=None if isinstance(seed, int) else seed,
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
            **self.batching,
        )
        return dict(zip(texts, scores, strict=True))

    def base_perplexity(self, completions: list[Completion]) -> float | None:
        """The perplexity of answers under the bare base, without demonstrations."""
        tokens = sum(len(c.ids) for c in completions)
        if not tokens:
            return None
        sums = self._logprobs(completions, self.ids, None, 1.0)
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
        self, completions: list[Completion], own: str | None, sft: str | None, temperature: float
    ) -> list[float] | None:
        """log π of role `own` − log π of role `sft`, per completion, at the sampling temperature."""
        if temperature == 0:  # greedy decoding has no distribution
            return None
        shown = self.shown_ids if own is None else self.ids
        ours = self._logprobs(completions, shown, own, temperature)
        theirs = self._logprobs(completions, self.ids, sft, temperature)
        return [a - b for a, b in zip(ours, theirs, strict=True)]

    def _logprobs(
        self,
        completions: list[Completion],
        prompts: list[list[int]],
        role: str | None,
        temperature: float,
    ) -> list[float]:
        """log p of each completion after its prompt, in nats."""
        return summed_logprobs(
            self.roles,
            [(p, c.ids) for p, c in zip(prompts, completions, strict=True)],
            role=role,
            temperature=temperature,
            **self.batching,
        )


def is_usable(text: str, *, ended: bool) -> bool:
    """Whether an answer can be the best one: it ended and is not blank.

    An answer that did not end was cut off at the limit of tokens; SFT would teach to stop there.
    """
    return ended and bool(text.strip())


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
