"""Many visitors share one model: answers, limits, errors, cancellation."""

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from trl import ModelConfig

from tests.app.test_workbench import Plain, ids_of
from toolkit.app.answering import engine as module
from toolkit.app.answering import work_queue
from toolkit.app.answering.beams import BeamSearch
from toolkit.app.answering.metrics import OUT_OF_MEMORY
from toolkit.app.answering.request import Answer
from toolkit.app.judgements.battles import Battles
from toolkit.app.judgements.store import Store
from toolkit.app.workbench import Comparison, Workbench
from toolkit.errors import BusyError, ConfigError
from toolkit.models.base import load_base
from toolkit.models.roles import Roles
from toolkit.runs.run import Run
from toolkit.sampling.row_batch import RowBatch

NAMES = ("base", "sft", "dpo", "ppo")
NEVER = [-1]  # not in any vocabulary; transformers' beam search needs a stop token


def ask(workbench: Workbench, prompt: object, *names: str, **kwargs: Any) -> list[Answer]:
    """Answers; by default greedy, with 12 tokens."""
    ids = ids_of(workbench)
    settings = {"temperature": 0.0, "max_new_tokens": 12} | kwargs
    return list(workbench.compare(prompt, [ids[n] for n in names], **settings))


def slowly(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.02) -> list[int]:
    """Slow down each token. Returns a list that grows by one entry per token."""
    steps: list[int] = []
    step = RowBatch.step

    def slow(self: RowBatch) -> Any:
        time.sleep(seconds)
        steps.append(len(self.rows))
        return step(self)

    monkeypatch.setattr(RowBatch, "step", slow)
    return steps


def until(condition: Callable[[], bool], *, within: float) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < within, "too late"
        time.sleep(0.01)


def endless(workbench: Workbench, *names: str, prompt: str = "Hello") -> Comparison:
    """A question whose answer has 100 tokens: no token ends it."""
    workbench.metrics.stop = []
    ids = ids_of(workbench)
    return workbench.stream(prompt, [ids[n] for n in names], temperature=1.0, max_new_tokens=100)


