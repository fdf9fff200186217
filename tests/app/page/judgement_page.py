"""A page with only the judgement tabs, and a workbench without a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import gradio as gr

from tests.app.judgements.fake_workbench import FakeWorkbench
from toolkit.app.judgements.battles import Battles
from toolkit.app.judgements.store import Store
from toolkit.app.tabs.arena import arena_tab
from toolkit.app.tabs.data import data_tab
from toolkit.app.tabs.leaderboard import leaderboard_tab
from toolkit.app.tabs.rank import rank_tab
from toolkit.app.web.server import free_port, serve
from toolkit.app.workbench import Workbench

NAMES = "secret-sft-run secret-dpo-run"


@contextmanager
def judgement_page(folder: Path) -> Iterator[tuple[str, FakeWorkbench, Store]]:
    """The page's address, its workbench and its store."""
    fake = FakeWorkbench(folder / "runs", NAMES)
    store = Store(folder / "runs" / "judgements.sqlite")
    workbench = cast(Workbench, fake)
    battles = Battles(workbench, store)
    with gr.Blocks(analytics_enabled=False) as page:
        with gr.Tab("Arena"):
            arena_tab(page, battles)
        with gr.Tab("Rank"):
            rank_tab(page, battles, ["A prompt from a file"])
        with gr.Tab("Leaderboard") as tab:
            leaderboard_tab(tab, store, store.path.parent)
        with gr.Tab("Data") as tab:
            data_tab(page, tab, workbench, store)
    page.queue(max_size=32)
    url = serve(page, host="127.0.0.1", port=free_port())
    try:
        yield url, fake, store
    finally:
        page.close(verbose=False)
