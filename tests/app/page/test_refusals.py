"""What a labeler sees who asks for what cannot be had, in a real browser."""

from pathlib import Path
from typing import Any

import pytest

from tests.app.page.judgement_page import judgement_page

TABS = [("Arena", "arena-start", "Start a battle"), ("Rank", "rank-start", "Get answers")]
TRACKERS = "status-tracker"


def field(page: Any, label: str) -> Any:
    """The text field of that label in the open tab."""
    return page.get_by_label(label).locator("visible=true").first


@pytest.mark.browser
@pytest.mark.parametrize(("tab", "start", "idle"), TABS)
def test_a_refusal_is_told_once_and_covers_nothing(
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
        page.wait_for_timeout(1000)
        trackers = page.get_by_test_id(TRACKERS)
        told = [said.strip() for said in trackers.all_text_contents()]
        assert "Error" in told  # there, and not to be seen
        seen = trackers.locator("visible=true").all_inner_texts()
        assert [said for said in seen if said.strip()] == []
        assert field(page, "Status").input_value().startswith(idle)


@pytest.mark.browser
def test_a_refusal_leaves_the_battle_that_is_on(tmp_path: Path, browser: Any) -> None:
    with judgement_page(tmp_path) as (url, _, store):
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(url)
        field(page, "Prompt").fill("Who?")
        page.locator("#arena-start").click()
        page.wait_for_function("() => !document.getElementById('arena-a').disabled")
        field(page, "Prompt").fill("")
        page.locator("#arena-start").click()
        page.locator(".toast-body").wait_for()
        page.wait_for_timeout(1000)
        assert field(page, "Status").input_value() == "Which answer is better?"
        page.locator("#arena-a").click()
        page.wait_for_timeout(1500)
        assert store.count() == 1
