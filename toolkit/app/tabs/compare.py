"""The tab Compare: several checkpoints answer the same prompt side by side."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from toolkit.app.answering import request as limits
from toolkit.app.answering.chat import Chat
from toolkit.app.answering.request import MAX_COLUMNS, MAX_PROMPT_CHARACTERS
from toolkit.app.catalog import Catalog
from toolkit.app.choices import SHARED_SCAN_S, checkpoint_choices, reward_choices
from toolkit.app.tabs.compare_events import CompareEvents, new_chat, next_turn, repeat_turn
from toolkit.app.tabs.parts import temperature_and_length
from toolkit.app.texts import LOADING, NO_RUNS, markdown
from toolkit.app.web.scripts import PROMPT, QUESTION

if TYPE_CHECKING:
    from toolkit.app.workbench import Workbench


def compare_tab(page: gr.Blocks, workbench: "Workbench") -> gr.State:
    """Build the tab. Text from the disk or from a model is escaped or shown as plain text.

    Returns: the visitor's `Chat`, for other tabs.
    """
    chat, events = gr.State(Chat()), CompareEvents(workbench)
    gr.Markdown(markdown("compare"))
    no_runs = gr.Markdown(NO_RUNS, visible=workbench.ready and workbench.catalog.empty)
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            prompt, ask, follow_up, stop, repeat, edit, clear = _prompt(workbench.examples())
        with gr.Column(scale=2, min_width=320):
            checkpoints, reward, reload = _models(workbench)
            settings = _sampling()
    columns, stops = _answers()
    with gr.Accordion("What the numbers mean", open=False):
        gr.Markdown(markdown("compare_numbers"))
    with gr.Accordion(visible=False, open=False) as broken_box:
        info = "The reason for each. The other runs are not affected."
        broken = gr.Textbox(
            label="Broken runs", info=info, lines=1, max_lines=30, interactive=False
        )

    inputs = [chat, prompt, checkpoints, reward, *settings]
    outputs = [chat, prompt, *columns]
    stream: dict[str, Any] = {
        "concurrency_limit": None,  # the engine has a shorter queue with an error message
        "show_progress": "minimal",
    }
    private: dict[str, Any] = {"api_visibility": "private"}
    ask_first, ask_next = events.answering(new_chat), events.answering(next_turn)
    gr.on([ask.click, prompt.submit], ask_first, inputs, outputs, api_name="compare", **stream)
    follow_up.click(ask_next, inputs, outputs, api_name="follow_up", **stream)
    seed, ask_again = settings[-1], events.answering(repeat_turn, keep_prompt=True)
    repeat.click(events.new_seed, [chat, seed], seed, show_progress="hidden", **private).success(
        ask_again, inputs, outputs, api_name="regenerate", **stream
    )
    at_once: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "queue": False}
    stop.click(events.stop, None, None, api_name="stop", **at_once)
    for number, button in enumerate(stops):
        button.click(events.stop_column(number), None, None, **private, **at_once)
    edit.click(events.edit, chat, outputs, **private)
    clear.click(events.clear, None, outputs, **private)

    def load_lists(chosen: list[str] | None, scorer: str | None) -> Iterator[list[Any]]:
        if not workbench.ready:
            yield [gr.update(value=LOADING, visible=True), *(gr.skip() for _ in lists[1:])]
        yield lists_of(workbench.refresh(max_age_s=SHARED_SCAN_S), chosen, scorer)

    def reload_lists(chosen: list[str] | None, scorer: str | None) -> list[Any]:
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
    chosen = [checkpoints, reward]
    reload.click(reload_lists, chosen, lists, api_name="refresh")
    page.load(load_lists, chosen, lists, concurrency_limit=None, **private)
    page.unload(events.leave)
    return chat


def _prompt(examples: list[str]) -> tuple[Any, ...]:
    prompt = gr.Textbox(
        label="Prompt",
        info="All chosen models answer it. Shift+Enter asks, too.",
        lines=3,
        max_lines=12,
        max_length=MAX_PROMPT_CHARACTERS,
        placeholder="Ask something…",
        elem_id=PROMPT,
    )
    with gr.Row():
        ask = gr.Button("Ask", variant="primary", min_width=120)
        follow_up = gr.Button("Follow up", min_width=120)
        stop = gr.Button("Stop all", min_width=120)
    with gr.Row():
        small = [
            gr.Button(label, size="sm", min_width=90)
            for label in ("Regenerate", "Edit last", "Clear")
        ]
    gr.Markdown(markdown("compare_buttons"), elem_classes="note")
    if examples:
        gr.Markdown("Questions to try:", elem_classes="note")
        with gr.Row(elem_classes="questions"):  # a script of the page fills in the prompt
            for example in examples:
                gr.Button(example, size="sm", min_width=0, scale=0, elem_classes=QUESTION)
    return prompt, ask, follow_up, stop, *small


def _models(workbench: "Workbench") -> tuple[gr.Dropdown, gr.Dropdown, gr.Button]:
    models, rewards = checkpoint_choices(workbench.catalog), reward_choices(workbench.catalog)
    checkpoints = gr.Dropdown(
        models.choices,
        value=models.chosen if workbench.ready else [],
        multiselect=True,
        max_choices=MAX_COLUMNS,
        label="Checkpoints",
        info=f"Up to {MAX_COLUMNS}. The base is the model before fine-tuning.",
    )
    scorer = rewards.chosen[0] if workbench.ready else None
    info = "Scores each answer. `toolkit reward` trains one."
    reward = gr.Dropdown(rewards.choices, value=scorer, label="Reward model", info=info)
    return checkpoints, reward, gr.Button("Reload runs", size="sm")


def _sampling() -> list[Any]:
    """The sampling settings and the system message; the seed is last."""
    with gr.Accordion("Sampling", open=False):
        temperature, tokens = temperature_and_length()
        info = "The same for all columns. The same seed gives the same answer again."
        seed = gr.Number(
            0, precision=0, minimum=0, maximum=limits.MAX_SEED, label="Seed", info=info
        )
        info = "Sample from this many likeliest tokens; 0 samples from all."
        top_k = gr.Slider(0, limits.MAX_TOP_K, value=0, step=1, label="Top k", info=info)
        info = "Sample from the likeliest tokens that together have this probability; 1 is all."
        top_p = gr.Slider(limits.MIN_TOP_P, 1, value=1, step=0.01, label="Top p", info=info)
        info = (
            "Above 1: beam search for the likeliest answer, which is shown when it is complete. "
            "Temperature, top k, top p and seed have no effect then."
        )
        beams = gr.Slider(1, limits.MAX_BEAMS, value=1, step=1, label="Beams", info=info)
        system = gr.Textbox(
            label="System message",
            info="Sent before the conversation. Leave it empty for the embedded world's runs: they "
            "were trained without one.",
            lines=1,
            max_lines=6,
            max_length=MAX_PROMPT_CHARACTERS,
        )
    return [temperature, tokens, top_k, top_p, beams, system, seed]


def _answers() -> tuple[list[Any], list[gr.Button]]:
    """The parts of each column, one column after the other, and their stop buttons."""
    parts: list[Any] = []
    stops: list[gr.Button] = []
    with gr.Row(equal_height=False, elem_classes="answers"):
        for _ in range(MAX_COLUMNS):
            with gr.Column(min_width=280, visible=False) as column:
                answer = gr.Chatbot(
                    label="Answer",
                    height=None,
                    max_height=420,
                    render_markdown=False,  # an answer is plain text, whatever it contains
                    allow_tags=False,
                    buttons=["copy"],
                    feedback_options=None,
                )
                stop = gr.Button("Stop this one", size="sm", visible=False)
                numbers = gr.Textbox(lines=4, max_lines=12, interactive=False)
                info = "Prints the same answer without this page."
                command = gr.Textbox(
                    label="Command", info=info, max_lines=8, interactive=False, buttons=["copy"]
                )
                parts += [column, answer, stop, numbers, command]
                stops.append(stop)
    return parts, stops
