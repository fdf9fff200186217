"""Visits with a real browser that check the engine: close, stop, regenerate, edit, full queue."""

import json
import re
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client

from app import build
from tests.app.conftest import copied_runs
from toolkit.app.answering import engine, work_queue
from toolkit.app.judgements.battles import Battles
from toolkit.app.judgements.store import Store
from toolkit.app.web.middleware import SecurityHeaders
from toolkit.app.web.scripts import HINTS
from toolkit.app.web.server import free_port, serve
from toolkit.app.workbench import Workbench
from toolkit.sampling.row_batch import RowBatch

NEVER = [-1]  # not in any vocabulary


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times at which the server received a message: a request or a disconnect."""
    times: list[float] = []
    call = SecurityHeaders.__call__

    async def recorded_call(self: Any, scope: Any, receive: Any, send: Any) -> None:
        async def recorded_receive() -> Any:
            message = await receive()
            times.append(time.monotonic())
            return message

        await call(self, scope, recorded_receive, send)

    monkeypatch.setattr(SecurityHeaders, "__call__", recorded_call)
    return times


@pytest.fixture(scope="module")
def workbench(
    tiny_base: str, runs_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Workbench:
    """The workbench of all visits."""
    return Workbench.open(tiny_base, copied_runs(runs_template, tmp_path_factory.mktemp("visits")))


@pytest.fixture(scope="module")
def served_page(workbench: Workbench) -> Iterator[str]:
    """The whole page in this process. A token takes 0.1 s, and no token ends an answer."""
    step = RowBatch.step
    workbench.metrics.stop = NEVER
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RowBatch, "step", lambda self: time.sleep(0.1) or step(self))
        patch.setattr(workbench, "examples", lambda: ["Hello there.", "What is it?"])
        page = build(workbench, Battles(workbench, Store(workbench.runs / "judgements.sqlite")), [])
        url = serve(page, host="127.0.0.1", port=free_port())
        yield url
        page.close(verbose=False)


@pytest.fixture
def address(served_page: str, workbench: Workbench) -> Iterator[str]:
    """The page's URL. After the test, all answers stop."""
    yield served_page
    model = workbench.engine
    for job in [*model.queue.jobs, *model._running]:
        job.cancelled = True
    model._wake()
    start = time.monotonic()
    while not idle(workbench):
        assert time.monotonic() - start < 10
        time.sleep(0.02)


def opened(browser: Any, address: str) -> Any:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(address)
    page.locator(".token", has_text="ppo (ppo)").first.wait_for()
    return page


def rows(workbench: Workbench) -> int:
    """The number of answers in progress."""
    return workbench.engine._row_count()


def idle(workbench: Workbench) -> bool:
    """Whether no job runs or waits. Zero rows are not enough: prompts may be being read."""
    return not workbench.engine._running and not workbench.engine.queue.jobs


def until(condition: Callable[[], bool], page: Any, *, within: float) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < within, "too late"
        page.wait_for_timeout(20)


def soon(
    condition: Callable[[], bool],
    received: list[float],
    event: Callable[[], None],
    *,
    within: float,
) -> None:
    """Trigger an event in the browser and wait for the condition.

    The time limit starts when the server receives the event: on a busy machine, a browser can take
    seconds to close a page or to click a button.
    """
    before = time.monotonic()
    event()
    while not (times := [moment for moment in received if moment >= before]):
        assert time.monotonic() - before < 30, "the server received nothing"
        time.sleep(0.005)
    while not condition():
        assert time.monotonic() - times[0] < within, "too late"
        time.sleep(0.005)


STOP = "Stop all answers"


def ask(page: Any, tab: str) -> None:
    page.get_by_role("tab", name=tab, exact=True).click()
    page.get_by_label("Prompt").locator("visible=true").first.fill("Hello")
    if tab == "Compare":
        page.keyboard.press("Enter")
        return
    names = {"Arena": "Start a battle (Ctrl+Enter)", "Rank": "Get answers"}
    page.get_by_role("button", name=names[tab], exact=True).click()


