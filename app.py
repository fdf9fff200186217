"""The app: compare checkpoints side by side, judge their answers blind, follow training runs.

    toolkit app --runs runs
    toolkit app --ask "What is it?" --checkpoint quickstart/sft

Reads   the runs below --runs and the base that they were trained on.
Writes  judgements.sqlite in that folder (or the file of --judgements) and conversations.sqlite beside it;
        Export writes judgements/ there.
The parts of the page are in toolkit/app/.
"""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, cast

from toolkit.app.arguments import AppArguments, parse_arguments
from toolkit.cli import run as run_command
from toolkit.errors import ConfigError, ToolkitError
from toolkit.recipe import Command

if TYPE_CHECKING:
    import gradio as gr

    from toolkit.app.bases import Base
    from toolkit.app.catalog import Catalog
    from toolkit.app.judgements.battles import Battles
    from toolkit.app.workbench import Workbench


def main(argv: Sequence[str] | None = None) -> int:
    """Run the app with these command-line arguments, by default `sys.argv[1:]`.

    Returns: the exit code. After a ToolkitError it is 2, and the error is printed in one line.
    """
    try:
        arguments = parse_arguments(argv, description=__doc__)
        if arguments.ask is not None or arguments.conversation is not None:
            from toolkit.app.answering.cli_command import answer_once

            return answer_once(open_workbench(arguments, bases_of(arguments)), arguments)
        from toolkit.app.web.server import private_files

        with private_files():
            return run_page(arguments)
    except ToolkitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2


def run_page(arguments: AppArguments) -> int:
    """Serve the page until Ctrl+C; with `--smoke`, ask one question through it and stop.

    Raises: ConfigError if Gradio is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("app: Gradio is not installed; pip install 'rlhf-toolkit[app]'")
    from toolkit.app.web.server import free_port, require_free, serve

    login = arguments.login
    port = free_port() if arguments.smoke else arguments.port
    require_free(arguments.host, port)

    from toolkit.app.judgements.battles import Battles, read_prompts
    from toolkit.app.judgements.store import FILE, Store
    from toolkit.app.loading import LoadingWorkbench

    prompts = read_prompts(arguments.prompts) if arguments.prompts else []
    store = Store(arguments.judgements or arguments.runs / FILE)
    if store.problem is not None:
        print(f"warning: {store.problem}", file=sys.stderr, flush=True)
    bases = bases_of(arguments)
    loading = LoadingWorkbench(bases[0].id, arguments.runs)
    workbench = cast("Workbench", loading)
    page = build(workbench, Battles(workbench, store), prompts)
    url = serve(page, host=arguments.host, port=port, login=login, host_names=arguments.host_names)
    if not arguments.smoke:
        print(f"Compare checkpoints at {url} (Ctrl+C stops it)", flush=True)
    try:
        loading.load(lambda: open_workbench(arguments, bases))
        print_bases(loading.catalog)
        if arguments.smoke:
            from toolkit.app.web.smoke import smoke

            return smoke(url, workbench, login)
        Thread(target=workbench.warm_up, daemon=True).start()
        page.block_thread()
    finally:
        page.close(verbose=False)
    return 0


def print_bases(catalog: "Catalog") -> None:
    """List the bases of the runs, if there are several."""
    if len(catalog.bases) > 1:
        names = [f"{b}{', loaded' if b.label == catalog.base else ''}" for b in catalog.bases]
        print(f"Bases of the runs: {'; '.join(names)}", flush=True)
        print("The page's menu Base and --base NAME load another one.", flush=True)


def bases_of(arguments: AppArguments) -> list["Base"]:
    """The bases to load, the first choice first: the named one, or those of the runs."""
    from toolkit.app.bases import EMBEDDED, Base, find_bases, named_base
    from toolkit.app.catalog import BASE_ID
    from toolkit.runs.listing import list_runs

    if arguments.model_name_or_path is not None:
        return [Base(arguments.model_name_or_path, arguments.model_name_or_path)]
    bases = find_bases(list_runs(arguments.runs)[0], arguments.runs)
    if arguments.base is not None:
        return [named_base(bases, arguments.base)]
    words = [*(arguments.checkpoint or ()), arguments.reward or BASE_ID]
    names = {word.removeprefix("./") for word in words if word != BASE_ID}
    return [b for b in bases if names & set(b.runs)][:1] or list(bases) or [EMBEDDED]


def open_workbench(arguments: AppArguments, bases: list["Base"]) -> "Workbench":
    """Load the first base that can be loaded, and scan the runs folder.

    Raises: CheckpointError or ConfigError if none can be loaded.
    """
    from toolkit.app.answering.cli_command import base_options
    from toolkit.app.workbench import Workbench

    if arguments.model_name_or_path is not None:
        workbench = Workbench.open(
            arguments.model_name_or_path,
            arguments.runs,
            model_revision=arguments.model_revision,
            load_in_4bit=arguments.load_in_4bit,
            load_in_8bit=arguments.load_in_8bit,
        )
    else:
        workbench = open_first(bases, arguments.runs)
    workbench.cli_options = base_options(arguments)
    return workbench


def open_first(bases: list["Base"], runs: Path) -> "Workbench":
    """Load the first base that can be loaded. Raises: the error of the last one."""
    from toolkit.app.workbench import Workbench

    for base in bases[:-1]:
        try:
            return Workbench.open_base(base, runs)
        except ToolkitError as error:
            print(f"warning: {error}", file=sys.stderr, flush=True)
    return Workbench.open_base(bases[-1], runs)


def build(workbench: "Workbench", battles: "Battles", prompts: list[str]) -> "gr.Blocks":
    """The page, tab by tab. Conversations are stored beside the judgements."""
    import gradio as gr

    from toolkit.app.conversations.store import FILE, Conversations
    from toolkit.app.tabs.arena import arena_tab
    from toolkit.app.tabs.batch import batch_tab
    from toolkit.app.tabs.changed import changed_tab
    from toolkit.app.tabs.compare import compare_tab
    from toolkit.app.tabs.data import data_tab
    from toolkit.app.tabs.leaderboard import leaderboard_tab
    from toolkit.app.tabs.rank import rank_tab
    from toolkit.app.tabs.run_menus import follow_runs
    from toolkit.app.tabs.runs import runs_tab

    store = battles.store
    conversations = Conversations(store.path.with_name(FILE))
    if conversations.problem is not None:
        print(f"warning: {conversations.problem}", file=sys.stderr, flush=True)
    blocks = gr.Blocks(
        title="toolkit: compare checkpoints",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(600, 3600),  # every 600 s, files older than 3600 s
    )
    with blocks as page:
        with gr.Tab("Compare"):
            chat = compare_tab(page, workbench, conversations, store)
        with gr.Tab("What changed") as tab:
            changed_tab(tab, workbench, chat)
        with gr.Tab("Batch"):
            batch_tab(page, workbench, prompts)
        with gr.Tab("Arena"):
            arena_tab(page, battles, prompts)
        with gr.Tab("Rank"):
            rank_tab(page, battles, prompts)
        with gr.Tab("Leaderboard") as tab:
            leaderboard_tab(tab, store, workbench.runs)
        with gr.Tab("Runs"):
            runs_tab(page, workbench)
        with gr.Tab("Data") as tab:
            data_tab(page, tab, workbench, store)
        follow_runs(page, workbench)
    page.queue(max_size=128)
    return page


COMMAND = Command("app", __doc__, main)

if __name__ == "__main__":
    sys.exit(run_command(COMMAND))
