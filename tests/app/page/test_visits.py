"""Visits with a real browser, with an eye on the engine: who leaves, who stops, who asks again."""

import json
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app import build, serve
from toolkit.app.answering import engine, inbox
from toolkit.app.judgements.battles import Battles
from toolkit.app.judgements.store import Store
from toolkit.app.web.headers import SecurityHeaders
from toolkit.app.web.hints import HINTS, key
from toolkit.app.web.ports import free_port
from toolkit.app.workbench import Workbench
from toolkit.sampling.row_batch import RowBatch

NEVER = [-1]  # a stop token that no vocabulary has


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the server heard of something: a request, or that a page is gone."""
    times: list[float] = []
    call = SecurityHeaders.__call__

    async def listened(self: Any, scope: Any, receive: Any, send: Any) -> None:
        async def noted() -> Any:
            message = await receive()
            times.append(time.monotonic())
            return message

        await call(self, scope, noted, send)

    monkeypatch.setattr(SecurityHeaders, "__call__", listened)
    return times


@pytest.fixture
def address(workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The whole page in this process, over a model that takes 0.1 s for a token and never ends."""
    step = RowBatch.step
    monkeypatch.setattr(RowBatch, "step", lambda self: time.sleep(0.1) or step(self))
    monkeypatch.setattr(workbench, "examples", lambda: ["Hello there.", "What is it?"])
    workbench.measurer.stop = NEVER
    page = build(workbench, Battles(workbench, Store(workbench.runs / "judgements.sqlite")), [])
    url = serve(page, host="127.0.0.1", port=free_port())
    yield url
    page.close(verbose=False)
    model = workbench.engine
    for job in [
        *model.inbox.jobs,
        *model._running,
    ]:  # nothing is left that runs while the tests end
        job.cancelled = True
    model._wake()
    start = time.monotonic()
    while rows(workbench) and time.monotonic() - start < 10:
        time.sleep(0.02)


def opened(browser: Any, address: str) -> Any:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(address)
    page.locator(".token", has_text="ppo (ppo)").first.wait_for()
    return page


def rows(workbench: Workbench) -> int:
    """Answers in the making."""
    return workbench.engine._busy_rows()


def idle(workbench: Workbench) -> bool:
    """Nobody's question is answered or waits; no rows alone may mean that prompts are being read."""
    return not workbench.engine._running and not workbench.engine.inbox.jobs


def until(condition: Callable[[], bool], page: Any, *, within: float) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < within, "too late"
        page.wait_for_timeout(20)


def soon(
    condition: Callable[[], bool], heard: list[float], event: Callable[[], None], *, within: float
) -> None:
    """Let something happen in the browser, and wait for what the app makes of it.

    The time runs from when the server heard of it: how long a browser takes to close a page or to
    press a button is its own affair, and seconds on a busy machine.
    """
    before = time.monotonic()
    event()
    while not (told := [moment for moment in heard if moment >= before]):
        assert time.monotonic() - before < 30, "the browser told nobody"
        time.sleep(0.005)
    while not condition():
        assert time.monotonic() - told[0] < within, "too late"
        time.sleep(0.005)


def ask(page: Any, tab: str) -> None:
    page.get_by_role("tab", name=tab, exact=True).click()
    page.get_by_label("Prompt").locator("visible=true").first.fill("Hello")
    names = {"Compare": "Ask", "Arena": "Start a battle (Ctrl+Enter)", "Rank": "Get answers"}
    page.get_by_role("button", name=names[tab], exact=True).click()


@pytest.mark.browser
@pytest.mark.parametrize("tab", ["Compare", "Arena", "Rank"])
def test_a_closed_tab_gives_up_its_answers_within_two_seconds(
    workbench: Workbench, heard: list[float], address: str, browser: Any, tab: str
) -> None:
    page, other = opened(browser, address), opened(browser, address)
    ask(page, tab)
    until(lambda: rows(workbench) > 1, page, within=10)
    asked = list(workbench.engine._running)
    soon(lambda: idle(workbench), heard, page.close, within=2)
    assert asked and all(job.cancelled for job in asked)  # and did not end by themselves
    ask(other, tab)  # the next request is served
    until(lambda: rows(workbench) > 1, other, within=5)


@pytest.mark.browser
@pytest.mark.parametrize("tab", ["Arena", "Rank"])
def test_stop_gives_up_answers_that_are_judged(
    workbench: Workbench, heard: list[float], address: str, browser: Any, tab: str
) -> None:
    page = opened(browser, address)
    ask(page, tab)
    until(lambda: rows(workbench) > 1, page, within=10)
    name = {"Arena": "Stop (Esc)", "Rank": "Stop"}[tab]
    stop = page.get_by_role("button", name=name, exact=True)
    asked = list(workbench.engine._running)
    soon(lambda: idle(workbench), heard, stop.click, within=2)
    assert asked and all(job.cancelled for job in asked)