@pytest.mark.browser
def test_closed_tab_and_stop_end_answers_within_two_seconds(
    workbench: Workbench, received: list[float], address: str, browser: Any
) -> None:
    page = opened(browser, address)
    for tab, stop in (("Compare", STOP), ("Arena", "Stop (Esc)"), ("Rank", "Stop")):
        other = opened(browser, address)
        ask(page, tab)
        until(lambda: rows(workbench) > 1, page, within=10)
        jobs = list(workbench.engine._running)
        soon(lambda: idle(workbench), received, page.close, within=2)
        assert jobs and all(job.cancelled for job in jobs), tab  # they did not end by themselves
        ask(other, tab)  # the next request is served
        until(lambda: rows(workbench) > 1, other, within=5)
        button = other.get_by_role("button", name=stop, exact=True)
        jobs = list(workbench.engine._running)
        soon(lambda: idle(workbench), received, button.click, within=2)
        kept = tab == "Compare"  # its Stop keeps the answers so far
        assert jobs and all(job.cancelled != kept for job in jobs), tab
        page = other


@pytest.mark.browser
def test_stop_regenerate_edit_and_copy(
    workbench: Workbench, received: list[float], address: str, browser: Any
) -> None:
    page = opened(browser, address)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="What is it?", exact=True).click()  # and at once:
    page.keyboard.press("Enter")
    page.keyboard.type("And?")  # at once
    until(lambda: rows(workbench) == 4, page, within=10)
    page.get_by_role("button", name=STOP).wait_for()
    assert page.get_by_label("Prompt").first.input_value() == "And?"
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)  # ignored while answers stream, and the text stays
    assert rows(workbench) == 4 and page.get_by_label("Prompt").first.input_value() == "And?"
    stop_one = page.get_by_role("button", name="Stop this one").locator("visible=true").first
    soon(lambda: rows(workbench) == 3, received, stop_one.click, within=2)
    stop_all = page.get_by_role("button", name=STOP)
    soon(lambda: idle(workbench), received, stop_all.click, within=2)
    stopped = """() => [...document.querySelectorAll('.answers summary')]
        .filter(e => e.getClientRects().length && /stopped/.test(e.innerText))"""
    page.wait_for_function(f"() => ({stopped})().length == 4", timeout=10000)
    first = answers(page)
    page.get_by_role("button", name="Regenerate").click()
    until(lambda: rows(workbench) == 4, page, within=5)
    page.wait_for_timeout(1000)
    stop_all.click()
    page.wait_for_function(f"() => ({stopped})().length == 4", timeout=10000)
    assert answers(page) != first  # another seed
    commands = page.locator(".command").filter(visible=True)
    texts = [field.locator("input").input_value() for field in commands.all()]
    assert len(texts) == 4 and all("--seed 1 " in text for text in texts)
    commands.nth(2).get_by_label("Copy").click()
    page.wait_for_timeout(300)
    assert page.evaluate("navigator.clipboard.readText()") == texts[2]

    page.get_by_label("Prompt").first.fill("a < b & <i>c</i>")
    page.keyboard.press("Enter")
    until(lambda: rows(workbench) == 4, page, within=5)
    bubble = page.locator(".answers .user.message", has_text="a < b").first
    bubble.wait_for()
    edit = page.get_by_role("button", name="Edit last")
    soon(lambda: idle(workbench), received, edit.click, within=2)  # while the answers stream
    page.wait_for_timeout(500)
    assert page.get_by_label("Prompt").first.input_value() == "a < b & <i>c</i>"
    assert page.locator(".answers .user.message", has_text="a < b").count() == 0
    page.get_by_label("Prompt").first.press("Enter")
    until(lambda: rows(workbench) == 4, page, within=5)
    page.wait_for_timeout(500)
    stop_all.click()
    page.wait_for_function(f"() => ({stopped})().length == 8", timeout=10000)
    bubble.hover()
    column = page.locator(".answers").locator("visible=true").first
    column.get_by_label("Copy message").nth(3).click()
    assert page.evaluate("navigator.clipboard.readText()") == "a < b & <i>c</i>"


def answers(page: Any) -> list[str]:
    return [b.inner_text() for b in page.locator(".answers .bot.message").all() if b.is_visible()]


UNEXPLAINED = """() => {
  const seen = (e) => e.getClientRects().length > 0 && getComputedStyle(e).visibility !== "hidden";
  const named = (e) => (e.textContent || "").trim() || e.getAttribute("aria-label") || e.title ||
    (e.labels && e.labels.length && e.labels[0].textContent.trim());
  const explained = (e) => {
    if (e.closest("[title]:not([title=''])")) return true;
    const block = e.closest(".block");
    return block && block.querySelector(".info-text") !== null;
  };
  const gradioOwn = (e) => e.closest("table, .table-wrap, .icon-button-wrapper, .toolbar, .token");
  const problems = [];
  for (const e of document.querySelectorAll("button, input, textarea, select")) {
    if (!seen(e) || e.disabled || e.readOnly || gradioOwn(e)) continue;
    if (!named(e)) problems.push("no label: " + e.outerHTML.slice(0, 160));
    if (!explained(e)) problems.push("no tooltip: " + e.outerHTML.slice(0, 160));
  }
  return problems;
}"""


