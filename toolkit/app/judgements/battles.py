"""Blind battles and rankings: the server draws the checkpoints and keeps them secret until the verdict."""

import logging
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from toolkit.app.answering import request as limits
from toolkit.app.answering.request import clamp
from toolkit.app.judgements.judgement import BATTLE, RANKING, Judgement, Reply, complete_judgement
from toolkit.app.judgements.store import Store
from toolkit.data.convert import Kind, check_conversion, convert_rows
from toolkit.data.files import read_rows
from toolkit.data.layout import find_layout
from toolkit.errors import CheckpointError, ConfigError, DatasetError
from toolkit.reading import read_text

if TYPE_CHECKING:
    from toolkit.app.workbench import Answer, AnswersInOrder, Workbench

MIN_ANSWERS, MAX_ANSWERS = 4, 9  # per ranking, as in InstructGPT
MAX_PENDING = 1000
MAX_PROMPT_FILE_BYTES = 64 << 20
MAX_AGE_S = 3600.0
HEARTBEAT_S = 0.5  # Gradio can end the event of a closed page only when it yields


@dataclass(frozen=True)
class Progress:
    """The state that the page receives before the verdict.

    `done` of `total` answers are generated. The last one also has the answers' `texts` in display order,
    and the `id` for the verdict.
    """

    done: int
    total: int
    id: str = ""
    texts: tuple[str, ...] = ()


