"""The running page: its headers, what it accepts, and a visit with a browser."""

import html
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

from tests.app.conftest import MakeRun
from tests.app.server import served
from toolkit.app.texts import measures
from toolkit.app.web.headers import HEADERS
from toolkit.app.web.smoke import answers_shown
from toolkit.app.workbench import Workbench

pytestmark = pytest.mark.slow

ENDED = "[...document.querySelectorAll('textarea')].filter(t => /^Ended/m.test(t.value))"
ATTACK = "<img src=x onerror=document.title='attacked'>"


@pytest.fixture
def address(tiny_base: str, runs: Path) -> Iterator[str]:
    """The page over `runs` and one run more whose name is an attack."""
    (runs / ATTACK).mkdir()
    (runs / ATTACK / "run.json").write_text("{")
    with served("--model_name_or_path", tiny_base, "--runs", str(runs)) as url:
        yield url


def get(url: str | urllib.request.Request) -> Any:
    return urllib.request.urlopen(url, timeout=30)


def test_only_names_of_this_machine_are_answered(address: str) -> None:
    def asked_as(host: str) -> Any:
        return get(urllib.request.Request(address, headers={"Host": host}))

    port = address.rstrip("/").rpartition(":")[2]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "LOCALHOST", f"[::1]:{port}"):
        with asked_as(host) as answer:
            assert answer.status == 200
    for host in (f"rebound.example:{port}", "127.0.0.1.example", "localhost@evil.example", "x"):
        with pytest.raises(urllib.error.HTTPError, match="400") as refused:
            asked_as(host)
        assert refused.value.headers["content-security-policy"]


def test_headers_and_strangers_ids(address: str) -> None:
    for page in ("", "config", "gradio_api/info"):
        with get(address + page) as answer:
            for name, value in HEADERS.items():
                assert answer.headers.get_all(name) == [value]
    with get(address + "config") as answer:
        config = json.load(answer)
    assert config["analytics_enabled"] is False
    client = visitor(address)
    for numbers in (("NaN", 4, 0), (0.7, 10**9, 0), (0.7, 4, -5)):  # Gradio's own checks come first
        with pytest.raises(AppError):
            asked(client, "Hello", ["base"], *numbers)
    for bad in ("../../etc/passwd", "run_999999", "sft", "base\0"):
        with pytest.raises(AppError):
            asked(client, "Hello", [bad])
    with pytest.raises(AppError, match="write a prompt first"):
        asked(client, " ", ["base"])
    ((name, _, numbers),) = asked(client, "Hello", ["base"], 0.0, 4, None)
    assert name == "base" and "Ended" in numbers


def asked(
    client: Client,
    prompt: str,
    checkpoints: list[str],
    temperature: object = 0.0,
    tokens: object = 4,
    seed: object = 0,
) -> list[tuple[str, str, str]]:
    """Name, answer and numbers of each column."""
    settings = (temperature, tokens, 0, 1.0, 1, "", seed)
    shown = client.predict(prompt, checkpoints, "no_score", *settings, api_name="/compare")
    return answers_shown(shown)


def visitor(url: str, **login: Any) -> Client:
    """A client that has looked for the runs, as a page does when it is opened."""
    client = Client(url, verbose=False, analytics_enabled=False, **login)
    client.predict([], None, api_name="/refresh")
    return client


def test_32_clients_at_once_get_their_own_answers_and_may_leave(tiny_base: str, runs: Path) -> None:
    prompts = [f"What is it? {'it ' * (i % 5)}{i}" for i in range(32)]
    with served("--model_name_or_path", tiny_base, "--runs", str(runs)) as url:
        client = visitor(url)
        expected = [asked(client, prompt, ["base"], tokens=8)[0][1] for prompt in prompts]
        assert len(set(expected)) > 16
        with ThreadPoolExecutor(32) as pool:
            start = time.monotonic()
            found = list(pool.map(lambda prompt: streamed(url, prompt, tokens=8), prompts))
            assert time.monotonic() - start < 60
            assert found == expected
            list(pool.map(lambda p: streamed(url, p, tokens=100, heat=2.0, leave=True), prompts))
        start = time.monotonic()
        assert asked(client, prompts[0], ["base"], tokens=8)[0][1] == expected[0]
        assert time.monotonic() - start < 5


def streamed(url: str, prompt: str, *, tokens: int, heat: float = 0.0, leave: bool = False) -> str:
    """The base's answer as a page gets it: one request that asks, one that the answer streams in.

    With `leave` the stream is closed while the answer is made, and there is no text.
    """
    session = uuid.uuid4().hex
    settings = (heat, tokens, 0, 1.0, 1, "", 0)
    with get(url + "config") as answer:
        events = json.load(answer)["dependencies"]
    number = next(e["id"] for e in events if e["api_name"] == "compare")
    data = [None, prompt, ["base"], "no_reward_run", *settings]
    said = json.dumps({"data": data, "fn_index": number, "session_hash": session}).encode()
    head = {"content-type": "application/json"}
    request = urllib.request.Request(url + "gradio_api/queue/join", said, head)
    urllib.request.urlopen(request, timeout=60).read()
    stream = f"{url}gradio_api/queue/data?session_hash={session}"
    with urllib.request.urlopen(stream, timeout=60) as answer:
        for line in answer:
            event = json.loads(line[5:]) if line.startswith(b"data:") else {"msg": ""}
            if leave and event["msg"] == "process_generating":
                break
            if event["msg"] == "process_completed":
                bubbles = event["output"]["data"][3]["value"]  # after chat, prompt and column
                return html.unescape(bubbles[-1]["content"][0]["text"])
    return ""


