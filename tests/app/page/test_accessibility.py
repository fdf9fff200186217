"""axe-core finds nothing critical or serious on any tab, wide and narrow, light and dark."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app import build
from tests.app.conftest import copied_runs
from tests.app.judgements.judgements import battle
from toolkit.app.judgements.battles import Battles
from toolkit.app.judgements.store import Store
from toolkit.app.web.server import free_port, serve
from toolkit.app.workbench import Workbench

# Findings inside Gradio's components that its options, our style and our script cannot change.
GRADIO: dict[str, str] = {}
SETTLED = "*, *::before, *::after { transition: none !important; animation: none !important; }"
FINDINGS = """async () => {
  const { violations } = await axe.run(document, { resultTypes: ["violations"] });
  return violations.filter((v) => ["critical", "serious"].includes(v.impact)).flatMap((v) =>
    v.nodes.map((n) => `${v.id}: ${n.html.slice(0, 200)} ${n.any.map((c) => c.message).join(" ")}`));
}"""


@pytest.fixture(scope="module")
def address(
    tiny_base: str, runs_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The whole page over runs with curves, completions, a report and judgements."""
    runs = copied_runs(runs_template, tmp_path_factory.mktemp("axe"))
    rows = [{"step": i, "loss": 1 / i, "eval_loss": 1.0, "warning/a": "slow"} for i in range(1, 9)]
    (runs / "ppo" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sample = {"step": 1, "prompt": "Why?", "completion": "So.", "score": 0.5}
    (runs / "ppo" / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    (runs / "ppo" / "report.md").write_text("# Evaluation\n\n| a | b |\n|---|---|\n| 1 | 2 |\n")
    workbench = Workbench.open(tiny_base, runs)
    store = Store(runs / "judgements.sqlite")
    store.add(battle("1", "sft", "dpo", "a"))
    page = build(workbench, Battles(workbench, store), ["Why?"])
    yield serve(page, host="127.0.0.1", port=free_port())
    page.close(verbose=False)


@pytest.mark.browser
@pytest.mark.slow
def test_no_tab_has_a_critical_or_serious_finding(address: str, browser: Any) -> None:
    package = pytest.importorskip("axe_playwright_python", reason="axe is not installed")
    axe = (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(address)
    page.locator(".token", has_text="ppo (ppo)").first.wait_for()
    page.add_style_tag(content=SETTLED)
    page.evaluate(f"{axe}; 0")
    tabs = [tab.inner_text() for tab in page.get_by_role("tab").all() if tab.is_visible()]
    problems = []
    for tab in tabs:
        page.set_viewport_size({"width": 1400, "height": 900})
        page.get_by_role("tab", name=tab, exact=True).locator("visible=true").first.click()
        page.wait_for_timeout(400)
        for closed in page.locator("button.label-wrap:not(.open)").all():
            if closed.is_visible():
                closed.click()
        page.wait_for_timeout(400)
        for width in (1400, 400):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(300)
            for theme in ("light", "dark"):
                page.evaluate(
                    "dark => document.body.classList.toggle('dark', dark)", theme == "dark"
                )
                found = page.evaluate(FINDINGS)
                known = [f for f in found if f.partition(":")[0] in GRADIO]
                problems += [(tab, width, theme, f) for f in found if f not in known]
    assert problems == []