@pytest.mark.slow
def test_32_simultaneous_visitors_get_their_own_answers(workbench: Workbench) -> None:
    questions = [(f"What is it? {'it ' * (i % 7)}{i}", NAMES[i % 4]) for i in range(32)]
    expected = [ask(workbench, prompt, name)[0] for prompt, name in questions]
    answers: list[Answer | None] = [None] * 32

    def visit(i: int) -> None:
        answers[i] = ask(workbench, questions[i][0], questions[i][1])[0]

    threads = [threading.Thread(target=visit, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [(a.name, a.text) for a in answers if a] == [(a.name, a.text) for a in expected]
    assert [a.kl for a in answers if a] == pytest.approx([a.kl for a in expected], abs=1e-4)
    assert len({a.text for a in expected}) > 16


@pytest.mark.slow
def test_answers_stream(workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    slowly(monkeypatch)
    snapshots = list(endless(workbench, "sft", "base"))
    lengths = [answers[0].tokens for answers in snapshots]
    assert lengths == sorted(lengths) and len(set(lengths)) > 5
    assert [a.done for a in snapshots[-1]] == [True, True] and not snapshots[1][0].done
    for before, after in itertools.pairwise(snapshots):
        assert after[0].text.startswith(before[0].text)
    assert snapshots[-1][0].tokens == 100 and (snapshots[-1][0].speed or 0) > 1


def test_closed_page_stops_its_rows(workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ask(workbench, "What is it?", "dpo")
    steps = slowly(monkeypatch, 0.1)
    page = iter(endless(workbench, *NAMES))
    until(lambda: len(steps) > 2 or not next(page), within=10)
    page.close()  # type: ignore[attr-defined]
    until(lambda: not workbench.engine._running, within=2)
    count = len(steps)
    time.sleep(0.3)
    assert len(steps) == count
    monkeypatch.undo()
    workbench.metrics.stop = workbench.stop
    assert ask(workbench, "What is it?", "dpo") == expected


def test_stop_one_column_or_all(workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    slowly(monkeypatch)
    comparison = endless(workbench, "sft", "dpo", "ppo")
    until(lambda: comparison.now()[0].tokens > 1, within=10)
    comparison.stop(ids_of(workbench)["dpo"])
    until(lambda: comparison.now()[1].done, within=2)
    dpo = comparison.now()[1]
    assert 0 < dpo.tokens < 100 and "stopped" in dpo.notes and dpo.kl is not None
    assert not comparison.now()[0].done
    comparison.stop()
    *_, last = comparison
    assert all(a.done and a.tokens < 100 for a in last)
    assert last[0].tokens > dpo.tokens


def test_question_stops_at_the_time_limit(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly(monkeypatch)
    monkeypatch.setattr(module, "MAX_SECONDS", 0.5)
    *_, (answer,) = endless(workbench, "sft")
    assert 0 < answer.tokens < 100 and "limit" in answer.notes[0]


def test_full_queue_raises_busy_error(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly(monkeypatch)
    monkeypatch.setattr(work_queue, "MAX_WAITING", 2)
    monkeypatch.setattr(module, "MAX_ROWS", 1)
    first = endless(workbench, "sft")
    until(lambda: first.now()[0].tokens > 0, within=10)
    waiting = [endless(workbench, "dpo") for _ in range(2)]
    with pytest.raises(BusyError, match="busy: 2 questions are already waiting"):
        endless(workbench, "ppo")
    for comparison in (first, *waiting):
        comparison.close()
    until(lambda: not workbench.engine.queue.jobs, within=5)
    workbench.metrics.stop = workbench.stop
    assert ask(workbench, "What is it?", "ppo")[0].problem is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_out_of_memory_fails_only_the_newest_question(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    expected = [ask(workbench, "What is it?", n)[0] for n in ("sft", "dpo")]
    slowly(monkeypatch)
    ids, step = ids_of(workbench), RowBatch.step

    def tight(self: RowBatch) -> Any:
        if len(self.rows) > 2:
            raise error
        return step(self)

    monkeypatch.setattr(RowBatch, "step", tight)
    comparison = workbench.stream(
        "What is it?", [ids["sft"], ids["dpo"]], temperature=0, max_new_tokens=12
    )
    until(lambda: comparison.now()[0].tokens > 2, within=10)
    assert ask(workbench, "Hello", "ppo")[0].problem == OUT_OF_MEMORY
    *_, last = comparison
    assert [(a.text, a.tokens) for a in last] == [(a.text, a.tokens) for a in expected]
    assert [a.problem for a in ask(workbench, "Hi", *NAMES)] == [OUT_OF_MEMORY] * 4
    assert ask(workbench, "What is it?", "sft")[0] == expected[0]


def test_engine_survives_an_unexpected_error(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module.Engine, "_join_batches", lambda self: 1 / 0)
        answers = ask(workbench, "What is it?", "sft", "base")
        assert [a.problem for a in answers] == ["division by zero"] * 2
    assert ask(workbench, "What is it?", "sft")[0].problem is None


def test_dora_runs_in_its_own_batch(workbench: Workbench, tiny_base: str, runs: Path) -> None:
    model = ModelConfig(model_name_or_path=tiny_base, dtype="float32")
    base, _ = load_base(model)
    run = Run.start(runs / "dora", recipe="dpo", parents={"adapter": str(runs / "sft")})
    run.base = workbench.roles.fingerprint
    roles = Roles(base, run.base)
    torch.manual_seed(8)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=True)
    roles.create("default", config)
    for parameter in roles.parameters("default"):
        torch.nn.init.normal_(parameter, std=0.3)
    roles.save("default", run.path)
    run.finish()
    workbench.refresh()
    for answer in ask(workbench, "What is it?", "sft", "dora", "base"):
        folder = None if answer.name == "base" else runs / answer.name
        assert answer.text == Plain(tiny_base, folder).answer()[1]


def test_beam_search_equals_transformers(workbench: Workbench, tiny_base: str, runs: Path) -> None:
    answer = ask(workbench, "What is it?", "sft", beams=3)[0]
    plain = Plain(tiny_base, runs / "sft")
    output = plain.model.generate(
        input_ids=plain.prompt, num_beams=3, do_sample=False, max_new_tokens=12
    )
    expected = output[0, plain.prompt.shape[1] :].tolist()
    assert list(answer.ids) == expected
    assert expected != plain.answer()[0]


def test_each_checkpoint_can_have_its_own_conversation(workbench: Workbench) -> None:
    ids = ids_of(workbench)

    def turns(text: str) -> list[dict[str, str]]:
        first = {"role": "user", "content": "Hello"}
        return [
            first,
            {"role": "assistant", "content": text},
            {"role": "user", "content": "And?"},
        ]

    alone = [ask(workbench, turns(n), n)[0].text for n in ("sft", "dpo")]
    both = {ids[n]: turns(n) for n in ("sft", "dpo")}
    assert [a.text for a in ask(workbench, both, "sft", "dpo")] == alone
    assert ask(workbench, turns("other"), "sft")[0].text != alone[0]
    with_system = ask(workbench, "Hello", "sft", system="What is it?")[0].text
    messages = [{"role": "system", "content": "What is it?"}, {"role": "user", "content": "Hello"}]
    assert (
        with_system
        == ask(workbench, messages, "sft")[0].text
        != ask(workbench, "Hello", "sft")[0].text
    )
    with pytest.raises(ConfigError, match="write a prompt"):
        ask(workbench, {ids["sft"]: turns("x")}, "sft", "dpo")


@pytest.mark.slow
def test_z_uses_the_answers_of_sft(workbench: Workbench) -> None:
    ids = ids_of(workbench)
    reward = ids["reward"]
    assert "no z" in ask(workbench, "Hi", "ppo", reward=reward)[0].notes[0]
    workbench.metrics.prompts = ["What is it?", "Hello", "I do not know it."]
    workbench.metrics._baselines.clear()
    answer = ask(workbench, "Hi", "ppo", reward=reward)[0]
    scores = [
        ask(workbench, p, "sft", reward=reward, temperature=1.0, seed=i, max_new_tokens=96)[0].score
        for i, p in enumerate(workbench.metrics.prompts)
    ]
    baseline = torch.tensor(scores)
    assert answer.z == pytest.approx(
        (((answer.score or 0) - baseline.mean()) / baseline.std()).item(), abs=1e-4
    )
    assert answer.z_source == "3 answers of sft"


def test_z_uses_the_spread_of_demonstrations(workbench: Workbench) -> None:
    run = Run.load(workbench.runs / "reward")
    run.results["score_std"] = 2.0
    run.save()
    answer = ask(workbench, "Hi", "ppo", reward=ids_of(workbench)["reward"])[0]
    assert answer.z == pytest.approx((answer.score or 0) / 2)
    assert answer.z_source == "the demonstrations"


def test_beam_search_takes_turns_with_other_answers(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ask(workbench, "What is it?", "dpo")[0]
    alone = ask(workbench, "What is it?", "sft", beams=3, max_new_tokens=40)[0]
    turns: list[int] = []
    step = BeamSearch.step

    def slow(self: BeamSearch) -> bool:
        time.sleep(0.05)
        turns.append(1)
        return step(self)

    monkeypatch.setattr(BeamSearch, "step", slow)
    workbench.metrics.stop = NEVER
    ids = ids_of(workbench)
    search = workbench.stream(
        "What is it?", [ids["sft"], ids["ppo"]], beams=3, temperature=0, max_new_tokens=100
    )
    until(lambda: len(turns) > 2, within=10)
    workbench.metrics.stop = workbench.stop
    start = time.monotonic()
    assert ask(workbench, "What is it?", "dpo")[0] == expected
    assert time.monotonic() - start < 2 and not search.now()[0].done
    search.stop()
    until(lambda: search.now()[0].done and search.now()[1].done, within=2)
    first, second = search.now()
    assert 2 < first.tokens < 100 and "stopped" in first.notes
    assert second.tokens == 0 and "stopped" in second.notes  # it had not started
    monkeypatch.undo()
    again = ask(workbench, "What is it?", "sft", beams=3, max_new_tokens=40)[0]
    assert again == alone


def test_closed_page_ends_its_beam_search(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = BeamSearch.step
    monkeypatch.setattr(BeamSearch, "step", lambda self: time.sleep(0.05) or step(self))
    workbench.metrics.stop = NEVER
    before = threading.active_count()
    ids = [ids_of(workbench)["sft"]]
    page = iter(workbench.stream("Hello", ids, beams=4, max_new_tokens=100))
    until(lambda: workbench.engine._search is not None or not next(page), within=10)
    page.close()  # type: ignore[attr-defined]
    until(lambda: not workbench.engine._searches, within=2)
    until(lambda: threading.active_count() <= before + 1, within=2)  # the engine's thread


def test_closed_battle_stops_before_its_answers_are_complete(
    workbench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly(monkeypatch, 0.1)
    workbench.metrics.stop = []
    battles = Battles(workbench, Store(tmp_path / "judgements.sqlite"))
    ids = ids_of(workbench)
    battle = battles.battle("Hello", [ids["sft"], ids["dpo"]], max_new_tokens=100)
    start = time.monotonic()
    beats = [next(battle) for _ in range(3)]
    assert time.monotonic() - start < 2 and {beat.done for beat in beats} == {0}
    battle.close()  # type: ignore[attr-defined]
    until(lambda: not workbench.engine._running, within=2)
