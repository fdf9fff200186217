"""A model that generates scripts, and runs whose names and files contain them: all is shown as text."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.app.conftest import write_run
from tests.app.server import served_here
from toolkit.app.tabs import runs
from toolkit.app.web.middleware import HEADERS
from toolkit.runs.run import Run

pytestmark = pytest.mark.slow

ELSEWHERE = "attacker.invalid"
ATTACK = "<img src=x onerror=document.title='attacked'>"
LINK = "[click](javascript:document.title='attacked')"
ATTACKS = (
    ATTACK,
    "<svg onload=document.title='attacked'>",
    LINK,
    f"![a](http://{ELSEWHERE}/a.png)",
    f"<img src=http://{ELSEWHERE}/b.png>",
    "<script>document.title='attacked'</script>",
    f"<iframe src=http://{ELSEWHERE}/c></iframe>",
    "{{constructor.constructor('document.title=1')()}}",
    "${document.title='attacked'}",
)


@pytest.fixture(scope="module")
def hostile_base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose vocabulary is the attacks."""
    folder = tmp_path_factory.mktemp("base") / "hostile"
    special = ("<unk>", "<s>", "</s>")
    vocabulary = {word: i for i, word in enumerate((*special, *ATTACKS))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    named = dict(zip(("unk_token", "bos_token", "eos_token"), special, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<unk>", **named)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    head = model.lm_head.weight.data
    head[:3] = 0  # one of an attack and its negation is always more likely
    head[4] = -head[3]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def hostile_runs(tmp_path_factory: pytest.TempPathFactory, hostile_base: str) -> Path:
    """A usable run, a failed run with a report, and a broken run; all contain the attacks."""
    root = tmp_path_factory.mktemp("hostile") / "runs"
    write_run(hostile_base, root / ATTACK, "sft", seed=1)
    run = Run.start(root / ATTACKS[1], recipe=ATTACK)
    run.base, run.parents = {"id": ATTACK}, {ATTACK: LINK, "adapter": ATTACKS[1]}
    run.config = {name: list(ATTACKS) for name in (*ATTACKS, "learning_rate")}
    run.results = dict.fromkeys(ATTACKS, ATTACK)
    run.fail(RuntimeError(" ".join(ATTACKS)))
    rows = [{"step": i, "loss": 1 / i, "warning/a": ATTACK, ATTACK: i} for i in (1, 2, 3)]
    for folder in (root / ATTACK, root / ATTACKS[1]):
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / ATTACKS[1] / "report.md").write_text("\n\n".join(ATTACKS))
    (root / ATTACKS[1] / "reward_report.json").write_text(json.dumps(dict.fromkeys(ATTACKS, 1)))
    (root / LINK).mkdir()
    (root / LINK / "run.json").write_text(ATTACK)
    return root


@pytest.fixture(scope="module")
def address(hostile_base: str, hostile_runs: Path) -> Iterator[str]:
    """The URL of the page over `hostile_runs`; the tab Runs refreshes every two seconds."""
    words = ("--model_name_or_path", hostile_base, "--runs", str(hostile_runs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "REFRESH_S", 2)
        with served_here(*words) as url:
            yield url


@pytest.mark.browser
def test_shown_text_runs_and_loads_nothing(address: str, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    leaks: list[str] = []
    allowed = (address, "data:", "blob:")
    page.on("request", lambda a: None if a.url.startswith(allowed) else leaks.append(a.url))
    page.on("console", lambda m: leaks.append(m.text) if ELSEWHERE in m.text else None)
    page.on("dialog", lambda dialog: leaks.append(dialog.message))
    page.goto(address)
    page.get_by_label("Prompt").fill("Hello")
    page.keyboard.press("Enter")
    bubbles = "[...document.querySelectorAll('.answers .bot.message')]"
    attacks = f"{bubbles}.filter(b => /attack/.test(b.innerText)).length"
    # the base's answer and the run's
    page.wait_for_function(f"n => {attacks} >= n", arg=2, timeout=60000)

    page.get_by_role("tab", name="Runs").click()
    page.locator(".toolkit-curve .js-plotly-plot").first.wait_for(timeout=60000)
    page.get_by_role("button", name="Settings of these runs").click()
    page.get_by_label("All", exact=True).click()
    page.get_by_label("Run", exact=True).click()
    page.get_by_role("option", name=ATTACKS[1]).click()
    page.get_by_text(f"adapter: {ATTACKS[1]}").or_(page.get_by_text("(circular)")).first.wait_for()
    for text in (ATTACK, ATTACKS[1], LINK):
        assert page.locator("td", has_text=text).count() > 0  # as text
    for _ in range(2):  # the tab refreshes itself, and shows it before it asks again
        page.wait_for_event("response", lambda answer: "run/predict" in answer.url)
    elements = "img[src='x'], svg[onload], a[href^='javascript:'], iframe, [src*='attacker']"
    assert page.locator(elements).count() == 0
    assert page.title() == "toolkit: compare checkpoints"
    assert leaks == []
    # the same attack works if it is inserted as markup
    page.evaluate("html => document.body.insertAdjacentHTML('beforeend', html)", ATTACK)
    page.wait_for_function("() => document.title == 'attacked'")


def test_every_response_has_headers_and_no_other_host(address: str) -> None:
    html = get(address)[2].decode()
    asset = re.search(r'(?:src|href)="\.?/?(assets/[^"]+\.js)"', html)
    assert asset is not None
    routes = {
        "": 200,
        "config": 200,
        "gradio_api/info": 200,
        "theme.css": 200,
        asset[1]: 200,
        "nowhere": 404,
        "gradio_api/heartbeat/abc": 200,  # a stream of events
        "gradio_api/queue/data?session_hash=abc": 200,
        "monitoring": None,
        "gradio_api/file=/etc/passwd": None,
        "gradio_api/file=..%2F..%2Fetc%2Fpasswd": None,
        "gradio_api/file=a%00b": None,
        "gradio_api/component_server": 403,
    }
    for route, expected in routes.items():
        status, headers, body = get(address + route)
        assert status == expected if expected else status >= 400, (route, status)
        assert HEADERS.items() <= headers.items(), route
        assert b"root:" not in body
    loaded = re.findall(
        r'<(?:script|link|img|iframe)[^>]*(?:src|href)="((?:https?:)?//[^"]+)"', html
    )
    assert [url for url in loaded if not url.startswith(address)] == []
    config = json.loads(get(address + "config")[2])
    assert config["analytics_enabled"] is False
    assert [sheet for sheet in config.get("stylesheets") or [] if "//" in sheet] == []
    assert not config.get("enable_monitoring") and not config.get("share_url")


def get(url: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a response; the body of a stream is not read."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            stream = answer.headers.get_content_type() == "text/event-stream"
            body = b"" if stream else answer.read()
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, body
    except urllib.error.HTTPError as error:
        return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()


def test_paths_as_ids_show_nothing(address: str, hostile_runs: Path) -> None:
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    (hostile_runs.parent / "report.md").write_text("SECRET")
    client = Client(address, verbose=False, analytics_enabled=False)
    for path in ("..", "../../etc", "\0", str(hostile_runs.parent)):
        for call in ({"api_name": "/run"}, {"api_name": "/curves"}):
            words = [path] if call["api_name"] == "/run" else [[path], [path], "All"]
            try:
                output = client.predict(*words, **call)
            except (AppError, ValueError):
                continue
            assert "SECRET" not in str(output) and "root:" not in str(output)
