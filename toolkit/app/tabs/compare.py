"""Several checkpoints answer the same thing side by side."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from toolkit.app.answering import request as limits
from toolkit.app.answering.chat import Chat
from toolkit.app.answering.request import MAX_COLUMNS, MAX_PROMPT_CHARACTERS
from toolkit.app.catalog import Catalog
from toolkit.app.choices import PAGE_LOOKS_APART, checkpoint_choices, reward_choices
from toolkit.app.tabs.answering import PARTS, Visitors, again, anew, further
from toolkit.app.tabs.parts import heat_and_length
from toolkit.app.texts import INTRODUCTION, LEGEND, LOADING, NO_RUNS
from toolkit.app.web.bubbles import PROMPT, QUESTION

if TYPE_CHECKING:
    from toolkit.app.workbench import Workbench


def compare_tab(page: gr.Blocks, workbench: "Workbench") -> gr.State:
    """The tab's contents. What it shows of the disk or of a model is escaped or plain text.

    Returns: the visitor's `Chat`, for other tabs to look at.
    """
    chat, visitors = gr.State(Chat()), Visitors(workbench)
    gr.Markdown(INTRODUCTION)
    no_runs = gr.Markdown(NO_RUNS, visible=workbench.ready and workbench.catalog.empty)
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            prompt, ask, follow, stop, repeat, edit, clear = _prompt(workbench.examples())
        with gr.Column(scale=2, min_width=320):
            checkpoints, reward, look = _models(workbench)
            settings = _sampling()
    columns, stops = _answers()
    with gr.Accordion("What the numbers mean", open=False):
        gr.Markdown(LEGEND)
    broken_box, broken = _broken()

    asked = [chat, prompt, checkpoints, reward, *settings]
    shown = [chat, prompt, *columns]
    stream: dict[str, Any] = {
        "concurrency_limit": None,  # the engine's own queue is shorter, and says what to do
        "show_progress": "minimal",
    }
    first, more = visitors.answering(anew), visitors.answering(further)
    gr.on([ask.click, prompt.submit], first, asked, shown, api_name="compare", **stream)
    follow.click(more, asked, shown, api_name="follow_up", **stream)
    seed, once_more = settings[-1], visitors.answering(again, keep_prompt=True)
    repeat.click(
        visitors.new_seed, [chat, seed], seed, api_visibility="private", show_progress="hidden"
    ).success(once_more, asked, shown, api_name="regenerate", **stream)
    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "queue": False}
    stop.click(visitors.stop, None, None, api_name="stop", **quiet)
    for number, button in enumerate(stops):
        button.click(visitors.stop_column(number), None, None, api_visibility="private", **quiet)
    edit.click(visitors.edit, chat, shown, api_visibility="private")
    clear.click(visitors.clear, None, shown, api_visibility="private")

    def looked(chosen: list[str] | None, scorer: str | None) -> Iterator[list[Any]]:
        if not workbench.ready:
            yield [gr.update(value=LOADING, visible=True), *(gr.skip() for _ in lists[1:])]
        yield lists_of(workbench.refresh(unless_within=PAGE_LOOKS_APART), chosen, scorer)

    def refresh(chosen: list[str] | None, scorer: str | None) -> list[Any]:
        return lists_of(workbench.refresh(), chosen, scorer)

    def lists_of(catalog: Catalog, chosen: list[str] | None, scorer: str | None) -> list[Any]:
        models = checkpoint_choices(catalog, chosen or [])
        rewards = reward_choices(catalog, scorer)
        title = f"Runs that cannot be used ({len(catalog.broken)})"
        return [
            gr.update(value=NO_RUNS, visible=catalog.empty),
            gr.update(choices=models.choices, value=models.chosen),
            gr.update(choices=rewards.choices, value=rewards.chosen[0]),
            gr.update(visible=bool(catalog.broken), label=title),
            "\n".join(f"{name}: {reason}" for name, reason in catalog.broken),
        ]

    lists = [no_runs, checkpoints, reward, broken_box, broken]
    look.click(refresh, [checkpoints, reward], lists, api_name="refresh")
    page.load(
        looked, [checkpoints, reward], lists, api_visibility="private", concurrency_limit=None
    )
    page.unload(visitors.leave)
    return chat


def _prompt(examples: list[str]) -> tuple[Any, ...]:
    prompt = gr.Textbox(
        label="Prompt",
        info="What all of them are asked. Shift+Enter asks, too.",
        lines=3,
        max_lines=12,
        max_length=MAX_PROMPT_CHARACTERS,
        placeholder="Ask something…",
        elem_id=PROMPT,
    )
    with gr.Row():
        ask = gr.Button("Ask", variant="primary", min_width=120)
        follow = gr.Button("Follow up", min_width=120)
        stop = gr.Button("Stop all", min_width=120)
    with gr.Row():
        repeat = gr.Button("Regenerate", size="sm", min_width=90)
        edit = gr.Button("Edit last", size="sm", min_width=90)
        clear = gr.Button("Clear", size="sm", min_width=90)
    gr.Markdown(
        "*Ask* begins anew; *Follow up* goes on, and each checkpoint sees its own earlier answers. "
        "*Regenerate* answers again with the next seed; *Edit last* takes the last prompt back into "
        "the box.",
        elem_classes="note",
    )
    if examples:
        gr.Markdown("Questions to try:", elem_classes="note")
        with gr.Row(elem_classes="questions"):  # the page's script puts them into the box at once
            for example in examples:
                gr.Button(example, size="sm", min_width=0, scale=0, elem_classes=QUESTION)
    return prompt, ask, follow, stop, repeat, edit, clear


def _models(workbench: "Workbench") -> tuple[gr.Dropdown, gr.Dropdown, gr.Button]:
    models, rewards = checkpoint_choices(workbench.catalog), reward_choices(workbench.catalog)
    checkpoints = gr.Dropdown(
        models.choices,
        value=models.chosen if workbench.ready else [],
        multiselect=True,
        max_choices=MAX_COLUMNS,
        label="Checkpoints",
        info=f"One to {MAX_COLUMNS - 1}, and the base: the model before any training.",
    )
    reward = gr.Dropdown(
        rewards.choices,
        value=rewards.chosen[0] if workbench.ready else None,
        label="Reward model",
        info="Gives each answer its score. Made by recipes/reward.py.",
    )
    return checkpoints, reward, gr.Button("Look for runs again", size="sm")


def _sampling() -> list[Any]:
    """System prompt and everything that decides how tokens are drawn, the seed last."""
    with gr.Accordion("Sampling", open=False):
        temperature, tokens = heat_and_length()
        seed = gr.Number(
            0,
            precision=0,
            minimum=0,
            maximum=limits.MAX_SEED,
            label="Seed",
            info="Where chance starts, alike in all columns. The same seed repeats an answer.",
        )
        top_k = gr.Slider(
            0,
            limits.MAX_TOP_K,
            value=0,
            step=1,
            label="Top k",
            info="Draw among this many likeliest tokens only; 0 draws among all.",
        )
        top_p = gr.Slider(
            limits.MIN_TOP_P,
            1,
            value=1,
            step=0.01,
            label="Top p",
            info="Draw among the likeliest tokens that together have this probability; 1 is all.",
        )
        beams = gr.Slider(
            1,
            limits.MAX_BEAMS,
            value=1,
            step=1,
            label="Beams",
            info="Above 1: search for the likeliest whole answer. It comes all at once, and "
            "temperature, top k, top p and seed do nothing.",
        )
        system = gr.Textbox(
            label="System message",
            info="Said before the conversation. Empty for none, as the embedded runs were trained.",
            lines=1,
            max_lines=6,
            max_length=MAX_PROMPT_CHARACTERS,
        )
    return [temperature, tokens, top_k, top_p, beams, system, seed]


def _answers() -> tuple[list[Any], list[gr.Button]]:
    """The parts of each checkpoint's column, one column after the other, and their stop buttons."""
    parts: list[Any] = []
    stops: list[gr.Button] = []
    with gr.Row(equal_height=False, elem_classes="answers"):
        for _ in range(MAX_COLUMNS):
            with gr.Column(min_width=280, visible=False) as column:
                answer = gr.Chatbot(
                    label="Answer",
                    height=None,
                    max_height=420,
                    render_markdown=False,  # an answer is text, whatever it holds
                    allow_tags=False,
                    buttons=["copy"],
                    feedback_options=None,
                )
                stop = gr.Button("Stop this one", size="sm", visible=False)
                numbers = gr.Textbox(lines=4, max_lines=12, interactive=False)
                command = gr.Textbox(
                    label="Command",
                    info="Prints the same answer without this page.",
                    lines=1,
                    max_lines=8,
                    interactive=False,
                    buttons=["copy"],
                )
                parts += [column, answer, stop, numbers, command]
                stops.append(stop)
    assert len(parts) == PARTS * MAX_COLUMNS
    return parts, stops


def _broken() -> tuple[gr.Accordion, gr.Textbox]:
    with gr.Accordion(visible=False, open=False) as box:
        reasons = gr.Textbox(
            label="Broken runs",
            info="Each with the reason. The others are not touched by it.",
            lines=1,
            max_lines=30,
            interactive=False,
        )
    return box, reasons
