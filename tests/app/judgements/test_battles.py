"""Who answers and in which order is the server's secret until the verdict is stored."""

import hashlib
import random
import time
from collections import Counter
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
    """base, sft and dpo."""
    return FakeWorkbench(tmp_path / "runs")


@pytest.fixture
def battles(fake: FakeWorkbench, tmp_path: Path) -> Battles:
    """Battles over the fake workbench."""
    return Battles(cast(Workbench, fake), Store(tmp_path / "j.sqlite"))


def last(shown: Any) -> Progress:
    """The end of a battle or ranking, all answers there."""
    found = list(shown)
    done = [s.done for s in found[:-1]]  # the same number again twice a second
    assert list(dict.fromkeys(done)) == list(range(found[0].total + 1)) and done == sorted(done)
    assert found[-1].done == found[0].total
    assert all(not s.id and not s.texts for s in found[:-1])
    assert len(found[-1].texts) == found[0].total
    return found[-1]


def test_a_vote_is_stored_with_all_that_it_takes_to_train_on_it(
    battles: Battles, fake: FakeWorkbench
) -> None:
    shown = last(battles.battle("Why?", POOL, temperature=9, max_new_tokens=10**9))
    told = battles.vote(shown.id, "b", reason="shorter", labeler="Ann")
    assert battles.store.all() == [told]
    assert tuple(r.text for r in told.replies) == shown.texts
    assert told.prompt == ({"role": "user", "content": "Why?"},)
    assert (told.verdict, told.reason, told.labeler) == ("b", "shorter", "Ann")
    assert told.sampling == {"temperature": 2.0, "max_new_tokens": 512}
    assert told.base == fake.roles.fingerprint
    assert abs(time.time() - _seconds(told.time)) < 60
    for reply in told.replies:
        entry = fake.catalog.checkpoints[reply.checkpoint]
        assert reply.name == entry.name
        # the fake's weights files hold the run's name
        weights = None if entry.path is None else hashlib.sha256(entry.name.encode()).hexdigest()
        assert reply.adapter == weights
        assert reply.text.endswith(f" {reply.seed}")


