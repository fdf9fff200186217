"""Blind battles and rankings: drawn and kept on the server until they are judged."""

import logging
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from random import Random
from typing import TYPE_CHECKING

from toolkit.app.answering.request import (
    DEFAULT_NEW_TOKENS,
    DEFAULT_TEMPERATURE,
    MAX_COLUMNS,
    MAX_NEW_TOKENS,
    MAX_SEED,
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    clamp,
)
from toolkit.app.judgements.judgement import BATTLE, RANKING, Judgement, Message, Reply, judged
from toolkit.app.judgements.store import Store
from toolkit.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from toolkit.app.workbench import Answer, Workbench

MIN_ANSWERS, MAX_ANSWERS = 4, 9  # of a ranking; InstructGPT's
MAX_PENDING = 1000
MAX_AGE_S = 3600.0
HEARTBEAT_S = 0.5  # a page that was closed while answers are made is noticed at the next one


@dataclass(frozen=True)
class Shown:
    """What the page may know before the verdict.

    While answers are made, how many of `wanted` are done, said again twice a second; at the end all
    `texts` in the order to show, and the `id` to judge them by.
    """

    done: int
    wanted: int
    id: str = ""
    texts: tuple[str, ...] = ()


class Battles:
    """Draws who answers and in which order, keeps it secret, and stores what is said of it."""

    def __init__(
        self,
        workbench: "Workbench",
        store: Store,
        *,
        most: int = MAX_PENDING,
        oldest_s: float = MAX_AGE_S,
    ) -> None:
        self.workbench = workbench
        self.store = store
        self._most, self._oldest_s = most, oldest_s
        self._rng: Random = secrets.SystemRandom()  # nothing that a visitor sends decides a draw
        self._pending: dict[str, tuple[float, Judgement]] = {}  # id -> when, what; oldest first
        self._lock = threading.Lock()

    def battle(
        self,
        prompt: object,
        pool: object,
        *,
        temperature: object = DEFAULT_TEMPERATURE,
        max_new_tokens: object = DEFAULT_NEW_TOKENS,
    ) -> Iterator[Shown]:
        """Two checkpoints of the pool answer a prompt, with one seed.

        Raises: CheckpointError for an unknown id, ConfigError where the pool has fewer than two,
            the prompt cannot be used, or a checkpoint does not answer.
        """
        ids = self._known(pool)
        if len(ids) < 2:
            raise ConfigError("choose at least two checkpoints: a battle is between two of them")
        seed = self._seed()
        plan = [(one, seed) for one in self._rng.sample(ids, 2)]
        return self._answers(BATTLE, prompt, plan, _sampling(temperature, max_new_tokens))

    def ranking(
        self,
        prompt: object,
        pool: object,
        k: object = MIN_ANSWERS,
        *,
        temperature: object = DEFAULT_TEMPERATURE,
        max_new_tokens: object = DEFAULT_NEW_TOKENS,
    ) -> Iterator[Shown]:
        """`k` answers to a prompt, as evenly from the pool's checkpoints as `k` allows.

        A checkpoint that gives several samples each with a seed of its own.

        Raises: as `battle`; ConfigError where greedy answers of one checkpoint would be the same.
        """
        ids = self._known(pool)
        wanted = round(clamp(k, MIN_ANSWERS, MAX_ANSWERS, MIN_ANSWERS))
        sampling = _sampling(temperature, max_new_tokens)
        if not ids:
            raise ConfigError("choose at least one checkpoint")
        if sampling["temperature"] == 0 and len(ids) < wanted:
            raise ConfigError(
                f"at temperature 0 a checkpoint has one answer only: choose {wanted} checkpoints "
                "or a temperature above 0"
            )
        self._rng.shuffle(ids)
        rounds = -(-wanted // len(ids))
        plan = [(one, seed) for seed in self._seeds(rounds) for one in ids][:wanted]
        return self._answers(RANKING, prompt, plan, sampling)

    def vote(
        self, id: object, verdict: object, *, reason: object = "", labeler: object = ""
    ) -> Judgement:
        """Store the verdict on a battle and say who answered; it is on the disk then.

        Raises: ConfigError for an unknown or expired battle, or one judged otherwise before;
            DatasetError where it cannot be stored.
        """
        asked = self._asked(id, BATTLE)
        return self._keep(
            judged(asked, verdict=verdict, reason=reason, labeler=labeler, time=_now())
        )

    def rank(
        self,
        id: object,
        ranks: Sequence[int],
        *,
        likert: object = None,
        flags: object = None,
        reason: object = "",
        labeler: object = "",
    ) -> Judgement:
        """Store the order of a ranking's answers and say who gave them. See `vote`."""
        asked = self._asked(id, RANKING)
        said = {"likert": likert, "flags": flags, "reason": reason, "labeler": labeler}
        return self._keep(judged(asked, ranks=ranks, time=_now(), **said))

    def _answers(
        self,
        kind: str,
        prompt: object,
        plan: Sequence[tuple[str, int]],
        sampling: dict[str, float],
    ) -> Iterator[Shown]:
        """Start each call for answers; the first finds what is wrong with the request."""
        calls: list[Iterator[Answer]] = []
        try:
            for seed, ids in _calls(plan):
                calls.append(
                    self.workbench.compare(prompt, ids, reward=None, seed=seed, **sampling)
                )
        except BaseException:
            _close(calls)
            raise
        asked = Judgement(
            id=secrets.token_urlsafe(24),
            kind=kind,
            prompt=as_messages(prompt),
            replies=(),
            sampling=sampling,
            base=dict(self.workbench.roles.fingerprint),
        )
        seeds = [seed for _, seed in plan]
        return self._collect(asked, calls, seeds)

    def _collect(
        self, asked: Judgement, calls: "Sequence[Iterator[Answer]]", seeds: list[int]
    ) -> Iterator[Shown]:
        replies: list[Reply] = []
        try:
            yield Shown(0, len(seeds))
            told = time.monotonic()
            for answer in chain.from_iterable(map(_beats, calls)):
                if answer is not None:
                    replies.append(self._reply(answer, seeds[len(replies)]))
                elif time.monotonic() - told < HEARTBEAT_S:
                    continue
                told = time.monotonic()
                yield Shown(len(replies), len(seeds))
        finally:
            _close(calls)  # whoever asked may have gone
        self._rng.shuffle(replies)
        asked = replace(asked, replies=tuple(replies))
        with self._lock:
            self._forget_old(room=1)
            self._pending[asked.id] = (time.monotonic(), asked)
        texts = tuple(reply.text for reply in replies)
        yield Shown(len(replies), len(seeds), asked.id, texts)

    def _reply(self, answer: "Answer", seed: int) -> Reply:
        if answer.problem is not None:  # with its name on the page the battle would not be blind
            logging.getLogger(__name__).warning("%s: no answer: %s", answer.name, answer.problem)
            raise ConfigError(
                "one of the checkpoints did not answer, so there is nothing to judge; ask them in "
                "the tab Compare to see which and why, and leave it out here"
            )
        return Reply(answer.checkpoint, answer.name, answer.text, seed, answer.adapter)

    def _asked(self, id: object, kind: str) -> Judgement:
        """What is judged under an id, pending or judged before."""
        with self._lock:
            self._forget_old()
            _, asked = self._pending.get(str(id), (0.0, None))
        if asked is None and isinstance(id, str) and id.isascii():
            asked = self.store.get(id)
        if asked is None or asked.kind != kind:
            raise ConfigError(
                "these answers are not waiting for a verdict: they were never shown, or "
                f"more than {self._oldest_s / 60:.0f} minutes ago; ask for new ones"
            )
        return asked

    def _keep(self, judgement: Judgement) -> Judgement:
        self.store.add(judgement)  # raises unless it is on the disk
        with self._lock:
            self._pending.pop(judgement.id, None)
        return judgement

    def _forget_old(self, room: int = 0) -> None:
        """Drop what is too old, and the oldest where there is no room."""
        dead = time.monotonic() - self._oldest_s
        for id, (since, _) in list(self._pending.items()):
            if since >= dead and len(self._pending) + room <= self._most:
                break
            del self._pending[id]

    def _known(self, pool: object) -> list[str]:
        given = [pool] if isinstance(pool, str) else pool if isinstance(pool, list | tuple) else []
        for one in given:
            if not isinstance(one, str) or one not in self.workbench.catalog.checkpoints:
                raise CheckpointError(f"no checkpoint {str(one)[:40]!r} is known; reload the page")
        return list(dict.fromkeys(given))

    def _seed(self) -> int:
        return self._rng.randrange(MAX_SEED)

    def _seeds(self, n: int) -> list[int]:
        return self._rng.sample(range(MAX_SEED), n)


def as_messages(prompt: object) -> tuple[Message, ...]:
    """A prompt, text or messages, as messages that any database or tokenizer takes."""
    if isinstance(prompt, list | tuple):
        return tuple(
            {"role": _text(m.get("role")), "content": _text(m.get("content"))}
            for m in prompt
            if isinstance(m, dict)
        )
    return ({"role": "user", "content": _text(prompt)},)


def _text(value: object) -> str:
    return str(value).encode("utf-8", "replace").decode("utf-8")


def _calls(plan: Sequence[tuple[str, int]]) -> Iterator[tuple[int, list[str]]]:
    """(seed, checkpoints) of each call that makes the plan's answers in its order."""
    for seed in dict.fromkeys(seed for _, seed in plan):
        ids = [one for one, its in plan if its == seed]
        for start in range(0, len(ids), MAX_COLUMNS):
            yield seed, ids[start : start + MAX_COLUMNS]


def _sampling(temperature: object, max_new_tokens: object) -> dict[str, float]:
    heat = clamp(temperature, 0.0, MAX_TEMPERATURE, DEFAULT_TEMPERATURE)
    return {
        "temperature": heat if heat >= MIN_TEMPERATURE else 0.0,
        "max_new_tokens": round(clamp(max_new_tokens, 1, MAX_NEW_TOKENS, DEFAULT_NEW_TOKENS)),
    }


def _beats(call: "Iterator[Answer]") -> "Iterator[Answer | None]":
    """A call's answers with None in between, where it can say that it is still at work."""
    beats = getattr(call, "beats", None)
    return call if beats is None else beats()


def _close(calls: "Sequence[Iterator[Answer]]") -> None:
    """Give up what a workbench has not answered yet."""
    for call in calls:
        close = getattr(call, "close", None)
        if close is not None:
            close()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
