"""The page is there before the base is; what needs the base waits for it."""

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
from toolkit.app.answering.answers import Answer
from toolkit.app.answering.chat import Chat
from toolkit.app.judgements.battles import Battles
from toolkit.app.judgements.store import Store
from toolkit.app.opening import Opening
from toolkit.app.tabs.compare_events import CompareEvents, new_chat
from toolkit.app.workbench import Workbench

pytestmark = pytest.mark.slow


def test_what_needs_the_base_waits_until_it_is_there(tiny_base: str, runs: Path) -> None:
    opening = Opening(tiny_base, runs)
    assert not opening.ready and list(opening.catalog.checkpoints) == ["base"]
    assert opening.catalog.checkpoints["base"].label == "base (tiny)"
    said: list[str] = []

    def visit() -> None:
        answers = opening.compare("What is it?", ["base"], temperature=0, max_new_tokens=4)
        said.extend(answer.text for answer in answers)

    visitor = threading.Thread(target=visit)
    visitor.start()
    time.sleep(0.2)
    assert said == [] and visitor.is_alive()
    workbench = Workbench.open(tiny_base, runs)
    opening.open(lambda: workbench)
    visitor.join(30)
    expected = workbench.compare("What is it?", ["base"], temperature=0, max_new_tokens=4)
    assert said == [answer.text for answer in expected]
    assert opening.ready and opening.catalog is workbench.catalog


def test_the_page_is_built_without_torch() -> None:
    code = """
import sys, gradio, app
from toolkit.app.judgements.battles import Battles
from toolkit.app.judgements.store import Store
from toolkit.app.answering.answers import Answer
from toolkit.app.answering.chat import Chat
from toolkit.app.judgements.battles import Battles
from toolkit.app.judgements.store import Store
from toolkit.app.opening import Opening
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
import tempfile
with tempfile.TemporaryDirectory() as folder:
    opening = Opening("world:base", Path(folder))
    app.build(opening, Battles(opening, Store(Path(folder) / "j.sqlite")), [])
    assert len(opening.examples()) == 8
print([m for m in ("torch", "transformers", "peft", "trl", "datasets") if m in sys.modules])
"""
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_who_asks_before_the_lists_are_there_asks_those_chosen_at_first(
    tiny_base: str, runs: Path
) -> None:
    opening = Opening(tiny_base, runs)
    event = CompareEvents(cast(Workbench, opening)).answering(new_chat)
    visitor = SimpleNamespace(session_hash="one")
    settings = (0, 4, 0, 1, 1, "", 0)
    threading.Timer(0.2, opening.open, [lambda: Workbench.open(tiny_base, runs)]).start()
    for _ in range(2):  # the second time the lists are on their way to the page
        *_, last = event(Chat(), "What is it?", [], None, *settings, visitor)
        labels = [update["label"] for update in last[3 : 2 + 5 * 4 : 5]]
        assert labels == ["base", "sft", "dpo", "ppo"]
        assert "Score" in last[5]["value"]
    with pytest.raises(gr.Error, match="choose at least one"):
        next(event(Chat(), "What is it?", [], "no_score", *settings, visitor))


@pytest.mark.parametrize(
    ("event", "asked", "answers"),
    [("battle", ("What is it?", [], 0.7, 4), 2), ("ranking", ("What is it?", [], 5, 0.7, 4), 5)],
)
def test_who_judges_before_the_lists_are_there_judges_those_chosen_at_first(
    tiny_base: str, runs: Path, event: str, asked: tuple[Any, ...], answers: int
) -> None:
    opening = Opening(tiny_base, runs)
    workbench = cast(Workbench, opening)
    battles = Battles(workbench, Store(runs / "judgements.sqlite"))
    page = build(workbench, battles, [])
    begin = next(f.fn for f in page.fns.values() if f.api_name == event)
    threading.Timer(0.2, opening.open, [lambda: Workbench.open(tiny_base, runs)]).start()
    *_, last = begin(*asked)
    _, judgement = battles._pending[last[0]]
    assert len(judgement.replies) == answers
    assert {r.name for r in judgement.replies} <= {"base", "sft", "dpo", "ppo"}
    with pytest.raises(gr.Error, match="choose at least"):  # an empty list is a choice by then
        next(begin(*asked))


def test_tabs_that_judge_say_what_to_do_where_there_are_no_runs(
    tiny_base: str, runs: Path, tmp_path: Path
) -> None:
    for folder, empty in ((tmp_path / "none", True), (runs, False)):
        workbench = Workbench.open(tiny_base, folder)
        page = build(workbench, Battles(workbench, Store(tmp_path / "judgements.sqlite")), [])
        looks = [f.fn for f in page.fns.values() if f.name == "load_pool"]
        assert len(looks) == 2  # Arena's and Rank's
        for look in looks:
            *_, (said, pool) = look([])
            assert said["visible"] is empty and "make quickstart" in said["value"]
            assert len(pool["value"]) == (1 if empty else 4)


def test_what_changed_begins_with_the_checkpoint_trained_furthest(
    tiny_base: str, runs: Path, tmp_path: Path
) -> None:
    opening = Opening(tiny_base, runs)
    workbench = cast(Workbench, opening)
    page = build(workbench, Battles(workbench, Store(tmp_path / "judgements.sqlite")), [])
    opening.open(lambda: Workbench.open(tiny_base, runs))
    ids = {e.name: e.id for e in workbench.catalog.checkpoints.values()}
    take = next(f.fn for f in page.fns.values() if f.name == "take")
    assert take(Chat(), None)[0]["value"] == ids["ppo"]
    assert take(Chat(), ids["sft"])[0]["value"] == ids["sft"]
    asked = Chat().asked("Why?").answered([Answer(ids[n], n, "So.") for n in ("sft", "dpo")])
    chosen, beside, prompt, said, _ = take(asked, None)
    assert (chosen["value"], beside["value"]) == (ids["dpo"], ids["sft"])
    assert (prompt, said) == ("Why?", "So.")
    assert take(asked, ids["sft"])[0]["value"] == ids["sft"]
    assert take(asked, ids["ppo"])[0]["value"] == ids["dpo"]
