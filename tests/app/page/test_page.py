"""The running page: headers, requests, simultaneous clients, and visits with a browser."""

import json
import re
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from tests.app.conftest import MakeRun, copied_runs
from tests.app.server import served, served_here
from toolkit.app.texts import answer_numbers
from toolkit.app.web.middleware import HEADERS
from toolkit.app.web.smoke import answers_shown
from toolkit.app.workbench import Workbench

pytestmark = pytest.mark.slow

NUMBERS = (
    "[...document.querySelectorAll('.answers .numbers')].filter(e => e.getClientRects().length)"
)
ATTACK = "<img src=x onerror=document.title='attacked'>"


@pytest.fixture(scope="module")
def page_runs(tmp_path_factory: pytest.TempPathFactory, runs_template: Path) -> Path:
    """The usual runs, and a broken run whose name is an attack."""
    runs = copied_runs(runs_template, tmp_path_factory.mktemp("page"))
    (runs / ATTACK).mkdir()
    (runs / ATTACK / "run.json").write_text("{")
    return runs


@pytest.fixture(scope="module")
def address(tiny_base: str, page_runs: Path) -> Iterator[str]:
    """The URL of the page over `page_runs`."""
    with served("--model_name_or_path", tiny_base, "--runs", str(page_runs)) as url:
        yield url


def get(url: str | urllib.request.Request) -> Any:
    return urllib.request.urlopen(url, timeout=30)


def test_other_host_names_are_rejected(address: str) -> None:
    def get_as(host: str) -> Any:
        return get(urllib.request.Request(address, headers={"Host": host}))

    port = address.rstrip("/").rpartition(":")[2]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "LOCALHOST", f"[::1]:{port}"):
        with get_as(host) as response:
            assert response.status == 200
    for host in (f"rebound.example:{port}", "127.0.0.1.example", "localhost@evil.example", "x"):
        with pytest.raises(urllib.error.HTTPError, match="400") as error:
            get_as(host)
        assert error.value.headers["content-security-policy"]


def test_headers_and_invalid_requests(address: str) -> None:
    for page in ("", "config", "gradio_api/info"):
        with get(address + page) as response:
            for name, value in HEADERS.items():
                assert response.headers.get_all(name) == [value]
    with get(address + "config") as response:
        config = json.load(response)
    assert config["analytics_enabled"] is False
    client = visitor(address)
    for numbers in (("NaN", 4, 0), (0.7, 10**9, 0), (0.7, 4, -5)):  # Gradio rejects these itself
        with pytest.raises(AppError):
            ask(client, "Hello", ["base"], *numbers)
    for bad in ("../../etc/passwd", "run_999999", "sft", "base\0"):
        with pytest.raises(AppError):
            ask(client, "Hello", [bad])
    with pytest.raises(AppError, match="write a prompt first"):
        ask(client, " ", ["base"])
    ((name, _, numbers),) = ask(client, "Hello", ["base"], 0.0, 4, None)
    assert name == "base" and "Ended" in numbers


def ask(
    client: Client,
    prompt: str,
    checkpoints: list[str],
    temperature: object = 0.0,
    tokens: object = 4,
    seed: object = 0,
) -> list[tuple[str, str, str]]:
    """Name, answer and numbers of each column."""
    settings = (temperature, tokens, 0, 1.0, 1, "", seed)
    output = client.predict(prompt, checkpoints, "no_score", *settings, api_name="/compare")
    return answers_shown(output)


def visitor(url: str, **login: Any) -> Client:
    """A client that has loaded the lists, as a page does when it opens."""
    client = Client(url, verbose=False, analytics_enabled=False, **login)
    client.predict([], None, api_name="/refresh")
    return client


