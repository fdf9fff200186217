"""The app: ask several checkpoints the same thing and read their answers side by side.

    python app.py --runs runs

Reads   the runs below --runs and the base that they were trained on. Writes nothing.
Layout only; the logic is in toolkit/arena/.
"""

import sys
from typing import TYPE_CHECKING

import toolkit  # noqa: F401  (turns telemetry off before any library is imported)
from toolkit.arena.arguments import AppArguments, parse_arguments
from toolkit.arena.ports import free_port, require_free
from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    import gradio as gr

    from toolkit.arena.workbench import Workbench


def main(arguments: AppArguments) -> int:
    """Serve the page until interrupted, or ask it one question and stop."""
    login = arguments.login
    port = free_port() if arguments.smoke else arguments.port
    require_free(arguments.host, port)

    from starlette.middleware import Middleware

    from toolkit.arena.headers import SecurityHeaders
    from toolkit.arena.workbench import Workbench

    workbench = Workbench.open(
        arguments.model_name_or_path,
        arguments.runs,
        load_in_4bit=arguments.load_in_4bit,
        load_in_8bit=arguments.load_in_8bit,
        trust_remote_code=arguments.trust_remote_code,
    )
    page = build(workbench)
    _, url, _ = page.launch(
        server_name=arguments.host,
        server_port=port,
        auth=login,
        app_kwargs={"middleware": [Middleware(SecurityHeaders)]},
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
        theme=_theme(),
    )
    if arguments.smoke:
        from toolkit.arena.smoke import smoke

        try:
            return smoke(url, workbench, login)
        finally:
            page.close(verbose=False)
    print(f"Compare checkpoints at {url} (Ctrl+C stops it)", flush=True)
    page.block_thread()
    return 0


def build(workbench: "Workbench") -> "gr.Blocks":
    """The page, tab by tab."""
    import gradio as gr

    from toolkit.arena.tabs.compare import compare_tab

    whole = gr.Blocks(title="Compare checkpoints", analytics_enabled=False, fill_width=True)
    with whole as page, gr.Tab("Compare"):
        compare_tab(page, workbench)
    page.queue(max_size=32)
    return page


def _theme() -> "gr.themes.Default":
    """Fonts of the visitor's own machine; explanations and the button's word easy to read."""
    import gradio as gr

    font, mono = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
    return gr.themes.Default(font=font, font_mono=mono).set(
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
    )


if __name__ == "__main__":
    try:
        sys.exit(main(parse_arguments(description=__doc__)))
    except ToolkitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
