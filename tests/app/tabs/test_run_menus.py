"""The menus of runs follow the runs folder."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import gradio as gr
import pytest

from tests.app.judgements.fake_workbench import FakeWorkbench
from toolkit.app.answering.chat import Chat
from toolkit.app.catalog import Catalog, Entry
from toolkit.app.choices import NO_REWARD_RUN, NO_SCORE
from toolkit.app.tabs.batch import batch_tab
from toolkit.app.tabs.compare_events import CompareEvents, Visit
from toolkit.app.tabs.run_menus import REWARD_MENU, RUN_MENU, TEST_ROWS_MENU, _update, follow_runs
from toolkit.errors import ConfigError


def test_menus_follow_new_and_deleted_runs(tmp_path: Path) -> None:
    fake = FakeWorkbench(tmp_path / "runs", "")
    with gr.Blocks(analytics_enabled=False) as page:
        base = [("base", "base")]
        several = gr.Dropdown(base, multiselect=True, elem_classes=RUN_MENU)
        one = gr.Dropdown(base, elem_classes=RUN_MENU)
        reward = gr.Dropdown([("no reward run found", NO_REWARD_RUN)], elem_classes=REWARD_MENU)
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
    assert _update(reward, NO_SCORE, fake.catalog)["choices"][-1] == ("no score", NO_SCORE)
    assert "value" not in _update(reward, NO_SCORE, fake.catalog)
    assert _update(reward, "run_000009", deleted)["value"] == NO_REWARD_RUN


@pytest.mark.parametrize(("chosen", "used"), [(None, "run_000009"), (NO_SCORE, None)])
def test_batch_and_compare_before_the_first_refresh_use_the_default_reward_model(
    tmp_path: Path, chosen: str | None, used: str | None
) -> None:
    fake, rewards = FakeWorkbench(tmp_path / "runs"), []
    scorer = Entry("run_000009", "rm", "reward", is_reward=True)
    fake.catalog = Catalog(fake.catalog.checkpoints, {scorer.id: scorer})
    with gr.Blocks(analytics_enabled=False) as page:
        batch_tab(page, cast(Any, fake))
    batch = next(fn.fn for fn in page.fns.values() if fn.api_name == "batch")
    list(cast(Any, batch)("Who?", ["run_000000"], chosen, 0, 4, 0))
    assert fake.calls[-1]["reward"] == used

    def stream(*inputs: Any, reward: Any) -> None:
        rewards.append(reward)
        raise ConfigError("not needed")

    compared = SimpleNamespace(base="", command_options=[], refresh=fake.refresh, stream=stream)
    events = CompareEvents(cast(Any, compared), cast(Any, None))
    visitor = cast(Any, SimpleNamespace(session_hash="visitor"))
    with pytest.raises(gr.Error):
        next(events._answer(Chat(), Visit(), ["run_000000"], chosen, {}, visitor))
    assert rewards == [used]


def test_menu_of_held_out_prompts_lists_runs_with_test_rows(tmp_path: Path) -> None:
    catalog = FakeWorkbench(tmp_path / "runs", "sft").catalog
    held_out = gr.Dropdown([], elem_classes=TEST_ROWS_MENU)
    assert _update(held_out, None, catalog)["choices"] == []
    scorer = Entry("run_000009", "rm", "reward", is_reward=True, has_test_rows=True)
    update = _update(held_out, None, Catalog(catalog.checkpoints, {scorer.id: scorer}))
    assert update["choices"] == [("rm (reward)", "run_000009")] and "value" not in update
    assert _update(held_out, "run_000009", catalog)["value"] is None  # no other run is chosen
