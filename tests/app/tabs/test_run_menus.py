"""The menus of runs follow the runs folder."""

from pathlib import Path
from typing import Any, cast

import gradio as gr

from tests.app.judgements.fake_workbench import FakeWorkbench
from toolkit.app.catalog import Catalog, Entry
from toolkit.app.tabs.run_menus import REWARD_MENU, RUN_MENU, TEST_ROWS_MENU, _update, follow_runs


def test_menus_follow_new_and_deleted_runs(tmp_path: Path) -> None:
    fake = FakeWorkbench(tmp_path / "runs", "")
    with gr.Blocks(analytics_enabled=False) as page:
        base = [("base", "base")]
        several = gr.Dropdown(base, multiselect=True, elem_classes=RUN_MENU)
        one = gr.Dropdown(base, elem_classes=RUN_MENU)
        reward = gr.Dropdown([("no score", "no_score")], elem_classes=REWARD_MENU)
        follow_runs(page, cast(Any, fake))
    later = FakeWorkbench(tmp_path / "later", "sft dpo").catalog
    scorer = Entry("run_000009", "rm", "reward", is_reward=True)
    fake.catalog = Catalog(later.checkpoints, {scorer.id: scorer})
    # an API client that has not called /refresh
    assert several.preprocess(["run_000000", "run_000001"]) == ["run_000000", "run_000001"]
    assert one.preprocess("run_000001") == "run_000001"
    assert reward.preprocess("run_000009") == "run_000009"
    without_dpo = {k: e for k, e in later.checkpoints.items() if e.name != "dpo"}
    deleted = Catalog(without_dpo, {})
    update = _update(several, ["run_000000", "run_000001"], deleted)
    assert update["value"] == ["run_000000"]
    assert [id for _, id in update["choices"]] == ["base", "run_000000"]
    assert _update(one, "run_000001", deleted)["value"] == "base"
    for menu, value in ((one, None), (one, "run_000000"), (several, ["base"])):
        assert "value" not in _update(menu, value, deleted)  # a visitor may choose another one now
    assert _update(reward, None, fake.catalog)["value"] == "run_000009"
    assert _update(reward, "run_000009", deleted)["value"] == "no_score"


def test_menu_of_held_out_prompts_lists_runs_with_test_rows(tmp_path: Path) -> None:
    catalog = FakeWorkbench(tmp_path / "runs", "sft").catalog
    held_out = gr.Dropdown([], elem_classes=TEST_ROWS_MENU)
    assert _update(held_out, None, catalog)["choices"] == []
    scorer = Entry("run_000009", "rm", "reward", is_reward=True, has_test_rows=True)
    update = _update(held_out, None, Catalog(catalog.checkpoints, {scorer.id: scorer}))
    assert update["choices"] == [("rm (reward)", "run_000009")] and "value" not in update
    assert _update(held_out, "run_000009", catalog)["value"] is None  # no other run is chosen
