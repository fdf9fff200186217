"""What a labeler sees after an error, in a real browser."""

from pathlib import Path
from typing import Any

import pytest

from tests.app.page.judgement_page import judgement_page

TABS = [("Arena", "arena-start", "Start a battle"), ("Rank", "rank-start", "Get answers")]


def field(page: Any, label: str) -> Any:
    """The text field of that label in the open tab."""
    return page.get_by_label(label).locator("visible=true").first


@pytest.mark.browser
@pytest.mark.parametrize(("tab", "start", "idle"), TABS)
def test_error_is_shown_only_as_a_toast(
    tmp_path: Path, browser: Any, tab: str, start: str, idle: str
) -> None:
    with judgement_page(tmp_path) as (url, fake, _):
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(url)
        page.get_by_role("tab", name=tab).click()
        field(page, "Prompt").fill("Who?")
        fake.fail = {entry.name for entry in fake.catalog.checkpoints.values()}
        page.locator(f"#{start}").click()
        page.locator(".toast-body").wait_for()
        badges = page.get_by_test_id("status-tracker")
        badges.filter(has_text="Error").first.wait_for(state="attached")
        page.wait_for_timeout(300)
        assert "Error" in [text.strip() for text in badges.all_text_contents()]
        visible = badges.locator("visible=true").all_inner_texts()
        assert [text for text in visible if text.strip()] == []
        assert field(page, "Status").input_value().startswith(idle)


@pytest.mark.browser
def test_error_keeps_the_current_battle(tmp_path: Path, browser: Any) -> None:
    with judgement_page(tmp_path) as (url, _, store):
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(url)
        field(page, "Prompt").fill("Who?")
        page.locator("#arena-start").click()
        page.wait_for_function("() => !document.getElementById('arena-a').disabled")
        field(page, "Prompt").fill("")
        page.locator("#arena-start").click()
        page.locator(".toast-body").wait_for()
        page.wait_for_timeout(500)
        assert field(page, "Status").input_value() == "Which answer is better?"
        page.locator("#arena-a").click()
        saved = "[...document.querySelectorAll('textarea')].some(t => t.value.includes('Saved: '))"
        page.wait_for_function(f"() => {saved}")
        assert store.count() == 1
