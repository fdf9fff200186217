"""Compare as a chat, in a real browser: keys, limits, stored conversations, Markdown, votes, addresses."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from app import build
from tests.app.conftest import copied_runs
from toolkit.app.answering import request
from toolkit.app.answering.chat import Chat
from toolkit.app.answering.request import Answer
from toolkit.app.conversations.store import FILE, Conversations, owner
from toolkit.app.judgements.battles import Battles
from toolkit.app.judgements.store import Store
from toolkit.app.tabs import compare_history
from toolkit.app.web.server import free_port, serve
from toolkit.app.workbench import Workbench
from toolkit.sampling.settings import Drawing

pytestmark = [pytest.mark.slow, pytest.mark.browser]

SECRET = "the secret of a browser with a conversation"
CODE = (
    "Look:\n\n```python\ndef f(x):\n    return x < 1\n```\n\n"
    "![a](http://attacker.invalid/a.png) [b](http://attacker.invalid) <img src=x onerror=alert(1)>"
)
FILLED = "text => document.querySelector('#compare-prompt textarea')?.value === text"


class Server:
    """The whole page on one port, which can be restarted."""

    def __init__(self, workbench: Workbench) -> None:
        self.workbench, self.port = workbench, free_port()
        self.judgements = Store(workbench.runs / "judgements.sqlite")
        self.page: gr.Blocks | None = None
        self.url = ""

    def start(self) -> None:
        self.page = build(self.workbench, Battles(self.workbench, self.judgements), [])
        self.url = serve(self.page, host="127.0.0.1", port=self.port)

    def stop(self) -> None:
        if self.page is not None:
            self.page.close(verbose=False)


@pytest.fixture(scope="module")
def server(
    tiny_base: str, runs_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server that has stored a conversation with code in it for the browser with `SECRET`."""
    runs = copied_runs(runs_template, tmp_path_factory.mktemp("chat"))
    chat = Chat().with_prompt("Show me\n  code")
    chat = chat.with_answers([Answer("", "base", CODE, 40, True)]).with_sampling(Drawing(), None)
    Conversations(runs / FILE).save(owner(SECRET, None), chat)
    server = Server(Workbench.open(tiny_base, runs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(request, "DEFAULT_NEW_TOKENS", 8)  # several turns fit into the context
        server.start()
        yield server
        server.stop()


def prompts(page: Any) -> list[str]:
    """The prompts in the first column."""
    column = page.locator(".answer-column").first
    return [message.inner_text() for message in column.locator(".user.message").all()]


def opened(page: Any, server: Server) -> None:
    """Open the page, or reload it, and wait for the lists and the conversation."""
    page.goto(server.url)
    page.locator(".token", has_text="sft (sft)").first.wait_for(state="attached")


def settle(page: Any, turns: int) -> None:
    """Wait until no answer streams and the first column shows the numbers of that many answers."""
    script = """n => document.querySelector('#compare-prompt .submit-button') &&
        document.querySelector('.answer-column')?.querySelectorAll('.numbers').length === n"""
    page.wait_for_function(script, arg=turns, timeout=30000)


def send(page: Any, text: str) -> None:
    """Type a prompt and press Enter."""
    box = page.locator("#compare-prompt textarea")
    box.fill(text)
    box.press("Enter")


def choose(page: Any, *names: str) -> None:
    """Remove all checkpoints but these from the choice."""
    for token in reversed(page.locator("#compare-panel .token").all()):
        if not token.inner_text().strip().startswith(names):
            token.locator(".token-remove").click()
    page.keyboard.press("Escape")


def test_code_keeps_its_indentation_and_markdown_loads_nothing(
    server: Server, browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_history, "new_browser", lambda: SECRET)
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    leaks: list[str] = []
    own = (server.url, "data:", "blob:")
    page.on("request", lambda r: None if r.url.startswith(own) else leaks.append(r.url))
    opened(page, server)  # restores the conversation of this browser
    settle(page, 1)
    shown = page.locator(".bot.message").first.inner_text()
    assert shown.startswith("Look:\n\n```python\ndef f(x):\n    return x < 1\n```")
    assert prompts(page) == ["Show me\n  code"]
    page.get_by_label("Show Markdown").click()
    code = page.locator(".bot.message pre code").first
    assert code.inner_text() == "def f(x):\n    return x < 1\n"
    assert "![a](http://attacker.invalid/a.png)" in page.locator(".bot.message").first.inner_text()
    assert page.locator(".message img, .message a").count() == 0
    page.reload()  # the choice stays
    page.locator(".bot.message pre code").first.wait_for()
    assert leaks == []


def test_conversation_survives_reload_back_and_restart(server: Server, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    opened(page, server)
    page.locator(".welcome").wait_for()  # another browser's conversation is not shown
    assert page.locator(".conversations label").count() == 0
    choose(page, "base", "sft")
    box = page.locator("#compare-prompt textarea")
    box.fill("What is it?")
    box.press("Shift+Enter")
    box.press_sequentially("Tell me.")
    assert box.input_value() == "What is it?\nTell me."
    assert page.locator(".welcome").is_visible()  # nothing was sent
    page.wait_for_function(
        "() => /^[0-9]+ of 128 tokens/.test(document.querySelector('#compare-use').innerText)"
    )
    box.press("Enter")
    settle(page, 1)
    send(page, "And now?")
    settle(page, 2)
    first = page.locator(".answers .message").all_inner_texts()
    assert prompts(page) == ["What is it?\nTell me.", "And now?"]

    page.get_by_role("tab", name="Arena").click()
    assert page.url.endswith("#arena")
    page.reload()
    page.locator("#arena-start").wait_for()
    page.go_back()
    settle(page, 2)
    assert page.get_by_role("tab", name="Compare").get_attribute("aria-selected") == "true"
    server.stop()
    server.start()
    opened(page, server)
    settle(page, 2)
    assert page.locator(".answers .message").all_inner_texts() == first
    send(page, "Once more")  # the restored conversation continues
    settle(page, 3)
    page.get_by_role("button", name="New chat").click()
    page.locator(".welcome").wait_for()
    page.wait_for_url("**/?chat=new")
    page.reload()  # the empty chat stays
    page.locator(".conversations label").first.wait_for()
    assert page.locator(".welcome").is_visible()
    send(page, "Another")
    settle(page, 1)
    page.locator(".conversations label").nth(1).click()
    settle(page, 3)
    chosen = page.locator(".conversations input").nth(1).get_attribute("value")
    page.wait_for_url(f"**/?chat={chosen}")
    page.reload()
    settle(page, 3)  # the open conversation, not the newest one


def test_nothing_is_lost_without_undo(server: Server, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    opened(page, server)
    choose(page, "base", "sft")
    long = "x" * 9000
    send(page, long)
    page.locator(".toast-body", has_text="at most 8000").wait_for()
    page.wait_for_function(FILLED, arg=long)  # neither cut nor lost
    page.locator("#compare-use", has_text="has 9000 characters, at most 8000").wait_for()
    send(page, "it " * 200)
    page.locator("#compare-use", has_text="the context of the base is 128").wait_for()
    page.locator(".toast-body", has_text="shorten the prompt").wait_for()
    page.wait_for_function("() => document.querySelector('#compare-prompt textarea').value")

    send(page, "Who?")
    settle(page, 1)
    first = page.locator(".bot.message").first.inner_text()
    count = server.judgements.count()
    page.get_by_role("button", name="Best answer").nth(1).click()
    page.locator(".toast-body", has_text="Saved: sft is best.").wait_for()
    assert server.judgements.count() == count + 1
    assert server.judgements.all()[-1].verdict == "b"
    undo = page.get_by_role("button", name="Undo change")
    for name in ("Regenerate", "Edit last", "Delete this conversation"):
        page.get_by_role("button", name=name).click()
        undo.wait_for()
        if name == "Regenerate":
            settle(page, 1)
        undo.click()
        undo.wait_for(state="hidden")
        settle(page, 1)
        assert page.locator(".bot.message").first.inner_text() == first, name
    assert page.locator(".conversations label").count() == 1


def test_prompt_survives_a_lost_server(server: Server, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    opened(page, server)
    box = page.locator("#compare-prompt textarea")
    page.route(re.compile("queue/join"), lambda route: route.abort())
    send(page, "Are you there?")
    page.wait_for_function(FILLED, arg="")
    page.wait_for_function(FILLED, arg="Are you there?")  # after Gradio's error
    page.unroute_all()
    server.stop()
    page.locator(".toast-body", has_text="Connection to the server was lost").wait_for()
    box.press("Enter")
    page.wait_for_timeout(300)
    assert box.input_value() == "Are you there?"
    with page.expect_event("load"):  # Gradio reloads the page when the server is back
        server.start()
    page.wait_for_function(FILLED, arg="Are you there?")
    send(page, "Are you there?")
    settle(page, 1)
    assert box.input_value() == ""


def test_long_text_is_not_cut_on_the_other_tabs(server: Server, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    opened(page, server)
    long = "x" * 9000
    for tab, label in (
        *(("Arena", "Prompt"), ("Rank", "Prompt"), ("What changed", "Prompt")),
        ("What changed", "Answer to analyze"),
    ):
        page.get_by_role("tab", name=tab, exact=True).click()
        field = page.get_by_label(label).locator("visible=true").first
        field.fill("")
        page.keyboard.insert_text(long)  # as a paste
        assert field.input_value() == long, tab
        note = page.locator(".note", has_text="has 9000 characters, at most 8000")
        note.locator("visible=true").first.wait_for()
        field.fill("Who?")
        page.locator(".note", has_text="of 128 tokens").locator("visible=true").first.wait_for()


@pytest.mark.parametrize("width", [1400, 400])
def test_chat_fills_the_window(server: Server, browser: Any, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    opened(page, server)
    send(page, "Who?")
    settle(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.evaluate("document.documentElement.scrollHeight - innerHeight") <= 0
    prompt = page.locator("#compare-prompt").bounding_box()
    answer = page.locator(".bot.message").first.bounding_box()
    column = page.locator(".answer-column").first.bounding_box()
    assert prompt["y"] + prompt["height"] > 720  # at the bottom
    assert column["height"] > 500 and answer["y"] < 400  # the answer is visible at once
    panel, settings = page.locator("#compare-panel"), page.locator("#compare-panel-button")
    assert panel.is_visible() == (width == 1400)
    for _ in range(2):
        before = panel.is_visible()
        settings.click()
        assert panel.is_visible() != before
    second = page.locator(".answer-column").nth(1)
    second.scroll_into_view_if_needed()
    assert second.bounding_box()["x"] < width / 2 + 200
    page.evaluate("location.hash = 'rank'")  # a narrow page has this tab in a menu
    page.locator("#rank-save").wait_for()