def test_12_simultaneous_clients_get_their_own_answers(address: str) -> None:
    prompts = [f"What is it? {'it ' * (i % 5)}{i}" for i in range(12)]
    client = visitor(address)
    expected = [ask(client, prompt, ["base"], tokens=8)[0][1] for prompt in prompts]
    assert len(set(expected)) > 6
    with ThreadPoolExecutor(12) as pool:
        start = time.monotonic()
        answers = list(pool.map(lambda prompt: streamed(address, prompt, tokens=8), prompts))
        assert time.monotonic() - start < 60
        assert answers == expected
        list(pool.map(lambda p: streamed(address, p, tokens=100, heat=2.0, leave=True), prompts))
    start = time.monotonic()
    assert ask(client, prompts[0], ["base"], tokens=8)[0][1] == expected[0]
    assert time.monotonic() - start < 5


def streamed(url: str, prompt: str, *, tokens: int, heat: float = 0.0, leave: bool = False) -> str:
    """The base's answer as the page gets it: one request asks, another streams the answer.

    With `leave`, the stream is closed during the answer, and the result is "".
    """
    session = uuid.uuid4().hex
    settings = (heat, tokens, 0, 1.0, 1, "", 0)
    with get(url + "config") as response:
        events = json.load(response)["dependencies"]
    number = next(e["id"] for e in events if e["api_name"] == "compare")
    data = [None, None, prompt, ["base"], "no_reward_run", *settings]
    body = json.dumps({"data": data, "fn_index": number, "session_hash": session}).encode()
    head = {"content-type": "application/json"}
    request = urllib.request.Request(url + "gradio_api/queue/join", body, head)
    urllib.request.urlopen(request, timeout=60).read()
    stream = f"{url}gradio_api/queue/data?session_hash={session}"
    with urllib.request.urlopen(stream, timeout=60) as response:
        for line in response:
            event = json.loads(line[5:]) if line.startswith(b"data:") else {"msg": ""}
            if leave and event["msg"] == "process_generating":
                break
            if event["msg"] == "process_completed":
                ((_, text, _),) = answers_shown(event["output"]["data"])
                return text
    return ""


def test_login_is_required(tiny_base: str, runs: Path) -> None:
    words = ("--model_name_or_path", tiny_base, "--runs", str(runs), "--auth", "me")
    with served_here(*words, password="secret") as url:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(url + "gradio_api/info")
        client = visitor(url, auth=("me", "secret"))
        assert ask(client, "Hello", ["base"])[0][0] == "base"


@pytest.mark.browser
def test_checkpoints_are_compared(
    address: str, browser: Any, tiny_base: str, page_runs: Path, make_run: MakeRun
) -> None:
    page = browser.new_page(viewport={"width": 400, "height": 900})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    allowed = (address, "data:", "blob:")
    page.on("request", lambda a: None if a.url.startswith(allowed) else problems.append(a.url))
    page.goto(address)
    settings = page.get_by_role("button", name="Settings", exact=True)
    settings.click()
    for name in ("dpo (dpo)", "ppo (ppo)"):  # the base and SFT stay
        page.locator(".token", has_text=name).locator(".token-remove").click()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Sampling").click()
    set_number(page, "Max new tokens", "8")
    set_number(page, "Temperature", "0")
    settings.click()
    assert columns(page, prompt="What is it?", n=2) == expected(
        tiny_base, page_runs, ["base", "sft"]
    )

    settings.click()
    page.get_by_role("button", name="Runs that cannot be used").click()
    assert f"{ATTACK}: " in page.get_by_label("Broken runs").input_value()
    assert page.title() == "toolkit: compare checkpoints"

    later = "zz_later"  # last in the list, so that it is not chosen at first
    make_run(page_runs / later, "dpo", seed=9, parents={"adapter": str(page_runs / "sft")})
    page.get_by_role("button", name="Reload runs").click()
    page.get_by_label("Checkpoints").click()
    page.get_by_role("option", name=f"{later} (dpo)").click()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="New chat").click()  # closes the settings on a narrow page
    answers = columns(page, prompt="What is it?", n=3)
    assert answers == expected(tiny_base, page_runs, ["base", "sft", later])

    box = page.get_by_label("Prompt").first
    box.fill(ATTACK)  # shown as text, not as HTML
    box.press("Enter")
    page.wait_for_function(f"n => {NUMBERS}.length == n", arg=6)
    prompts = page.locator(".answers .user.message")
    assert [m.inner_text() for m in prompts.all()] == ["What is it?", ATTACK] * 3
    page.get_by_role("button", name="Edit last").click()
    page.wait_for_function("([e, text]) => e.value == text", arg=[box.element_handle(), ATTACK])
    page.wait_for_function(f"n => {NUMBERS}.length == n", arg=3)
    assert [m.inner_text() for m in prompts.all()] == ["What is it?"] * 3
    for width in (400, 1400):
        page.set_viewport_size({"width": width, "height": 900})
        overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert overflow <= 0, width
    assert problems == []


