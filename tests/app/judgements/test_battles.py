"""The server draws checkpoints and order, and keeps both secret until the verdict is stored."""

import hashlib
import random
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks.simulated_votes import verdict
from tests.app.conftest import MakeRun
from tests.app.judgements.fake_workbench import FakeAnswers, FakeWorkbench
from toolkit.app.answering.request import MAX_COLUMNS
from toolkit.app.judgements.battles import Battles, Progress
from toolkit.app.judgements.judgement import TIE, A, B
from toolkit.app.judgements.store import Store
from toolkit.app.workbench import Workbench
from toolkit.errors import CheckpointError, ConfigError
from toolkit.world.answers import answer, bad_answer
from toolkit.world.gold import features
from toolkit.world.labelers import Labeler
from toolkit.world.questions import sample_questions

POOL = ["base", "run_000000", "run_000001"]


@pytest.fixture
def fake(tmp_path: Path) -> FakeWorkbench:
    """A workbench with base, sft and dpo."""
    return FakeWorkbench(tmp_path / "runs")


@pytest.fixture
def battles(fake: FakeWorkbench, tmp_path: Path) -> Battles:
    """Battles over the fake workbench."""
    return Battles(cast(Workbench, fake), Store(tmp_path / "j.sqlite"))


def last(updates: Iterator[Progress]) -> Progress:
    """The last progress of a battle or ranking, with all answers."""
    *earlier, final = updates
    total = earlier[0].total
    done = [progress.done for progress in earlier]  # numbers repeat twice a second
    assert list(dict.fromkeys(done)) == list(range(total + 1)) and done == sorted(done)
    assert all(not progress.id and not progress.texts for progress in earlier)
    assert final.done == len(final.texts) == total
    return final


def test_vote_stores_everything_that_training_needs(battles: Battles, fake: FakeWorkbench) -> None:
    final = last(battles.battle("Why?", POOL, temperature=9, max_new_tokens=10**9))
    judgement = battles.vote(final.id, "b", reason="shorter", labeler="Ann")
    assert battles.store.all() == [judgement]
    assert tuple(r.text for r in judgement.replies) == final.texts
    assert judgement.prompt == ({"role": "user", "content": "Why?"},)
    assert (judgement.verdict, judgement.reason, judgement.labeler) == ("b", "shorter", "Ann")
    assert judgement.sampling == {"temperature": 2.0, "max_new_tokens": 512}
    assert judgement.base == fake.roles.fingerprint
    assert abs(time.time() - datetime.fromisoformat(judgement.time).timestamp()) < 60
    for reply in judgement.replies:
        entry = fake.catalog.checkpoints[reply.checkpoint]
        assert reply.name == entry.name
        # the fake's weights files contain the run's name
        weights = None if entry.path is None else hashlib.sha256(entry.name.encode()).hexdigest()
        assert reply.adapter == weights
        assert reply.text.endswith(f" {reply.seed}")


def test_pending_prompt_has_no_unpaired_surrogates(battles: Battles) -> None:
    final = last(battles.battle("Hi\ud800", POOL))
    _, judgement = battles._pending[final.id]
    assert judgement.prompt == ({"role": "user", "content": "Hi?"},)


def test_each_battle_draws_pair_order_seed_and_id(battles: Battles, fake: FakeWorkbench) -> None:
    ids, drawn = set(), []
    for _ in range(600):
        final = last(battles.battle("Why?", POOL))
        ids.add(final.id)
        _, judgement = battles._pending[final.id]  # a vote would wait for the disk
        drawn.append(judgement.replies)
    pairs = Counter(tuple(reply.name for reply in replies) for replies in drawn)
    assert len(ids) == 600 and min(map(len, ids)) >= 32
    assert len({call["seed"] for call in fake.calls}) == 600
    # six ordered pairs of 100 expected each; five standard deviations are 46
    assert len(pairs) == 6 and all(54 <= n <= 146 for n in pairs.values())
    first_answered = sum(
        call["checkpoints"][0] == replies[0].checkpoint
        for call, replies in zip(fake.calls, drawn, strict=True)
    )
    assert 235 <= first_answered <= 365  # the order of answering does not reveal A


def test_repeated_vote_is_stored_once(battles: Battles) -> None:
    final = last(battles.battle("Why?", POOL))
    first = battles.vote(final.id, "a")
    again = battles.vote(final.id, "a")
    assert again.replies == first.replies
    assert battles.store.count() == 1
    with pytest.raises(ConfigError, match="already have another judgement"):
        battles.vote(final.id, "b")
    assert battles.store.all() == [first]


