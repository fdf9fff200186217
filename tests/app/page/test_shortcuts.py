"""A labeler at the keyboard, in a real browser."""

from pathlib import Path
from typing import Any

import pytest

from tests.app.page.judgement_page import judgement_page
from toolkit.app.web.shortcuts import ARENA_KEYS, RANK_KEYS


def seen(page: Any, label: str) -> Any:
    """The text field of that label in the open tab."""
    return page.get_by_label(label).locator("visible=true").first


def status(page: Any, *, says: str) -> None:
    """Wait for the open tab's status."""
    page.wait_for_function(
        "says => [...document.querySelectorAll('textarea')].some("
        "t => t.value.includes(says) && t.getClientRects().length)",
        arg=says,
        timeout=15000,
    )


def leave_fields(page: Any) -> None:
    """Nothing has the focus, as after a click on the page."""
    page.evaluate("() => document.activeElement.blur()")


@pytest.mark.browser
def test_battles_and_rankings_by_keyboard(tmp_path: Path, browser: Any) -> None:
    with judgement_page(tmp_path) as (url, _, store):
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        ours = (url, "data:", "blob:")
        page.on("request", lambda a: None if a.url.startswith(ours) else problems.append(a.url))
        page.goto(url)
        page.locator(f"#{ARENA_KEYS['Control+Enter']}").wait_for()
        seen(page, "Prompt").fill("Who is it?")
        votes = (("2", "b"), ("T", "tie"), ("b", "both_bad"), ("s", "skip"))
        for judged, (key, verdict) in enumerate(votes):
            leave_fields(page)
            page.keyboard.press("Control+Enter")
            page.wait_for_function("() => !document.getElementById('arena-a').disabled")
            seen(page, "Reason (optional)").press_sequentially("1tbs")
            page.keyboard.press("Escape")
            page.wait_for_timeout(300)
            assert store.count() == judged  # typing is no vote
            leave_fields(page)
            page.keyboard.press(key)
            status(page, says="Saved: ")
            assert store.count() == judged + 1
            assert (store.all()[-1].verdict, store.all()[-1].reason) == (verdict, "1tbs")
            page.keyboard.press(key)  # judged, and its buttons are off
        assert store.count() == 4

        page.get_by_role("tab", name="Rank").click()
        seen(page, "Prompt").fill("And this?")
        page.locator("#rank-start").click()
        status(page, says="Put the answers in order")
        page.wait_for_timeout(1000)  # the order's field is emptied last, maybe after that
        leave_fields(page)
        order = page.locator("#rank-order textarea, #rank-order input").first
        for key in ("4", "Escape", "3", "1", "1", "t", "t", "9", "2"):
            page.keyboard.press(key)
        page.wait_for_timeout(300)
        assert order.input_value() == "3 > 1 = 2"
        order.press("Control+Enter")  # typing: not saved
        page.wait_for_timeout(300)
        assert store.count() == 4
        leave_fields(page)
        page.keyboard.press("4")
        page.wait_for_timeout(200)
        page.keyboard.press("Control+Enter")
        status(page, says="Saved. Answer 1 was")
        assert store.all()[-1].ranks == (2, 2, 1, 3)
        assert problems == []


@pytest.mark.browser
@pytest.mark.parametrize("width", [1400, 400])
def test_no_tab_is_wider_than_the_window(tmp_path: Path, browser: Any, width: int) -> None:
    with judgement_page(tmp_path) as (url, _, _):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto(url)
        page.locator("#arena-start").wait_for()
        for tab in ("Rank", "Arena"):
            page.get_by_role("tab", name=tab).click()
            seen(page, "Prompt").wait_for()
            wide = page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")
            assert wide <= 0


@pytest.mark.browser
@pytest.mark.parametrize("width", [1400, 400])
def test_answers_are_dragged_into_order(tmp_path: Path, browser: Any, width: int) -> None:
    with judgement_page(tmp_path) as (url, _, store):
        page = browser.new_page(viewport={"width": width, "height": 1000})
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.goto(url)
        page.get_by_role("tab", name="Rank").click()
        seen(page, "Prompt").fill("And this?")
        page.locator("#rank-start").click()
        status(page, says="Put the answers in order")
        order = page.locator("#rank-order textarea, #rank-order input").first
        for number, target, said in (
            (3, "[data-gap='0']", "3"),
            (1, "[data-gap='1']", "3 > 1"),
            (2, "[data-place='1']", "3 > 1 = 2"),  # on another answer it ties
            (4, "[data-gap='0']", "4 > 3 > 1 = 2"),
            (4, "[data-tray]", "3 > 1 = 2"),
            (1, "[data-gap='0']", "1 > 3 > 2"),
        ):
            drag(page, f"[data-number='{number}']", target)
            assert order.input_value() == said
        leave_fields(page)
        page.keyboard.press("4")  # keys and dragging make one order
        page.locator("[data-place='3'] [data-number='4']").wait_for()
        drag(page, "[data-number='4']", "[data-place='2']")
        assert order.input_value() == "1 > 3 > 2 = 4"
        order.fill("2 > 1")  # and so does typing
        page.locator("[data-place='1'] [data-number='1']").wait_for()
        drag(page, "[data-number='3']", "[data-gap='2']")
        drag(page, "[data-number='4']", "[data-place='2']")
        texts = [page.locator(f"#rank-answer-{n} textarea").input_value() for n in (1, 2, 3, 4)]
        leave_fields(page)
        page.keyboard.press("Control+Enter")
        status(page, says="Saved. Answer 1 was")
        assert store.all()[-1].ranks == (2, 1, 3, 3)
        assert [reply.text for reply in store.all()[-1].replies] == texts
        assert problems == []


def drag(page: Any, what: str, target: str) -> None:
    """By the mouse: down, over there in some steps, up."""
    page.wait_for_timeout(300)  # the board is drawn anew as the fields change
    page.locator(what).first.evaluate("e => e.scrollIntoView({ block: 'center' })")
    for selector, press in ((what, page.mouse.down), (target, page.mouse.up)):
        box = page.locator(selector).first.bounding_box()
        x = box["x"] + min(20, box["width"] / 2)
        page.mouse.move(x, box["y"] + box["height"] / 2, steps=5)
        press()
    page.wait_for_timeout(300)


def test_every_key_has_one_button_in_each_tab() -> None:
    for keys in (ARENA_KEYS, RANK_KEYS):
        assert len(set(keys.values())) == len(keys)
    assert not set(ARENA_KEYS.values()) & set(RANK_KEYS.values())