def _seconds(time: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(time).timestamp()


def test_pairs_orders_seeds_and_ids_are_drawn_anew(battles: Battles, fake: FakeWorkbench) -> None:
    ids, pairs = set(), Counter()
    for _ in range(600):
        shown = last(battles.battle("Why?", POOL))
        ids.add(shown.id)
        told = battles.vote(shown.id, "tie")
        pairs[tuple(r.name for r in told.replies)] += 1
    assert len(ids) == 600 and min(map(len, ids)) >= 32
    assert len({call["seed"] for call in fake.asked}) == 600
    # six ordered pairs of 100 expected each; five standard deviations are 46
    assert len(pairs) == 6 and all(54 <= n <= 146 for n in pairs.values())
    first_answered = Counter(
        call["checkpoints"][0] == f"{_id(fake, told.replies[0].name)}"
        for call, told in zip(fake.asked, battles.store.all(), strict=True)
    )
    assert 235 <= first_answered[True] <= 365  # the order of answering says nothing either


def _id(fake: FakeWorkbench, name: str) -> str:
    return next(e.id for e in fake.catalog.checkpoints.values() if e.name == name)


def test_the_same_vote_again_is_answered_alike_and_stored_once(battles: Battles) -> None:
    shown = last(battles.battle("Why?", POOL))
    first = battles.vote(shown.id, "a")
    again = battles.vote(shown.id, "a")
    assert again.replies == first.replies
    assert battles.store.count() == 1
    with pytest.raises(ConfigError, match="already have another judgement"):
        battles.vote(shown.id, "b")
    assert battles.store.all() == [first]


@pytest.mark.parametrize("id", ["", "x", "é", "\ud800", None, 3, ["x"], {}])
def test_only_what_was_shown_can_be_judged(battles: Battles, id: object) -> None:
    for judge in (lambda: battles.vote(id, "a"), lambda: battles.rank(id, (1, 1, 1, 1))):
        with pytest.raises(ConfigError, match="not waiting for a verdict"):
            judge()


def test_a_bad_verdict_stores_nothing_and_can_be_mended(battles: Battles) -> None:
    shown = last(battles.battle("Why?", POOL))
    with pytest.raises(ConfigError, match="a verdict is one of a, b, tie"):
        battles.vote(shown.id, "c")
    with pytest.raises(ConfigError, match="not waiting"):
        battles.rank(shown.id, (1, 2))
    assert battles.store.count() == 0
    battles.vote(shown.id, "both_bad")
    assert battles.store.count() == 1


def test_a_battle_expires(fake: FakeWorkbench, tmp_path: Path) -> None:
    battles = Battles(cast(Workbench, fake), Store(tmp_path / "j.sqlite"), max_age_s=0.05)
    shown = last(battles.battle("Why?", POOL))
    time.sleep(0.06)
    with pytest.raises(ConfigError, match="not waiting for a verdict"):
        battles.vote(shown.id, "a")
    assert battles.store.count() == 0


def test_the_oldest_pending_battle_makes_room(fake: FakeWorkbench, tmp_path: Path) -> None:
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
def test_a_rankings_answers_are_shared_out_evenly(
    battles: Battles, pool: list[str], k: object, shares: list[int]
) -> None:
    shown = last(battles.ranking("Why?", pool, k))
    wanted = sum(shares)
    told = battles.rank(shown.id, tuple(range(1, wanted + 1)), likert=[7] + [None] * (wanted - 1))
    assert tuple(r.text for r in told.replies) == shown.texts
    assert sorted(Counter(r.name for r in told.replies).values()) == shares
    assert len(set(shown.texts)) == wanted  # a seed of its own for each answer of a checkpoint
    assert told.likert is not None and told.likert[0] == 7
    assert battles.store.all() == [told]


def test_nine_checkpoints_are_asked_in_calls_that_the_workbench_takes(tmp_path: Path) -> None:
    fake = FakeWorkbench(tmp_path / "runs", "a b c d e f g h i")
    battles = Battles(cast(Workbench, fake), Store(tmp_path / "j.sqlite"))
    shown = last(battles.ranking("Why?", list(fake.catalog.checkpoints), 9, temperature=0))
    assert max(len(call["checkpoints"]) for call in fake.asked) <= MAX_COLUMNS
    assert len(set(shown.texts)) == 9


def test_requests_that_cannot_be(battles: Battles) -> None:
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


def test_a_checkpoint_that_fails_is_not_named(battles: Battles, fake: FakeWorkbench) -> None:
    fake.fail = {"dpo"}
    with pytest.raises(ConfigError, match="one of the checkpoints did not answer") as error:
        list(battles.battle("Why?", POOL[1:]))
    assert "dpo" not in str(error.value)
    assert battles._pending == {}


def test_an_adapter_trained_again_has_another_hash(battles: Battles, fake: FakeWorkbench) -> None:
    told = [battles.vote(last(battles.battle("Why?", POOL[1:])).id, "a")]
    for name in ("sft", "dpo"):
        (fake.runs / name / "adapter_model.safetensors").write_text("other weights")
    told.append(battles.vote(last(battles.battle("Why?", POOL[1:])).id, "a"))
    before, after = ({r.adapter for r in t.replies} for t in told)
    assert len(before) == 2 and after == {hashlib.sha256(b"other weights").hexdigest()}


def test_real_checkpoints_battle_and_are_ranked(
    workbench: Workbench, runs: Path, tmp_path: Path
) -> None:
    battles = Battles(workbench, Store(tmp_path / "j.sqlite"))
    pool = list(workbench.catalog.checkpoints)
    battle = last(battles.battle("What is it?", pool, temperature=0, max_new_tokens=6))
    ranked = last(battles.ranking("What is it?", pool[1:], 4, temperature=1, max_new_tokens=6))
    told = [battles.vote(battle.id, "a"), battles.rank(ranked.id, (1, 2, 2, 3))]
    assert battles.store.all() == told
    for judgement in told:
        for reply in judgement.replies:
            (again,) = workbench.compare(
                "What is it?", [reply.checkpoint], seed=reply.seed, **judgement.sampling
            )
            assert (again.name, again.text) == (reply.name, reply.text)
            if reply.name != "base":
                weights = (runs / reply.name / "adapter_model.safetensors").read_bytes()
                assert reply.adapter == hashlib.sha256(weights).hexdigest()
        assert judgement.base == workbench.roles.fingerprint


def test_a_judgement_names_the_weights_that_answered_not_those_on_the_disk(
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
    told = battles.vote(last(battle).id, "a")
    assert {r.name: r.adapter for r in told.replies} == answered
    again = battles.vote(last(battles.battle("What is it?", pool, max_new_tokens=4)).id, "a")
    retrained = hashlib.sha256(weights["dpo"].read_bytes()).hexdigest()
    assert {r.name: r.adapter for r in again.replies} == answered | {"dpo": retrained}


def test_a_simulated_labeler_prefers_what_gold_does_and_ties_equal_answers() -> None:
    rng = random.Random(0)
    (question,) = sample_questions(rng, "test", 1)
    calm = Labeler(courtesy=0.0, length=0.0, noise=0.0)
    good = answer(question, rng, right=1.0, good=1.0, manners=(0, 1, 0, 0)).text
    texts = {good, bad_answer(question, rng), "Go away."}
    better, *_, worse = sorted(texts, key=lambda t: -features(question.prompt, t).utility)
    assert verdict(calm, question.prompt, (better, worse), rng) == A
    assert verdict(calm, question.prompt, (worse, better), rng) == B
    assert verdict(calm, question.prompt, (better, better), rng) == TIE


def test_a_visitor_who_leaves_cancels_all_answers(
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