UNCHANGED = """() => new Promise((resolve) => {  // the page for 0.4 s; hints come after 0.2 s
  let timer = 0;
  const wait = () => { clearTimeout(timer); timer = setTimeout(resolve, 400); };
  const all = { childList: true, subtree: true, attributes: true, characterData: true };
  new MutationObserver(wait).observe(document, all);
  wait();
})"""


@pytest.mark.browser
def test_every_control_has_label_and_explanation(
    workbench: Workbench, address: str, browser: Any
) -> None:
    page = opened(browser, address)
    ask(page, "Compare")
    until(lambda: rows(workbench) > 1, page, within=10)
    page.get_by_role("button", name=STOP).click()
    until(lambda: idle(workbench), page, within=10)
    tabs = [tab.inner_text() for tab in page.get_by_role("tab").all() if tab.is_visible()]
    assert len(tabs) == 8
    for tab in tabs:
        page.get_by_role("tab", name=tab, exact=True).click()
        page.evaluate(UNCHANGED)
        for closed in page.locator("button.label-wrap:not(.open)").all():
            if closed.is_visible():
                closed.click()
        page.evaluate(UNCHANGED)
        assert page.evaluate(UNEXPLAINED) == [], tab
    assert page.locator("button[title]").count() > len(tabs)


@pytest.mark.browser
def test_what_changed_is_filled_when_the_answers_end(
    workbench: Workbench, address: str, browser: Any
) -> None:
    page = opened(browser, address)
    ask(page, "Compare")
    until(lambda: rows(workbench) > 1, page, within=10)
    page.get_by_role("tab", name="What changed").click()  # while the answers stream
    field = page.get_by_label("Answer to analyze")
    field.wait_for()
    assert field.input_value() == ""
    for job in list(workbench.engine._running):
        for column in job.columns:
            column.stopped = "stopped"
    page.wait_for_function("e => e.value.length > 0", arg=field.element_handle(), timeout=10000)


def test_batch_answers_every_prompt(workbench: Workbench, address: str, tmp_path: Path) -> None:
    client = Client(address, verbose=False, analytics_enabled=False, download_files=tmp_path)
    ids = [e.id for e in workbench.catalog.checkpoints.values() if e.name in ("sft", "ppo")]
    table, status = client.predict("One?\nTwo?", ids, "no_score", 0, 2, 0, api_name="/batch")
    assert status == "4 answers: complete."
    assert [row[:2] for row in table["value"]["data"]] == [[1, "One?"]] * 2 + [[2, "Two?"]] * 2
    files = client.predict(api_name="/batch_files")
    assert sorted(Path(file).suffix for file in files) == [".csv", ".jsonl"]


def test_hints_have_labels_without_numbers_and_brackets() -> None:
    assert {"Next best is", "Start a battle"} <= HINTS.keys()
    assert not [label for label in HINTS if re.search(r"[()0-9▼▲◀]", label)]


def test_page_shows_that_the_queue_is_full(
    workbench: Workbench, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_queue, "MAX_WAITING", 1)
    monkeypatch.setattr(engine, "MAX_ROWS", 1)
    ids = ["base"]
    first = workbench.stream("Hello", ids, max_new_tokens=100)
    while not rows(workbench):
        time.sleep(0.01)
    second = workbench.stream("Hello", ids, max_new_tokens=100)
    with urllib.request.urlopen(address + "config", timeout=30) as answer:
        events = json.load(answer)["dependencies"]
    number = next(e["id"] for e in events if e["api_name"] == "compare")
    session = uuid.uuid4().hex
    data = [None, None, "Hello", ids, "no_score", 0, 4, 0, 1, 1, "", 0]
    body = json.dumps({"data": data, "fn_index": number, "session_hash": session}).encode()
    head = {"content-type": "application/json"}
    join = urllib.request.Request(address + "gradio_api/queue/join", body, head)
    urllib.request.urlopen(join, timeout=30).read()
    stream = f"{address}gradio_api/queue/data?session_hash={session}"
    with urllib.request.urlopen(stream, timeout=30) as answer:
        line = next(line for line in answer if b"process_completed" in line)
    message = json.loads(line[5:])["output"]["error"]
    assert message == "busy: 1 questions are already waiting; try again in a moment"
    first.close()
    second.close()