class Battles:
    """Draws checkpoints and their display order, keeps both secret, and stores the judgements."""

    def __init__(
        self,
        workbench: "Workbench",
        store: Store,
        *,
        max_pending: int = MAX_PENDING,
        max_age_s: float = MAX_AGE_S,
    ) -> None:
        self.workbench = workbench
        self.store = store
        self._max_pending, self._max_age_s = max_pending, max_age_s
        self._rng: Random = secrets.SystemRandom()  # visitors cannot influence or predict a draw
        self._pending: dict[str, tuple[float, Judgement]] = {}  # id -> (time, …), oldest first
        self._lock = threading.Lock()

    def battle(
        self,
        prompt: object,
        pool: object,
        *,
        temperature: object = limits.DEFAULT_TEMPERATURE,
        max_new_tokens: object = limits.DEFAULT_NEW_TOKENS,
    ) -> Iterator[Progress]:
        """Start a battle: two checkpoints of the pool answer a prompt with the same seed.

        Raises: CheckpointError for an unknown id; ConfigError if the pool has fewer than two
            checkpoints, the prompt is not valid, or a checkpoint does not answer.
        """
        ids = self._checked_pool(pool)
        if len(ids) < 2:
            raise ConfigError("choose at least two checkpoints; a battle compares two")
        seed = self._rng.randrange(limits.MAX_SEED)
        plan = [(id, seed) for id in self._rng.sample(ids, 2)]
        return self._answers(BATTLE, prompt, plan, _sampling(temperature, max_new_tokens))

    def ranking(
        self,
        prompt: object,
        pool: object,
        k: object = MIN_ANSWERS,
        *,
        temperature: object = limits.DEFAULT_TEMPERATURE,
        max_new_tokens: object = limits.DEFAULT_NEW_TOKENS,
    ) -> Iterator[Progress]:
        """Start a ranking of `k` answers to a prompt, distributed evenly over the pool's checkpoints.

        Several answers of one checkpoint have different seeds.

        Raises: the errors of `battle`; ConfigError if greedy answers of one checkpoint would be equal.
        """
        ids = self._checked_pool(pool)
        count = round(clamp(k, MIN_ANSWERS, MAX_ANSWERS, MIN_ANSWERS))
        sampling = _sampling(temperature, max_new_tokens)
        if not ids:
            raise ConfigError("choose at least one checkpoint")
        if sampling["temperature"] == 0 and len(ids) < count:
            raise ConfigError(
                f"at temperature 0 a checkpoint has only one answer; choose {count} checkpoints or a "
                "temperature above 0"
            )
        self._rng.shuffle(ids)
        seeds = self._rng.sample(range(limits.MAX_SEED), -(-count // len(ids)))
        plan = [(id, seed) for seed in seeds for id in ids][:count]
        return self._answers(RANKING, prompt, plan, sampling)

    def vote(self, id: object, verdict: object, **details: object) -> Judgement:
        """Store the verdict on a battle; return the judgement, which names the checkpoints.

        Args:
            details: `reason` and `labeler`, as in `complete_judgement`.

        Raises: ConfigError for an unknown or expired battle, or one with another verdict;
            DatasetError if the verdict cannot be stored.
        """
        return self._judge(id, BATTLE, verdict=verdict, **details)

    def undo(self, id: object) -> Judgement:
        """Delete the vote on a battle, which then waits for another verdict.

        Returns: the deleted judgement.
        Raises: ConfigError if the battle has no stored vote; DatasetError as `vote`.
        """
        judged = self.store.get(id) if isinstance(id, str) and id.isascii() else None
        if judged is None or judged.kind != BATTLE:
            raise ConfigError("there is no vote to undo: vote on a battle first")
        self.store.replace(judged, None)
        pending = replace(judged, verdict=None, reason="", labeler="", time="")
        with self._lock:
            self._expire(room=1)
            self._pending[judged.id] = (time.monotonic(), pending)
        return judged

    def rank(self, id: object, ranks: Sequence[int], **details: object) -> Judgement:
        """Store the ranks of a ranking's answers, like `vote`; `details` may include `likert`, `flags`."""
        return self._judge(id, RANKING, ranks=ranks, **details)

    def _judge(self, id: object, kind: str, **labeler_input: object) -> Judgement:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        judgement = complete_judgement(self._find(id, kind), time=now, **labeler_input)
        self.store.add(judgement)  # raises unless it is on the disk
        with self._lock:
            self._pending.pop(judgement.id, None)
        return judgement

    def _answers(
        self,
        kind: str,
        prompt: object,
        plan: Sequence[tuple[str, int]],
        sampling: dict[str, float],
    ) -> Iterator[Progress]:
        """Request the answer of each (checkpoint, seed); raise an error for an invalid request."""
        compare = self.workbench.compare
        calls: list[AnswersInOrder] = []
        try:
            for seed, ids in _calls(plan):
                calls.append(compare(prompt, ids, reward=None, seed=seed, **sampling))
        except BaseException:
            _close(calls)
            raise
        text = str(prompt).encode("utf-8", "replace").decode("utf-8")  # no unpaired surrogates
        pending = Judgement(
            id=secrets.token_urlsafe(24),
            kind=kind,
            prompt=({"role": "user", "content": text},),
            replies=(),
            sampling=sampling,
            base=dict(self.workbench.roles.fingerprint),
        )
        return self._collect(pending, calls, [seed for _, seed in plan])

    def _collect(
        self, pending: Judgement, calls: "Sequence[AnswersInOrder]", seeds: list[int]
    ) -> Iterator[Progress]:
        replies: list[Reply] = []
        try:
            yield Progress(0, len(seeds))
            last_yield = time.monotonic()
            for answer in chain.from_iterable(call.beats() for call in calls):
                if answer is not None:
                    replies.append(_reply(answer, seeds[len(replies)]))
                elif time.monotonic() - last_yield < HEARTBEAT_S:
                    continue
                last_yield = time.monotonic()
                yield Progress(len(replies), len(seeds))
        finally:
            _close(calls)  # the visitor may have left
        self._rng.shuffle(replies)
        pending = replace(pending, replies=tuple(replies))
        with self._lock:
            self._expire(room=1)
            self._pending[pending.id] = (time.monotonic(), pending)
        texts = tuple(reply.text for reply in replies)
        yield Progress(len(replies), len(seeds), pending.id, texts)

    def _find(self, id: object, kind: str) -> Judgement:
        """The pending or stored judgement with that id."""
        with self._lock:
            self._expire()
            _, judgement = self._pending.get(str(id), (0.0, None))
        if judgement is None and isinstance(id, str) and id.isascii():
            judgement = self.store.get(id)
        if judgement is None or judgement.kind != kind:
            raise ConfigError(
                "these answers are not waiting for a verdict: they are unknown or older than "
                f"{self._max_age_s / 60:.0f} minutes; get new answers"
            )
        return judgement

    def _expire(self, room: int = 0) -> None:
        """Drop pending judgements that are too old, and then the oldest until there is `room`."""
        oldest_allowed = time.monotonic() - self._max_age_s
        for id, (since, _) in list(self._pending.items()):
            if since >= oldest_allowed and len(self._pending) + room <= self._max_pending:
                break
            del self._pending[id]

    def _checked_pool(self, pool: object) -> list[str]:
        """The distinct checkpoint ids of a pool."""
        ids = [pool] if isinstance(pool, str) else pool if isinstance(pool, list | tuple) else []
        for id in ids:
            if not isinstance(id, str) or id not in self.workbench.catalog.checkpoints:
                raise CheckpointError(f"checkpoint {str(id)[:40]!r} is unknown; reload the page")
        return list(dict.fromkeys(ids))


def read_prompts(path: Path) -> list[str]:
    """The distinct prompts of a file, in order.

    A `.txt` file has one prompt per line. The rows of a data file (`.jsonl`, `.json`, `.csv`, `.parquet`)
    may have any format of toolkit/data/formats.py. Prompts with several messages and prompts that are too
    long for the page are left out.

    Raises: DatasetError if the file cannot be read or no prompt is left.
    """
    if path.suffix.lower() == ".txt":
        try:
            text = read_text(path, at_most=MAX_PROMPT_FILE_BYTES)
            if "\0" in text:
                raise ValueError("binary data; expected a text file")
            texts = text.replace("\r", "\n").split("\n")
        except (OSError, ValueError) as error:
            raise DatasetError(f"{path}: cannot read the prompts ({error})") from error
    else:
        texts = _prompts_of_rows(path)
    stripped = dict.fromkeys(text.strip() for text in texts)
    prompts = [text for text in stripped if 0 < len(text) <= limits.MAX_PROMPT_CHARACTERS]
    if not prompts:
        raise DatasetError(
            f"{path}: no usable prompt; a prompt must be one message of at most "
            f"{limits.MAX_PROMPT_CHARACTERS} characters"
        )
    return prompts


def _prompts_of_rows(path: Path) -> list[str]:
    rows, place = read_rows(path), str(path)
    kind: Kind = "prompt-only"
    format, layout = find_layout(rows, place=place)
    check_conversion(format=format, kind=kind, place=place)
    converted = convert_rows(
        rows, place=place, format=format, kind=kind, layout=layout, drop_bad_rows=True
    )
    prompts = [row["prompt"] for row in converted.rows]
    return [p if isinstance(p, str) else p[0]["content"] if len(p) == 1 else "" for p in prompts]


def _calls(plan: Sequence[tuple[str, int]]) -> Iterator[tuple[int, list[str]]]:
    """(seed, checkpoints) of each call that produces the plan's answers in order."""
    for seed in dict.fromkeys(seed for _, seed in plan):
        ids = [id for id, its_seed in plan if its_seed == seed]
        for start in range(0, len(ids), limits.MAX_COLUMNS):
            yield seed, ids[start : start + limits.MAX_COLUMNS]


def _sampling(temperature: object, max_new_tokens: object) -> dict[str, float]:
    return {
        "temperature": limits.clamp_temperature(temperature),
        "max_new_tokens": limits.clamp_new_tokens(max_new_tokens),
    }


def _reply(answer: "Answer", seed: int) -> Reply:
    if answer.problem is not None:  # the page must not show the checkpoint's name
        logging.getLogger(__name__).warning("%s: no answer: %s", answer.name, answer.problem)
        raise ConfigError(
            "one of the checkpoints did not answer, so there is nothing to judge; find the failing "
            "checkpoint on Compare, then remove it here"
        )
    return Reply(answer.checkpoint, answer.name, answer.text, seed, answer.adapter)


def _close(calls: "Sequence[AnswersInOrder]") -> None:
    """Cancel the answers that are still being generated."""
    for call in calls:
        call.close()
