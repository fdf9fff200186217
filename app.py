"""The app: compare checkpoints side by side, judge their answers blind, follow the runs.

    toolkit app --runs runs
    toolkit app --ask "What is it?" --checkpoint quickstart/sft

Reads   the runs below --runs and the base that they were trained on.
Writes  judgements.sqlite there (or the file of --judgements), and judgements/ at an export.
Layout only; the logic is in toolkit/app/.
"""

import sys
from collections.abc import Sequence
from threading import Thread
from typing import TYPE_CHECKING, cast

from toolkit.app.arguments import LOOPBACK_NAMES, AppArguments, parse_arguments
from toolkit.app.web.ports import free_port, require_free
from toolkit.cli import run as run_command
from toolkit.recipe import Command

if TYPE_CHECKING:
    import gradio as gr

    from toolkit.app.judgements.battles import Battles
    from toolkit.app.workbench import Workbench


def main(arguments: AppArguments) -> int:
    """Serve the page until interrupted, or answer one question and stop."""
    if arguments.ask is not None or arguments.conversation is not None:
        from toolkit.app.answering.cli_command import ask_once

        return ask_once(_open(arguments), arguments)
    login = arguments.login
    port = free_port() if arguments.smoke else arguments.port
    require_free(arguments.host, port)

    from toolkit.app.judgements.battles import Battles, read_prompts
    from toolkit.app.judgements.store import FILE, Store
    from toolkit.app.opening import Opening

    prompts = read_prompts(arguments.prompts) if arguments.prompts else []
    store = Store(arguments.judgements or arguments.runs / FILE)
    if store.problem is not None:
        print(f"warning: {store.problem}", file=sys.stderr, flush=True)
    opening = Opening(arguments.model_name_or_path, arguments.runs)
    workbench = cast("Workbench", opening)
    page = build(workbench, Battles(workbench, store), prompts)
    url = serve(page, host=arguments.host, port=port, login=login, names=arguments.host_names)
    if not arguments.smoke:
        print(f"Compare checkpoints at {url} (Ctrl+C stops it)", flush=True)
    try:
        opening.open(lambda: _open(arguments))
        if arguments.smoke:
            from toolkit.app.web.smoke import smoke

            return smoke(url, workbench, login)
        Thread(target=workbench.warm, daemon=True).start()
        page.block_thread()
    finally:
        page.close(verbose=False)
    return 0


def _open(arguments: AppArguments) -> "Workbench":
    from toolkit.app.answering.cli_command import options
    from toolkit.app.workbench import Workbench

    workbench = Workbench.open(
        arguments.model_name_or_path,
        arguments.runs,
        revision=arguments.model_revision,
        load_in_4bit=arguments.load_in_4bit,
        load_in_8bit=arguments.load_in_8bit,
    )
    workbench.options = options(arguments)
    return workbench


def build(workbench: "Workbench", battles: "Battles", prompts: list[str]) -> "gr.Blocks":
    """The page, tab by tab."""
    import gradio as gr

    from toolkit.app.tabs.arena import arena_tab
    from toolkit.app.tabs.changed import changed_tab
    from toolkit.app.tabs.compare import compare_tab
    from toolkit.app.tabs.data import data_tab
    from toolkit.app.tabs.leaderboard import leaderboard_tab
    from toolkit.app.tabs.rank import rank_tab
    from toolkit.app.tabs.runs import runs_tab

    store = battles.store
    whole = gr.Blocks(
        title="toolkit: compare checkpoints",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(600, 3600),  # seconds: every ten minutes, what is an hour old
    )
    with whole as page:
        with gr.Tab("Compare"):
            chat = compare_tab(page, workbench)
        with gr.Tab("What changed") as tab:
            changed_tab(tab, workbench, chat)
        with gr.Tab("Arena"):
            arena_tab(page, battles, prompts)
        with gr.Tab("Rank"):
            rank_tab(page, battles, prompts)
        with gr.Tab("Leaderboard") as tab:
            leaderboard_tab(tab, store)
        with gr.Tab("Runs"):
            runs_tab(page, workbench)
        with gr.Tab("Data") as tab:
            data_tab(page, tab, workbench, store)
    page.queue(max_size=128)
    return page


def serve(
    page: "gr.Blocks",
    *,
    host: str,
    port: int,
    login: tuple[str, str] | None = None,
    names: Sequence[str] = LOOPBACK_NAMES,
) -> str:
    """Start to serve the page, in threads of its own.

    Args:
        page: the app.
        host: to bind.
        port: a free one.
        login: user and password.
        names: of this host, under which it may be asked; "*" is any.

    Returns: its address.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from toolkit.app.tabs.parts import CSS, theme
    from toolkit.app.web.head import HEAD
    from toolkit.app.web.headers import SecurityHeaders
    from toolkit.app.web.limits import BodyLimit, LoginThrottle

    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        auth=login,
        app_kwargs={
            "middleware": [
                Middleware(SecurityHeaders),
                Middleware(TrustedHostMiddleware, allowed_hosts=names),
                Middleware(BodyLimit),
                Middleware(LoginThrottle),
            ]
        },
        prevent_thread_lock=True,
        quiet=True,
        share=False,  # None would let the environment decide
        enable_monitoring=False,
        run_history=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        max_file_size="1mb",  # nothing is uploaded here, but the route is open
        footer_links=[],
        theme=theme(),
        css=CSS,
        head=HEAD,
        max_threads=128,  # a visitor whose answer streams holds one; the engine takes on 80
    )
    return str(url)


def command(words: Sequence[str]) -> int:
    """Run the app with the words of its command line."""
    return main(parse_arguments(words, description=__doc__))


COMMAND = Command("app", __doc__, command)

if __name__ == "__main__":
    sys.exit(run_command(COMMAND))
