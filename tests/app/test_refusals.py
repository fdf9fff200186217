"""What a labeler sees who asks for what cannot be had, in a real browser."""

from pathlib import Path
from typing import Any

import pytest

from tests.app.judgement_page import judgement_page


@pytest.mark.browser
@pytest.mark.parametrize(
    ("tab", "start", "idle"),
    [
        ("Arena", "arena-start", "Start a battle"),
        ("Rank", "rank-start", "Ask for answers"),
    ],
)
def test_a_refusal_is_told_once_and_covers_nothing(
    tmp_path: Path, browser: Any, tab: str, start: str, idle: str
) -> None:
    with judgement_page(tmp_path) as (url, fake, _):
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(url)
        page.get_by_role("tab", name=tab).click()
        fields = "label:visible"
        page.locator(fields, has_text="Prompt").locator("textarea").first.fill("Who?")
        fake.fail = {entry.name for entry in fake.catalog.checkpoints.values()}
        page.locator(f"#{start}").click()
        page.locator(".toast-body").wait_for()
        page.wait_for_timeout(1000)
        overlays = page.get_by_test_id("status-tracker").locator("visible=true")
        assert [said for said in overlays.all_inner_texts() if said.strip()] == []
        status = page.locator(fields, has_text="Status").locator("textarea").first
        assert status.input_value().startswith(idle)
