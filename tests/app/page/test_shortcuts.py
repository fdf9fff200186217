"""Keyboard shortcuts and dragging, in a real browser."""

from pathlib import Path
from typing import Any

import pytest

from tests.app.page.judgement_page import judgement_page
from toolkit.app.judgements.store import Store
from toolkit.app.web.scripts import ARENA_KEYS, RANK_KEYS


def field(page: Any, label: str) -> Any:
    """The text field of that label in the open tab."""
    return page.get_by_label(label).locator("visible=true").first


def wait_for_status(page: Any, text: str) -> None:
    """Wait for a text in the open tab's status."""
    page.wait_for_function(
        "text => [...document.querySelectorAll('textarea')].some("
        "t => t.value.includes(text) && t.getClientRects().length)",
        arg=text,
        timeout=15000,
    )


def leave_fields(page: Any) -> None:
    """Remove the focus, as a click on the page does."""
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
        field(page, "Prompt").fill("Who is it?")
        votes = (("2", "b"), ("T", "tie"), ("b", "both_bad"), ("s", "skip"))
        for count, (key, verdict) in enumerate(votes):
            leave_fields(page)
            page.keyboard.press("Control+Enter")
            page.wait_for_function("() => !document.getElementById('arena-a').disabled")
            field(page, "Reason (optional)").press_sequentially("1tbs")
            page.keyboard.press("Escape")
            page.wait_for_timeout(300)
            assert store.count() == count  # typing does not vote
            leave_fields(page)
            page.keyboard.press(key)
            wait_for_status(page, "Saved: ")
            assert store.count() == count + 1
            assert (store.all()[-1].verdict, store.all()[-1].reason) == (verdict, "1tbs")
            page.keyboard.press(key)  # ignored: the buttons are disabled after the vote
        assert store.count() == 4

        page.get_by_role("tab", name="Rank").click()
        field(page, "Prompt").fill("And this?")
        page.locator("#rank-start").click()
        wait_for_status(page, "Put the answers in order")
        page.wait_for_timeout(1000)  # the order field is emptied last
        leave_fields(page)
        order = page.locator("#rank-order textarea, #rank-order input").first
        for key in ("4", "Escape", "3", "1", "1", "t", "t", "9", "2"):
            page.keyboard.press(key)
        page.wait_for_timeout(300)
        assert order.input_value() == "3 > 1 = 2"
        order.press("Control+Enter")  # ignored while typing
        page.wait_for_timeout(300)
        assert store.count() == 4
        leave_fields(page)
        page.keyboard.press("4")
        page.wait_for_timeout(200)
        page.keyboard.press("Control+Enter")
        wait_for_status(page, "Saved. Answer 1 was")
        assert store.all()[-1].ranks == (2, 2, 1, 3)
        assert problems == []


@pytest.mark.browser
def test_vote_is_undone_next_battle_starts_and_judgements_change(
    tmp_path: Path, browser: Any
) -> None:
    with judgement_page(tmp_path) as (url, _, store):
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(url)
        page.locator("#arena-next").wait_for()
        leave_fields(page)
        for verdicts in ("12", "2"):  # the first of two quick keys is the vote
            page.keyboard.press("n")  # draws a prompt, and starts
            page.wait_for_function("() => !document.getElementById('arena-a').disabled")
            field(page, "Reason (optional)").fill("clearer")
            leave_fields(page)
            page.keyboard.type(verdicts)
            wait_for_status(page, "Saved: ")
            page.wait_for_function("() => !document.getElementById('arena-undo').disabled")
        assert [j.verdict for j in store.all()] == ["a", "b"]
        page.keyboard.press("u")
        wait_for_status(page, "The vote is deleted")
        page.wait_for_timeout(100)
        assert field(page, "Reason (optional)").input_value() == "clearer"
        field(page, "Reason (optional)").fill("")
        leave_fields(page)
        page.keyboard.press("t")
        wait_for_status(page, "Saved: Tie")
        assert [j.verdict for j in store.all()] == ["a", "tie"]

        page.get_by_role("tab", name="Leaderboard").click()
        page.get_by_role("button", name="Judgements: review, edit, delete").click()
        # the menu has its choices when the list is filled
        page.locator(".ratings td", has_text="A is better").first.wait_for(state="attached")
        page.get_by_label("Judgement to edit or delete").click()
        page.get_by_role("option", name="1: A is better").click()
        wait_for_status(page, "Number 1 is chosen")
        assert store.all()[0].replies[0].text in field(page, "Prompt and answers").input_value()
        page.get_by_label("B is better").locator("visible=true").check()
        field(page, "Reason (optional)").fill("the wrong key")
        page.get_by_role("button", name="Save the change").click()
        wait_for_status(page, "Number 1 is changed")
        assert [(j.verdict, j.reason) for j in store.all()] == [("b", "the wrong key"), ("tie", "")]
        page.get_by_role("button", name="Delete the judgement").click()
        wait_for_status(page, "Number 1 is deleted")
        assert [j.verdict for j in store.all()] == ["tie"]
        page.get_by_role("button", name="Undo the last change").click()
        wait_for_status(page, "The last change is undone")
        assert sorted(str(j.verdict) for j in store.all()) == ["b", "tie"]