@pytest.mark.browser
def test_stop_regenerate_edit_and_copy(
    workbench: Workbench, heard: list[float], address: str, browser: Any
) -> None:
    page = opened(browser, address)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="What is it?", exact=True).click()  # and at once:
    page.get_by_role("button", name="Ask", exact=True).click()
    until(lambda: rows(workbench) == 4, page, within=10)
    stop_one = page.get_by_role("button", name="Stop this one").locator("visible=true").first
    soon(lambda: rows(workbench) == 3, heard, stop_one.click, within=2)
    stop_all = page.get_by_role("button", name="Stop all")
    soon(lambda: idle(workbench), heard, stop_all.click, within=2)
    stopped = (
        "() => [...document.querySelectorAll('textarea')].filter(t => /no, stopped/.test(t.value))"
    )
    page.wait_for_function(f"{stopped}.length == 4", timeout=10000)
    first = said(page)
    page.get_by_role("button", name="Regenerate").click()
    until(lambda: rows(workbench) == 4, page, within=5)
    page.wait_for_timeout(1000)
    stop_all.click()
    page.wait_for_function(f"{stopped}.length == 4", timeout=10000)
    assert said(page) != first  # another seed
    fields = page.locator("label", has_text="Prints the same answer").filter(visible=True)
    commands = [field.locator("textarea").input_value() for field in fields.all()]
    assert len(commands) == 4 and all("--seed 1 " in command for command in commands)
    fields.nth(2).get_by_label("Copy").click()
    page.wait_for_timeout(300)
    assert page.evaluate("navigator.clipboard.readText()") == commands[2]

    page.get_by_label("Prompt").first.fill("a < b & <i>c</i>")
    page.get_by_role("button", name="Follow up").click()
    until(lambda: rows(workbench) == 4, page, within=5)
    bubble = page.locator(".answers .user.message", has_text="a < b").first
    bubble.wait_for()
    edit = page.get_by_role("button", name="Edit last")
    soon(lambda: idle(workbench), heard, edit.click, within=2)  # while it is answered
    page.wait_for_timeout(500)
    assert page.get_by_label("Prompt").first.input_value() == "a < b & <i>c</i>"
    assert page.locator(".answers .user.message", has_text="a < b").count() == 0
    page.get_by_role("button", name="Ask", exact=True).click()
    until(lambda: rows(workbench) == 4, page, within=5)
    page.wait_for_timeout(500)
    stop_all.click()
    page.wait_for_function(f"{stopped}.length == 4", timeout=10000)
    bubble.hover()
    column = page.locator(".answers").locator("visible=true").first
    column.get_by_label("Copy message").first.click()
    assert page.evaluate("navigator.clipboard.readText()") == "a < b & <i>c</i>"


def said(page: Any) -> list[str]:
    return [b.inner_text() for b in page.locator(".answers .bot.message").all() if b.is_visible()]


UNEXPLAINED = """() => {
  const seen = (e) => e.getClientRects().length > 0 && getComputedStyle(e).visibility !== "hidden";
  const named = (e) => (e.textContent || "").trim() || e.getAttribute("aria-label") || e.title ||
    (e.labels && e.labels.length && e.labels[0].textContent.trim());
  const told = (e) => {
    if (e.closest("[title]:not([title=''])")) return true;
    const block = e.closest(".block");
    return block && block.querySelector(".info-text") !== null;
  };
  const gradios = (e) => e.closest("table, .table-wrap, .icon-button-wrapper, .toolbar, .token");
  const found = [];
  for (const e of document.querySelectorAll("button, input, textarea, select")) {
    if (!seen(e) || e.disabled || e.readOnly || gradios(e)) continue;
    if (!named(e)) found.push("no label: " + e.outerHTML.slice(0, 160));
    if (!told(e)) found.push("no tooltip: " + e.outerHTML.slice(0, 160));
  }
  return found;
}"""


@pytest.mark.browser
def test_every_control_has_a_label_and_an_explanation(
    workbench: Workbench, address: str, browser: Any
) -> None:
    page = opened(browser, address)
    ask(page, "Compare")
    until(lambda: rows(workbench) > 1, page, within=10)
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Stop all").click()
    tabs = [tab.inner_text() for tab in page.get_by_role("tab").all() if tab.is_visible()]
    assert len(tabs) == 7
    for tab in tabs:
        page.get_by_role("tab", name=tab, exact=True).click()
        page.wait_for_timeout(1500)
        for closed in page.locator("button.label-wrap:not(.open)").all():
            if closed.is_visible():
                closed.click()
        page.wait_for_timeout(700)
        assert page.evaluate(UNEXPLAINED) == [], tab
    assert page.locator("button[title]").count() > len(tabs)


def test_hints_are_found_by_the_words_without_numbers_and_brackets() -> None:
    assert key("Next best is 3 (key 3)") in HINTS
    assert key("Start a battle (Ctrl+Enter)") in HINTS
    assert all(key(words) == words for words in HINTS)


def test_a_full_queue_says_so_on_the_page(
    workbench: Workbench, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "MAX_WAITING", 1)
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
    data = [None, "Hello", ids, "no_score", 0, 4, 0, 1, 1, "", 0]
    asked = json.dumps({"data": data, "fn_index": number, "session_hash": session}).encode()
    head = {"content-type": "application/json"}
    join = urllib.request.Request(address + "gradio_api/queue/join", asked, head)
    urllib.request.urlopen(join, timeout=30).read()
    stream = f"{address}gradio_api/queue/data?session_hash={session}"
    with urllib.request.urlopen(stream, timeout=30) as answer:
        line = next(line for line in answer if b"process_completed" in line)
    said = json.loads(line[5:])["output"]["error"]
    assert said == "busy: 1 questions are waiting already; try again in a moment"
    first.close()
    second.close()
