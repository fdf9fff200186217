"""Browsers that store nothing, addresses that are no addresses, and files that are no prompts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.app.conftest import copied_runs
from tests.app.server import served_here
from toolkit.app.tabs.compare_history import NOT_HERE

pytestmark = [pytest.mark.slow, pytest.mark.browser]

WIDE = {"width": 1400, "height": 900}
NO_STORAGE = """for (const name of ['localStorage', 'sessionStorage'])
  Object.defineProperty(window, name, {configurable: true, get() {
    throw new DOMException('denied', 'SecurityError') }})"""
ENDED = """() => !document.querySelector('#compare-prompt .stop-button') &&
  document.querySelector('.numbers')"""


@pytest.fixture(scope="module")
def address(
    tiny_base: str, runs_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of the page."""
    runs = copied_runs(runs_template, tmp_path_factory.mktemp("odd"))
    with served_here("--model_name_or_path", tiny_base, "--runs", str(runs)) as url:
        yield url


def test_browser_without_storage_is_told(address: str, browser: Any) -> None:
    page = browser.new_page(viewport=WIDE)
    page.add_init_script(NO_STORAGE)
    page.goto(address)
    page.get_by_text("This browser stores nothing, so a conversation ends with").wait_for()
    page.locator(".token", has_text="sft (sft)").first.wait_for(state="attached")
    delete = page.get_by_role("button", name="Delete this conversation")
    assert not delete.is_visible()  # no conversation is open
    page.get_by_label("Prompt").first.fill("Who?")
    page.keyboard.press("Enter")
    page.wait_for_function(ENDED, timeout=60000)
    delete.wait_for()
    page.wait_for_url("**/?chat=*")
    page.reload()
    page.locator(".toast-body", has_text=NOT_HERE).wait_for()


def test_copy_works_without_the_clipboard_of_https(address: str, browser: Any) -> None:
    page = browser.new_page(viewport=WIDE)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.goto(address)
    page.locator(".token", has_text="sft (sft)").first.wait_for(state="attached")
    page.get_by_label("Prompt").first.fill("Who?")
    page.keyboard.press("Enter")
    page.wait_for_function(ENDED, timeout=60000)
    page.evaluate(
        "document.addEventListener('copy', () => (window.copied = String(getSelection())))"
    )
    page.get_by_label("Copy message").first.dispatch_event("click")
    assert page.evaluate("copied") == "Who?" and errors == []


def test_storing_browser_is_told_nothing(address: str, browser: Any) -> None:
    page = browser.new_page(viewport=WIDE)
    page.goto(address)
    page.locator(".token", has_text="sft (sft)").first.wait_for(state="attached")
    page.wait_for_timeout(1500)
    assert page.get_by_text("This browser stores nothing").count() == 0
    assert page.locator(".toast-body").count() == 0


def test_invalid_address_leaves_the_tabs_usable(address: str, browser: Any) -> None:
    page = browser.new_page(viewport=WIDE)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{address}?chat=%E0%A4%A&view=%#100%")
    page.get_by_role("tab", name="Arena").click()
    page.wait_for_url("**#arena")
    page.evaluate("location.hash = '%'")
    page.evaluate("location.hash = 'batch'")
    page.locator("#batch-prompts").wait_for()
    assert errors == []


def test_files_that_are_no_text_fill_in_nothing(address: str, browser: Any, tmp_path: Path) -> None:
    page = browser.new_page(viewport=WIDE)
    page.goto(f"{address}#batch")
    box = page.locator("#batch-prompts textarea")
    box.fill("Mine?")

    def open_file(content: bytes) -> str:
        (tmp_path / "prompts.txt").write_bytes(content)
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Open a file").click()
        chooser.value.set_files(tmp_path / "prompts.txt")
        page.wait_for_timeout(300)
        return str(page.locator("#batch-prompts .page-note").inner_text())

    utf8 = "prompts.txt: the file is not a text in UTF-8. Save it as UTF-8 and open it again."
    assert open_file("Größe?".encode("cp1252")) == utf8
    assert open_file(b"PK\x03\x04\0\0") == utf8
    assert open_file("Größe?".encode("utf-16-le")) == utf8  # without a byte order mark
    assert "is empty" in open_file(b"")
    assert "only white space" in open_file(b"\n \n")
    assert "has 5 MiB" in open_file(b"x" * ((4 << 20) + 1))
    assert box.input_value() == "Mine?"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        assert open_file("Größe?\nWas?".encode(encoding)) == ""
        assert box.input_value() == "Größe?\nWas?", encoding
        box.fill("")