def test_vote_can_be_undone_and_repeated(battles: Battles) -> None:
    final = last(battles.battle("Why?", POOL))
    with pytest.raises(ConfigError, match="no vote to undo"):
        battles.undo(final.id)
    first = battles.vote(final.id, "a", reason="oops", labeler="Ann")
    battles.undo(final.id)
    assert battles.store.count() == 0
    second = battles.vote(final.id, "b")
    assert battles.store.all() == [second]
    assert second.replies == first.replies and (second.reason, second.labeler) == ("", "")


@pytest.mark.parametrize("id", ["", "x", "é", "\ud800", None, 3, ["x"], {}])
def test_unknown_id_cannot_be_judged(battles: Battles, id: object) -> None:
    for judge in (lambda: battles.vote(id, "a"), lambda: battles.rank(id, (1, 1, 1, 1))):
        with pytest.raises(ConfigError, match="not waiting for a verdict"):
            judge()


def test_invalid_verdict_can_be_corrected(battles: Battles) -> None:
    final = last(battles.battle("Why?", POOL))
    with pytest.raises(ConfigError, match="a verdict is one of a, b, tie"):
        battles.vote(final.id, "c")
    with pytest.raises(ConfigError, match="not waiting"):
        battles.rank(final.id, (1, 2))
    assert battles.store.count() == 0
    battles.vote(final.id, "both_bad")
    assert battles.store.count() == 1


def test_battle_expires(fake: FakeWorkbench, tmp_path: Path) -> None:
    battles = Battles(cast(Workbench, fake), Store(tmp_path / "j.sqlite"), max_age_s=0.05)
    final = last(battles.battle("Why?", POOL))
    time.sleep(0.06)
    with pytest.raises(ConfigError, match="not waiting for a verdict"):
        battles.vote(final.id, "a")
    assert battles.store.count() == 0


def test_oldest_pending_battle_is_dropped(fake: FakeWorkbench, tmp_path: Path) -> None:
    battles = Battles(cast(Workbench, fake), Store(tmp_path / "j.sqlite"), max_pending=3)
    ids = [last(battles.battle("Why?", POOL)).id for _ in range(5)]
    assert len(battles._pending) == 3
    for id in ids[:2]:
        with pytest.raises(ConfigError, match="not waiting"):
            battles.vote(id, "a")
    for id in ids[2:]:
        battles.vote(id, "a")
    assert battles._pending == {}


@pytest.mark.parametrize(
    ("pool", "k", "shares"),
    [
        (POOL, 4, [1, 1, 2]),
        (POOL, 9, [3, 3, 3]),
        (["run_000001"], 5, [5]),
        (POOL, 10**9, [3, 3, 3]),
        (POOL[:2], "x", [2, 2]),
    ],
)
def test_ranking_distributes_answers_evenly(
    battles: Battles, pool: list[str], k: object, shares: list[int]
) -> None:
    final = last(battles.ranking("Why?", pool, k))
    total = sum(shares)
    judgement = battles.rank(
        final.id, tuple(range(1, total + 1)), likert=[7] + [None] * (total - 1)
    )
    assert tuple(r.text for r in judgement.replies) == final.texts
    assert sorted(Counter(r.name for r in judgement.replies).values()) == shares
    assert len(set(final.texts)) == total  # each answer of a checkpoint has its own seed
    assert judgement.likert is not None and judgement.likert[0] == 7
    assert battles.store.all() == [judgement]


def test_nine_checkpoints_are_split_into_allowed_calls(tmp_path: Path) -> None:
    fake = FakeWorkbench(tmp_path / "runs", "a b c d e f g h i")
    battles = Battles(cast(Workbench, fake), Store(tmp_path / "j.sqlite"))
    final = last(battles.ranking("Why?", list(fake.catalog.checkpoints), 9, temperature=0))
    assert max(len(call["checkpoints"]) for call in fake.calls) <= MAX_COLUMNS
    assert len(set(final.texts)) == 9


def test_invalid_requests_raise(battles: Battles) -> None:
    for pool in (["base"], ["base", "base"], [], None, "base", 3):
        with pytest.raises(ConfigError, match="at least two"):
            battles.battle("Why?", pool)
    for pool in (["base", "../../etc"], ["run_000009", "base"], [None, "base"], "sft"):
        with pytest.raises(CheckpointError, match="is unknown"):
            battles.battle("Why?", pool)
        with pytest.raises(CheckpointError, match="is unknown"):
            battles.ranking("Why?", pool)
    with pytest.raises(ConfigError, match="at least one"):
        battles.ranking("Why?", [])
    with pytest.raises(ConfigError, match="write a prompt"):
        battles.battle(" ", POOL)
    with pytest.raises(ConfigError, match="at temperature 0 a checkpoint has only one answer"):
        battles.ranking("Why?", POOL, 4, temperature=0.01)