@pytest.mark.browser
def test_answers_are_dragged_into_order(tmp_path: Path, browser: Any) -> None:
    with judgement_page(tmp_path) as (url, _, store):
        page = browser.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.goto(url)
        for width in (1400, 400):
            page.set_viewport_size({"width": width, "height": 1000})
            page.get_by_role("tab", name="Arena").click()
            page.locator("#arena-start").wait_for()
            assert_fits_window(page)
            page.get_by_role("tab", name="Rank").click()
            field(page, "Prompt").fill(f"And this, {width} pixels wide?")
            assert_fits_window(page)
            rank_by_dragging(page, store)
        assert store.count() == 2
        assert problems == []


def rank_by_dragging(page: Any, store: Store) -> None:
    """Get four answers and drag them into an order; keys and typing change the same order."""
    page.locator("#rank-start").click()
    wait_for_status(page, "Put the answers in order")
    page.wait_for_timeout(500)  # the order field is emptied last
    order = page.locator("#rank-order textarea, #rank-order input").first
    for number, target, text in (
        (3, "[data-gap='0']", "3"),
        (1, "[data-gap='1']", "3 > 1"),
        (2, "[data-place='1']", "3 > 1 = 2"),  # a drop on another answer is a tie
        (4, "[data-gap='0']", "4 > 3 > 1 = 2"),
        (4, "[data-tray]", "3 > 1 = 2"),
        (1, "[data-gap='0']", "1 > 3 > 2"),
    ):
        drag(page, f"[data-number='{number}']", target)
        assert order.input_value() == text
    leave_fields(page)
    page.keyboard.press("4")  # keys change the same order
    page.locator("[data-place='3'] [data-number='4']").wait_for()
    drag(page, "[data-number='4']", "[data-place='2']")
    assert order.input_value() == "1 > 3 > 2 = 4"
    order.fill("2 > 1")  # so does typing
    page.locator("[data-place='1'] [data-number='1']").wait_for()
    drag(page, "[data-number='3']", "[data-gap='2']")
    drag(page, "[data-number='4']", "[data-place='2']")
    texts = [page.locator(f"#rank-answer-{n} textarea").input_value() for n in (1, 2, 3, 4)]
    leave_fields(page)
    page.keyboard.press("Control+Enter")
    wait_for_status(page, "Saved. Answer 1 was")
    assert store.all()[-1].ranks == (2, 1, 3, 3)
    assert [reply.text for reply in store.all()[-1].replies] == texts


def assert_fits_window(page: Any) -> None:
    """The page does not scroll sideways."""
    assert page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth") <= 0


def drag(page: Any, source: str, target: str) -> None:
    """Drag with the mouse."""
    page.locator(target).first.wait_for()  # the board is redrawn when the fields change
    page.locator(source).first.evaluate("e => e.scrollIntoView({ block: 'center' })")
    for selector, press in ((source, page.mouse.down), (target, page.mouse.up)):
        box = page.locator(selector).first.bounding_box()
        x = box["x"] + min(20, box["width"] / 2)
        page.mouse.move(x, box["y"] + box["height"] / 2, steps=5)
        press()


def test_keys_and_buttons_are_unique() -> None:
    for keys in (ARENA_KEYS, RANK_KEYS):
        assert len(set(keys.values())) == len(keys)
    assert not set(ARENA_KEYS.values()) & set(RANK_KEYS.values())