def test_a_login_is_asked_for(tiny_base: str, runs: Path) -> None:
    words = ("--model_name_or_path", tiny_base, "--runs", str(runs), "--auth", "me")
    with served(*words, password="secret") as url:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(url + "gradio_api/info")
        client = visitor(url, auth=("me", "secret"))
        assert asked(client, "Hello", ["base"])[0][0] == "base"


@pytest.mark.browser
@pytest.mark.parametrize("width", [1400, 400])
def test_two_checkpoints_are_compared(
    address: str, browser: Any, width: int, tiny_base: str, runs: Path, make_run: MakeRun
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    ours = (address, "data:", "blob:")
    page.on("request", lambda a: None if a.url.startswith(ours) else problems.append(a.url))
    page.goto(address)
    for name in ("dpo (dpo)", "ppo (ppo)"):  # leaves the base and SFT
        page.locator(".token", has_text=name).locator(".token-remove").click()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Sampling").click()
    set_number(page, "Max new tokens", "8")
    set_number(page, "Temperature", "0")
    assert columns(page, asks="What is it?", n=2) == expected(tiny_base, runs, ["base", "sft"])

    page.get_by_role("button", name="Runs that cannot be used").click()
    assert f"{ATTACK}: " in page.get_by_label("Broken runs").input_value()
    assert page.title() == "toolkit: compare checkpoints"

    make_run(runs / "later", "dpo", seed=9, parents={"adapter": str(runs / "sft")})
    page.get_by_role("button", name="Reload runs").click()
    page.get_by_label("Checkpoints").click()
    page.get_by_role("option", name="later (dpo)").click()
    page.keyboard.press("Escape")
    found = columns(page, asks="What is it?", n=3)
    assert found == expected(tiny_base, runs, ["base", "sft", "later"])

    page.get_by_label("Prompt").fill(ATTACK)  # what is said is text, and no HTML
    page.get_by_role("button", name="Follow up").click()
    page.wait_for_function(
        "n => document.querySelectorAll('.answers .user.message').length >= n", arg=6
    )
    page.wait_for_function(f"n => {ENDED}.length == n", arg=3)
    said = [b.inner_text() for b in page.locator(".answers .user.message").all() if b.is_visible()]
    assert [s.strip() for s in said] == ["What is it?", ATTACK] * 3
    page.get_by_role("button", name="Edit last").click()
    page.wait_for_timeout(1000)
    assert page.get_by_placeholder("Ask something…").input_value() == ATTACK
    said = [b.inner_text() for b in page.locator(".answers .user.message").all() if b.is_visible()]
    assert [s.strip() for s in said] == ["What is it?"] * 3
    overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert overflow <= 0
    assert problems == []


@pytest.mark.browser
def test_what_changed_shows_any_answer_as_text(address: str, browser: Any) -> None:
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
    assert 0 < max(page.evaluate(heights)) < 50  # no heading is broken, as over an empty column
    assert page.title() == "toolkit: compare checkpoints"
    assert problems == []


def set_number(page: Any, name: str, value: str) -> None:
    """Type into a slider's number, as often as it takes: opening its section sets it once more."""
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


def columns(page: Any, *, asks: str, n: int) -> list[tuple[str, str]]:
    """Ask, wait for n columns, and read each answer and its numbers but the speed."""
    page.get_by_label("Prompt").fill(asks)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.wait_for_function(f"n => {ENDED}.length == n", arg=n, timeout=30000)
    numbers = [t for t in page.get_by_label("Numbers").all() if t.is_visible()]
    answers = [b for b in page.locator(".answers .bot.message").all() if b.is_visible()]
    assert len(answers) == len(numbers) == n
    return [
        (answer.inner_text().strip(), without_speed(said.input_value()))
        for answer, said in zip(answers, numbers, strict=True)
    ]


def without_speed(numbers: str) -> str:
    """What is the same at every run."""
    return re.sub(r", \d+ per second", "", numbers)


def expected(base: str, runs: Path, names: list[str]) -> list[tuple[str, str]]:
    """The same answers, without a page."""
    workbench = Workbench.open(base, runs)
    ids = {e.name: e.id for e in workbench.catalog.checkpoints.values()}
    scorer = next(iter(workbench.catalog.rewards))
    answers = workbench.compare(
        "What is it?", [ids[n] for n in names], reward=scorer, temperature=0, max_new_tokens=8
    )
    return [(a.text.strip(), without_speed(measures(a))) for a in answers]