def test_failing_checkpoint_is_not_named(battles: Battles, fake: FakeWorkbench) -> None:
    fake.fail = {"dpo"}
    with pytest.raises(ConfigError, match="one of the checkpoints did not answer") as error:
        list(battles.battle("Why?", POOL[1:]))
    assert "dpo" not in str(error.value)
    assert battles._pending == {}


def test_answers_of_real_checkpoints_can_be_reproduced(
    workbench: Workbench, runs: Path, tmp_path: Path
) -> None:
    battles = Battles(workbench, Store(tmp_path / "j.sqlite"))
    pool = list(workbench.catalog.checkpoints)
    battle = last(battles.battle("What is it?", pool, temperature=0, max_new_tokens=6))
    ranked = last(battles.ranking("What is it?", pool[1:], 4, temperature=1, max_new_tokens=6))
    judgements = [battles.vote(battle.id, "a"), battles.rank(ranked.id, (1, 2, 2, 3))]
    assert battles.store.all() == judgements
    for judgement in judgements:
        for reply in judgement.replies:
            (again,) = workbench.compare(
                "What is it?", [reply.checkpoint], seed=reply.seed, **judgement.sampling
            )
            assert (again.name, again.text) == (reply.name, reply.text)
            if reply.name != "base":
                weights = (runs / reply.name / "adapter_model.safetensors").read_bytes()
                assert reply.adapter == hashlib.sha256(weights).hexdigest()
        assert judgement.base == workbench.roles.fingerprint


def test_judgement_has_the_hash_of_the_weights_in_memory(
    workbench: Workbench,
    runs: Path,
    make_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compare = workbench.compare
    monkeypatch.setattr(  # all answers are complete before the first of them is read
        workbench, "compare", lambda *args, **options: FakeAnswers(list(compare(*args, **options)))
    )
    names = {e.name: e.id for e in workbench.catalog.checkpoints.values()}
    pool = [names["sft"], names["dpo"]]
    battles = Battles(workbench, Store(tmp_path / "j.sqlite"))
    weights = {n: runs / n / "adapter_model.safetensors" for n in ("sft", "dpo")}
    answered = {n: hashlib.sha256(file.read_bytes()).hexdigest() for n, file in weights.items()}
    battle = battles.battle("What is it?", pool, max_new_tokens=4)
    make_run(runs / "dpo", "dpo", seed=99, parents={"adapter": str(runs / "sft")})
    assert hashlib.sha256(weights["dpo"].read_bytes()).hexdigest() != answered["dpo"]
    judgement = battles.vote(last(battle).id, "a")
    assert {r.name: r.adapter for r in judgement.replies} == answered
    again = battles.vote(last(battles.battle("What is it?", pool, max_new_tokens=4)).id, "a")
    retrained = hashlib.sha256(weights["dpo"].read_bytes()).hexdigest()
    assert {r.name: r.adapter for r in again.replies} == answered | {"dpo": retrained}


def test_simulated_labeler_agrees_with_gold() -> None:
    rng = random.Random(0)
    (question,) = sample_questions(rng, "test", 1)
    calm = Labeler(courtesy=0.0, length=0.0, noise=0.0)
    good = answer(question, rng, right=1.0, good=1.0, manners=(0, 1, 0, 0)).text
    texts = {good, bad_answer(question, rng), "Go away."}
    better, *_, worse = sorted(texts, key=lambda t: -features(question.prompt, t).utility)
    assert verdict(calm, question.prompt, (better, worse), rng) == A
    assert verdict(calm, question.prompt, (worse, better), rng) == B
    assert verdict(calm, question.prompt, (better, better), rng) == TIE


def test_closing_the_page_cancels_all_answers(
    fake: FakeWorkbench, battles: Battles, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[FakeAnswers] = []
    compare = fake.compare

    def recorded(*args: Any, **options: Any) -> FakeAnswers:
        calls.append(compare(*args, **options))
        return calls[-1]

    monkeypatch.setattr(fake, "compare", recorded)
    ranking = cast(Any, battles.ranking("Why?", ["base"], 9))
    next(ranking), next(ranking)  # the first of nine answers is ready
    ranking.close()
    assert len(calls) == 9 and all(call.closed for call in calls)