@pytest.mark.browser
def test_what_changed_shows_html_as_text(address: str, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 900, "height": 900})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(address)
    page.get_by_role("tab", name="What changed").click()
    page.get_by_label("Prompt").locator("visible=true").fill("What is it?")
    page.get_by_label("Answer to analyze").fill(ATTACK)
    page.get_by_role("button", name="Analyze").click()
    page.locator(".coloured .token .text").first.wait_for(timeout=30000)
    shown = "".join(page.locator(".coloured .token .text").all_inner_texts())
    assert re.sub(r"\s", "", ATTACK) in re.sub(r"[\s␣]", "", shown)
    assert "log" in page.get_by_label("Scale").input_value()
    page.locator(".coloured .token .text").first.click()
    page.get_by_text("Likeliest tokens at position 1,").wait_for()
    heights = "() => [...document.querySelectorAll('.tokens th')].map(h => h.clientHeight)"
    # no heading wraps, as it would over an empty column
    assert 0 < max(page.evaluate(heights)) < 50
    assert page.title() == "toolkit: compare checkpoints"
    assert problems == []


def set_number(page: Any, name: str, value: str) -> None:
    """Type a slider's number until it stays: opening the section resets it."""
    box, slider = (
        page.get_by_label(f"{kind} for {name}") for kind in ("number input", "range slider")
    )
    box.wait_for()
    for _ in range(20):
        box.fill(value)
        box.press("Tab")
        page.wait_for_timeout(150)
        if (box.input_value(), slider.input_value()) == (value, value):
            return
    raise AssertionError(f"{name} stays {box.input_value()!r}")


def columns(page: Any, *, prompt: str, n: int) -> list[tuple[str, str]]:
    """Ask, wait for n columns, and return each answer with its numbers, without the speed."""
    page.get_by_label("Prompt").first.fill(prompt)
    page.keyboard.press("Enter")
    page.wait_for_function(f"n => {NUMBERS}.length == n", arg=n, timeout=30000)
    shown = []
    for column in page.locator(".answer-column").all():
        if column.is_visible():
            _, text, numbers = column.locator(".message .md").all()
            numbers.locator("summary").click()
            details = numbers.inner_text().partition("\n")[2]
            shown.append((text.inner_text().strip(), without_speed(details.strip())))
    return shown


def without_speed(numbers: str) -> str:
    """Numbers without the speed, which varies."""
    return re.sub(r", \d+ per second", "", numbers)


def expected(base: str, runs: Path, names: list[str]) -> list[tuple[str, str]]:
    """The same answers without the page."""
    workbench = Workbench.open(base, runs)
    ids = {e.name: e.id for e in workbench.catalog.checkpoints.values()}
    scorer = next(iter(workbench.catalog.rewards))
    answers = workbench.compare(
        "What is it?", [ids[n] for n in names], reward=scorer, temperature=0, max_new_tokens=8
    )
    return [(a.text.strip(), without_speed(answer_numbers(a))) for a in answers]
