"""Sampling every checkpoint alike on one base, and judging what it says row by row."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase

from toolkit.errors import ConfigError, DatasetError
from toolkit.evaluation.metrics import MAIN
from toolkit.evaluation.scoring import Pair, evaluating, mean_scores, pad_id, summed_logprobs
from toolkit.models.roles import REWARD, Roles
from toolkit.models.tokenizer import stop_ids
from toolkit.sampling.generation import Completion, Prompt, complete, encode_prompt, require_room
from toolkit.sampling.settings import Sampling
from toolkit.world.gold import Features, features
from toolkit.world.questions import parse

MAIN_TEMPERATURE = 0.7  # at T = 1 much of a win is mere sharpening


@dataclass(frozen=True)
class Checkpoint:
    """The role under which it is attached (None is the bare base), and the recipe that made it."""

    role: str | None
    recipe: str


@dataclass(frozen=True)
class Answers:
    """One checkpoint's answers under one sampling, a row per prompt.

    `proxy` is the reward model's score, an ensemble's mean, None without one; `features` None
    outside of the world.
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
    """One checkpoint: answers by sampling, kl in nats per completion, lm_loss in nats per token."""

    recipe: str
    answers: dict[str, Answers]
    kl_to_sft: list[float] | None
    lm_loss: float | None


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_all` found, for `report.build`; `sft` names the checkpoint compared with."""

    prompts: list[Prompt]
    sft: str
    seed: int
    sampling: Sampling
    checkpoints: dict[str, Measured]


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
    few_shot: Sequence[tuple[str, str]] = (),
    texts: Sequence[str] = (),
    seed: int = 0,
    batch_size: int = 32,
    generation_batch_size: int = 32,
    say: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Sample, score and compare checkpoints whose adapters are attached to one base.

    Args:
        checkpoints: display name -> its role; one of them, named by `sft`, is compared with.
        prompts: texts or messages.
        sampling: both sides' main sampling, T = 0.7 by default.
        others: further samplings by name; by default T = 1 and greedy.
        rewards: the roles that score, with heads: their mean does; none without a reward model.
        few_shot: (question, answer) turns put before each prompt of the bare base, which nobody
            taught to answer. What it says is judged as an answer to the plain prompt.
        texts: held-out pretraining documents for lm_loss.
        seed: set before each checkpoint and sampling, so that all of them draw alike.
        say: called with a line of progress.

    Returns: the rows; the global random state, modes and active adapters are as they were.
    Raises: ConfigError for an unknown `sft` or prompts that leave no room for an answer,
        DatasetError if there is no prompt.
    """
    if sft not in checkpoints:
        known = ", ".join(checkpoints) or "none"
        raise ConfigError(f"the evaluation compares with {sft!r}, but the checkpoints are: {known}")
    if not prompts:
        raise DatasetError("the evaluation got no prompts")
    main = sampling or Sampling(temperature=MAIN_TEMPERATURE)
    samplings = {MAIN: main, **(other_samplings(main) if others is None else others)}
    bench = _Bench(
        roles, tokenizer, list(prompts), list(few_shot), seed, batch_size, generation_batch_size
    )
    bare = any(checkpoint.role is None for checkpoint in checkpoints.values())
    bench.require_room(max(s.max_new_tokens for s in samplings.values()), bare=bare)
    said: dict[str, dict[str, list[Completion]]] = {}
    with evaluating(roles), torch.random.fork_rng():
        for name, checkpoint in checkpoints.items():
            said[name] = {key: bench.sample(checkpoint, s) for key, s in samplings.items()}
            say(f"{name}: sampled {len(prompts)} answers under {len(samplings)} samplings")
        every = (c for by in said.values() for rows in by.values() for c in enumerate(rows))
        proxy = bench.score(every, rewards) if rewards else None
        measured = {}
        for name, checkpoint in checkpoints.items():
            answers = {key: bench.judge(rows, proxy) for key, rows in said[name].items()}
            kl = bench.kl(said[name][MAIN], checkpoint, checkpoints[sft], main.temperature)
            loss = lm_loss(roles, tokenizer, texts, role=checkpoint.role, batch_size=batch_size)
            measured[name] = Measured(checkpoint.recipe, answers, kl, loss)
            say(f"{name}: measured")
    return Evaluation(list(prompts), sft, seed, main, measured)


def other_samplings(main: Sampling) -> dict[str, Sampling]:
    """T = 1 and greedy, as far as they are not the main sampling."""
    found = {"1.0": replace(main, temperature=1.0), "0": replace(main, temperature=0.0)}
    return {key: s for key, s in found.items() if s != main}


def role_ids(names: Iterable[str]) -> dict[str, str]:
    """Display name -> an adapter name that PEFT takes, whatever characters the first has."""
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
    """Mean −log p per token of documents, in nats; None without a document of two tokens.

    A document starts with the BOS token where the tokenizer has one, and is cut at `max_tokens`.
    """
    first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    documents = []
    for text in texts:
        ids = list(tokenizer(text)["input_ids"])
        ids = ids if ids[: len(first)] == first else first + ids
        documents.append((ids[:1], ids[1:max_tokens]))
    pairs = [(start, rest) for start, rest in documents if rest]
    if not pairs:
        return None
    pad = pad_id(tokenizer)
    with evaluating(roles):
        sums = summed_logprobs(
            roles, pairs, role=role, temperature=1.0, pad_id=pad, batch_size=batch_size
        )
    return -sum(sums) / sum(len(rest) for _, rest in pairs)


def with_demonstrations(prompt: Prompt, few_shot: Sequence[tuple[str, str]]) -> Prompt:
    """The prompt after some answered ones: chat turns behind any system message, or paragraphs."""
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
    """The prompts' texts if the gold scorer knows every one of them, else None."""
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


class _Bench:
    """The prompts, encoded once, and everything that is done with each checkpoint's answers."""

    def __init__(
        self,
        roles: Roles,
        tokenizer: PreTrainedTokenizerBase,
        prompts: list[Prompt],
        few_shot: list[tuple[str, str]],
        seed: int,
        batch_size: int,
        generation_batch_size: int,
    ) -> None:
        self.roles, self.tokenizer, self.seed = roles, tokenizer, seed
        self.batch_size, self.generation_batch_size = batch_size, generation_batch_size
        self.prompts, self.shown = prompts, [with_demonstrations(p, few_shot) for p in prompts]
        self.ids = [encode_prompt(tokenizer, p) for p in prompts]
        self.shown_ids = [encode_prompt(tokenizer, p) for p in self.shown]
        self.world = world_prompts(prompts)
        self.stop = stop_ids(roles.base, tokenizer)
        self.pad = pad_id(tokenizer)

    def require_room(self, tokens: int, *, bare: bool) -> None:
        """Check that there is room for answers of so many tokens, with `bare` also after demonstrations.

        Raises: ConfigError where there is not.
        """
        asked = [(self.ids, "Leave them out")]
        if bare:
            asked.append((self.shown_ids, "Lower `few_shot`"))
        for ids, fix in asked:
            lengths, fix = list(map(len, ids)), f"{fix}, or lower `max_new_tokens`"
            require_room(lengths, self.roles.base, tokens, option="max_new_tokens", fix=fix)

    def sample(self, checkpoint: Checkpoint, sampling: Sampling) -> list[Completion]:
        """One answer per prompt."""
        asked = self.prompts if checkpoint.role else self.shown
        torch.manual_seed(self.seed)
        with self.roles.merged(checkpoint.role) as model:
            return complete(
                model,
                self.tokenizer,
                asked,
                sampling=sampling,
                stop=self.stop,
                batch_size=self.generation_batch_size,
            )

    def score(
        self, answers: Iterable[tuple[int, Completion]], rewards: Sequence[str]
    ) -> dict[tuple[int, tuple[int, ...]], float]:
        """The score of each distinct (prompt's row, answer); equal answers tie to the bit."""
        distinct = list(dict.fromkeys((row, tuple(c.ids)) for row, c in answers))
        pairs: list[Pair] = [(self.ids[row], list(ids)) for row, ids in distinct]
        found = mean_scores(
            self.roles, pairs, rewards=rewards, pad_id=self.pad, batch_size=self.batch_size
        )
        return dict(zip(distinct, found, strict=True))

    def judge(
        self, said: list[Completion], proxy: dict[tuple[int, tuple[int, ...]], float] | None
    ) -> Answers:
        """Answers with their scores and, in the world, what gold sees in them."""
        known = self.world
        return Answers(
            said,
            None if proxy is None else [proxy[row, tuple(c.ids)] for row, c in enumerate(said)],
            None
            if known is None
            else [features(p, c.text) for p, c in zip(known, said, strict=True)],
        )

    def kl(
        self, said: list[Completion], own: Checkpoint, sft: Checkpoint, temperature: float
    ) -> list[float] | None:
        """log π − log π_sft summed over each completion, at the temperature it was sampled at."""
        if temperature == 0:  # greedy has no distribution
            return None
        shown = self.shown_ids if own.role is None else self.ids
        sums = [
            summed_logprobs(
                self.roles,
                [(p, c.ids) for p, c in zip(prompts, said, strict=True)],
                role=role,
                temperature=temperature,
                pad_id=self.pad,
                batch_size=self.batch_size,
            )
            for role, prompts in ((own.role, shown), (sft.role, self.ids))
        ]
        return [ours - theirs for ours, theirs in zip(*sums, strict=True)]
