"""The page is served before the base is loaded; questions wait for the base."""

import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import gradio as gr
import pytest

from app import build
from tests.conftest import ROOT
from toolkit.app.answering.chat import Chat
from toolkit.app.answering.request import Answer
from toolkit.app.conversations.store import Conversations
from toolkit.app.judgements.battles import Battles
from toolkit.app.judgements.store import Store
from toolkit.app.loading import LoadingWorkbench
from toolkit.app.tabs.compare_columns import PARTS
from toolkit.app.tabs.compare_events import FRONT, CompareEvents, Visit, new_chat
from toolkit.app.workbench import Workbench

pytestmark = pytest.mark.slow


def test_question_is_queued_until_the_base_is_loaded(tiny_base: str, runs: Path) -> None:
    loading = LoadingWorkbench(tiny_base, runs)
    assert not loading.ready and list(loading.catalog.checkpoints) == ["base"]
    assert loading.catalog.checkpoints["base"].label == "base (tiny)"
    texts: list[str] = []

    def visit() -> None:
        answers = loading.compare("What is it?", ["base"], temperature=0, max_new_tokens=4)
        texts.extend(answer.text for answer in answers)

    thread = threading.Thread(target=visit)
    thread.start()
    time.sleep(0.2)
    assert texts == [] and thread.is_alive()
    workbench = Workbench.open(tiny_base, runs)
    loading.load(lambda: workbench)
    thread.join(30)
    expected = workbench.compare("What is it?", ["base"], temperature=0, max_new_tokens=4)
    assert texts == [answer.text for answer in expected]
    assert loading.ready and loading.catalog is workbench.catalog


def test_page_is_built_without_torch() -> None:
    code = """
import sys, gradio, app
from toolkit.app.judgements.battles import Battles
from toolkit.app.judgements.store import Store
from toolkit.app.loading import LoadingWorkbench
from pathlib import Path
import tempfile
with tempfile.TemporaryDirectory() as folder:
    loading = LoadingWorkbench("world:base", Path(folder))
    app.build(loading, Battles(loading, Store(Path(folder) / "j.sqlite")), [])
    assert len(loading.examples()) == 8
print([m for m in ("torch", "transformers", "peft", "trl", "datasets") if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_question_before_loading_uses_the_default_choice(
    tiny_base: str, runs: Path, tmp_path: Path
) -> None:
    loading = LoadingWorkbench(tiny_base, runs)
    conversations = Conversations(tmp_path / "conversations.sqlite")
    event = CompareEvents(cast(Workbench, loading), conversations).answering(new_chat)
    visitor = SimpleNamespace(session_hash="one")
    settings = (0, 4, 0, 1, 1, "", 0)
    threading.Timer(0.2, loading.load, [lambda: Workbench.open(tiny_base, runs)]).start()
    for _ in range(2):  # the second time the base is loaded, but the page still has no lists
        *_, (_, *last) = event(Chat(), Visit(), "What is it?", [], None, *settings, visitor)
        columns = last[FRONT + 1 : FRONT + PARTS * 4 : PARTS]
        assert [column["label"] for column in columns] == ["base", "sft", "dpo", "ppo"]
        assert all("score" in str(column["value"]).lower() for column in columns)
    with pytest.raises(gr.Error, match="choose at least one"):
        list(event(Chat(), Visit(), "What is it?", [], "no_score", *settings, visitor))


@pytest.mark.parametrize(
    ("event", "inputs", "answers"),
    [("battle", ("What is it?", [], 0.7, 4), 2), ("ranking", ("What is it?", [], 5, 0.7, 4), 5)],
)
def test_judging_before_loading_uses_the_default_choice(
    tiny_base: str, runs: Path, event: str, inputs: tuple[Any, ...], answers: int
) -> None:
    loading = LoadingWorkbench(tiny_base, runs)
    workbench = cast(Workbench, loading)
    battles = Battles(workbench, Store(runs / "judgements.sqlite"))
    page = build(workbench, battles, [])
    begin = next(f.fn for f in page.fns.values() if f.api_name == event)
    threading.Timer(0.2, loading.load, [lambda: Workbench.open(tiny_base, runs)]).start()
    *_, last = begin(*inputs)
    _, judgement = battles._pending[last[0]]
    assert len(judgement.replies) == answers
    assert {r.name for r in judgement.replies} <= {"base", "sft", "dpo", "ppo"}
    # after loading, an empty list is a choice
    with pytest.raises(gr.Error, match="choose at least"):
        next(begin(*inputs))


def test_judging_tabs_explain_an_empty_runs_folder(
    tiny_base: str, runs: Path, tmp_path: Path
) -> None:
    for folder, empty in ((tmp_path / "none", True), (runs, False)):
        workbench = Workbench.open(tiny_base, folder)
        page = build(workbench, Battles(workbench, Store(tmp_path / "judgements.sqlite")), [])
        refreshes = [f.fn for f in page.fns.values() if f.name == "load_pool"]
        assert len(refreshes) == 3  # of Arena, Rank and Batch
        for refresh in refreshes:
            *_, (message, pool) = refresh([])
            assert message["visible"] is empty and "make quickstart" in message["value"]
            assert len(pool["value"]) == (1 if empty else 4)


def test_what_changed_starts_with_the_last_checkpoint(
    tiny_base: str, runs: Path, tmp_path: Path
) -> None:
    loading = LoadingWorkbench(tiny_base, runs)
    workbench = cast(Workbench, loading)
    page = build(workbench, Battles(workbench, Store(tmp_path / "judgements.sqlite")), [])
    loading.load(lambda: Workbench.open(tiny_base, runs))
    ids = {e.name: e.id for e in workbench.catalog.checkpoints.values()}
    take = next(f.fn for f in page.fns.values() if f.name == "take_or_wait")
    assert take(Chat(), None)[0]["value"] == ids["ppo"]
    assert take(Chat(), ids["sft"])[0]["value"] == ids["sft"]
    chat = (
        Chat().with_prompt("Why?").with_answers([Answer(ids[n], n, "So.") for n in ("sft", "dpo")])
    )
    first, second, prompt, answer, *_ = take(chat, None)
    assert (first["value"], second["value"]) == (ids["dpo"], ids["sft"])
    assert (prompt, answer) == ("Why?", "So.")
    assert take(chat, ids["sft"])[0]["value"] == ids["sft"]
    assert take(chat, ids["ppo"])[0]["value"] == ids["dpo"]
