"""The tab Compare: a chat with several checkpoints side by side."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import gradio as gr

from toolkit.app.answering import request as limits
from toolkit.app.answering.chat import Chat
from toolkit.app.answering.request import MAX_COLUMNS
from toolkit.app.catalog import Catalog
from toolkit.app.choices import SHARED_SCAN_S, checkpoint_choices, example_prompts, reward_choices
from toolkit.app.conversations.store import Conversations
from toolkit.app.judgements.store import Store
from toolkit.app.tabs.compare_columns import build_columns
from toolkit.app.tabs.compare_events import (
    CompareEvents,
    Visit,
    new_chat,
    next_turn,
    repeat_turn,
    unsent,
)
from toolkit.app.tabs.compare_history import HistoryEvents
from toolkit.app.tabs.parts import errors_as_toast, temperature_and_length
from toolkit.app.tabs.run_menus import BASE_MENU, REWARD_MENU, RUN_MENU, base_update
from toolkit.app.texts import LOADING, NO_RUNS, PROMPT_KEYS, markdown
from toolkit.app.web.scripts import PANEL, PANEL_BUTTON, PROMPT, QUESTION
from toolkit.world import BASE_NAME

if TYPE_CHECKING:
    from toolkit.app.loading import LoadingWorkbench
    from toolkit.app.workbench import Workbench

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


def compare_tab(
    page: gr.Blocks, workbench: "Workbench", conversations: Conversations, judgements: Store
) -> gr.State:
    """Build the tab. Text from the disk or from a model is escaped or shown as plain text.

    Returns: the visitor's `Chat`, for other tabs.
    """
    chat, visit, sent = gr.State(Chat()), gr.State(Visit()), gr.State("")
    # the key only hides the content from a glance: the browser's storage belongs to the visitor
    browser = gr.BrowserState(None, storage_key="toolkit-compare", secret="toolkit")
    events = CompareEvents(workbench, conversations)
    history = HistoryEvents(events, judgements)

    with gr.Row(equal_height=False, elem_classes="compare"):
        with gr.Column(elem_id=PANEL, scale=0, min_width=0):
            new, titles, delete = _conversations()
            base, checkpoints, reward, reload = _models(workbench)
            settings = _sampling()
            rendered = gr.Checkbox(
                False, label="Show Markdown", info="Links, images and HTML are shown as text."
            )
            broken_box, broken = _explanations()
        with gr.Column(elem_classes="chat", scale=1, min_width=0):
            no_runs = gr.Markdown(NO_RUNS, visible=workbench.ready and workbench.catalog.empty)
            welcome, examples = _welcome(workbench.examples())
            columns, stops, votes = build_columns()
            with gr.Row(elem_classes="chat-actions"):
                gr.Button("Settings", size="sm", min_width=0, elem_id=PANEL_BUTTON)
                with gr.Row(visible=False, elem_classes="chat-actions") as actions:
                    repeat = gr.Button("Regenerate", size="sm", min_width=0)
                    edit = gr.Button("Edit last", size="sm", min_width=0)
                equal = gr.Button("All equal", size="sm", min_width=0, visible=False)
                undo = gr.Button("Undo change", size="sm", min_width=0, visible=False)
            prompt = _prompt()
            use = gr.Markdown(PROMPT_KEYS, elem_id="compare-use", elem_classes="note")
            ask_new = gr.Button(visible=False)  # for API clients

    inputs = [chat, visit, prompt, checkpoints, reward, *settings]
    outputs = [chat, prompt, titles, delete, welcome, actions, equal, undo, *columns]
    stream: dict[str, Any] = {
        "concurrency_limit": None,  # the engine has a shorter queue with an error message
        "show_progress": "hidden",
    }
    ask_first, ask_next = events.answering(new_chat), events.answering(next_turn, wait=True)
    ask_new.click(ask_first, inputs, [sent, *outputs], api_name="compare", **stream)
    # a script of the page clears the prompt when it is sent; after an error it comes back
    prompt.submit(ask_next, inputs, [sent, *outputs], api_name="follow_up", **stream).failure(
        unsent, [sent, prompt], prompt, **PRIVATE
    )
    _, tokens, *_, system, seed = settings
    ask_again = events.answering(repeat_turn)
    repeat.click(events.new_seed, [chat, seed], seed, **PRIVATE).success(
        ask_again, inputs, [sent, *outputs], api_name="regenerate", **stream
    )
    at_once: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "queue": False}
    prompt.stop(events.stop, None, None, api_name="stop", **at_once)
    for number, (stop, vote) in enumerate(zip(stops, votes, strict=True)):
        stop.click(events.stop_column(number), None, None, api_visibility="private", **at_once)
        vote.click(lambda chat, n=number: history.vote(chat, n), chat, None, **PRIVATE)
    equal.click(lambda chat: history.vote(chat, None), chat, None, **PRIVATE)
    for button, change in ((edit, history.edit), (undo, history.undo), (delete, history.delete)):
        button.click(change, [chat, visit], outputs, **PRIVATE)
    new.click(history.new, [chat, visit], outputs, **PRIVATE)
    titles.input(history.open, [visit, titles], [*outputs, checkpoints], **PRIVATE)
    rendered.input(
        history.show_markdown,
        [chat, visit, browser, rendered],
        [browser, visit, *outputs],
        **PRIVATE,
    )
    gr.on(
        [prompt.change, checkpoints.change, system.change, tokens.change],
        events.context_use,
        [chat, prompt, checkpoints, system, tokens],
        use,
        trigger_mode="always_last",
        **PRIVATE,
    )

    def load_lists(chosen: list[str] | None, scorer: str | None) -> Iterator[list[Any]]:
        if not workbench.ready:
            yield [gr.update(value=LOADING, visible=True), *(gr.skip() for _ in lists[1:])]
        yield lists_of(workbench.refresh(max_age_s=SHARED_SCAN_S), chosen, scorer)

    def reload_lists(chosen: list[str] | None, scorer: str | None) -> list[Any]:
        return lists_of(workbench.refresh(), chosen, scorer)

    def lists_of(catalog: Catalog, chosen: list[str] | None, scorer: str | None) -> list[Any]:
        models = checkpoint_choices(catalog, chosen or [])
        rewards = reward_choices(catalog, scorer)
        unusable = catalog.unusable
        title = f"Runs that cannot be used here ({len(unusable)})"
        return [
            gr.update(value=NO_RUNS, visible=catalog.empty),
            gr.update(choices=models.choices, value=models.chosen),
            gr.update(choices=rewards.choices, value=rewards.chosen[0]),
            gr.update(visible=bool(unusable), label=title),
            "\n".join(f"{name}: {reason}" for name, reason in unusable.items()),
            base_update(catalog),
            gr.update(visible=bool(workbench.examples())),
        ]

    def switch(label: str) -> Iterator[list[Any]]:
        yield [gr.update(value=LOADING, visible=True), *(gr.skip() for _ in lists[1:])]
        with errors_as_toast(workbench.runs):
            cast("LoadingWorkbench", workbench).switch(label)
        yield lists_of(workbench.catalog, [], None)

    lists = [no_runs, checkpoints, reward, broken_box, broken, base, examples]
    chosen = [checkpoints, reward]
    # `input` occurs twice for one choice, the second time when the menu loses the focus
    changed = base.select(switch, base, lists, concurrency_limit=1, **PRIVATE)
    changed.success(history.new, [chat, visit], outputs, **PRIVATE)
    changed.failure(reload_lists, chosen, lists, **PRIVATE)
    reload.click(reload_lists, chosen, lists, api_name="refresh")
    page.load(history.identify, browser, [browser, visit, rendered], queue=False, **PRIVATE)
    page.load(load_lists, chosen, lists, concurrency_limit=None, api_visibility="private").then(
        history.restore, [chat, visit], [*outputs, checkpoints], **PRIVATE
    )
    page.unload(events.leave)
    return chat


def _conversations() -> tuple[gr.Button, gr.Radio, gr.Button]:
    new = gr.Button("New chat", variant="primary", size="md", elem_id="compare-new")
    with gr.Accordion("Conversations", open=True):
        titles = gr.Radio(
            [],
            label="Conversations",
            show_label=False,
            container=False,
            visible=False,
            elem_classes="conversations",
        )
        delete = gr.Button("Delete this conversation", size="sm", visible=False)
    return new, titles, delete


def _models(workbench: "Workbench") -> tuple[gr.Dropdown, gr.Dropdown, gr.Dropdown, gr.Button]:
    info = (
        "The model that the checkpoints adapt. A change stops all answers, also of other visitors."
    )
    base = gr.Dropdown([], label="Base", info=info, visible=False, elem_classes=BASE_MENU)
    models, rewards = checkpoint_choices(workbench.catalog), reward_choices(workbench.catalog)
    checkpoints = gr.Dropdown(
        models.choices,
        value=models.chosen if workbench.ready else [],
        multiselect=True,
        max_choices=MAX_COLUMNS,
        label="Checkpoints",
        info=f"Up to {MAX_COLUMNS}. The base is the model before fine-tuning.",
        elem_classes=RUN_MENU,
    )
    scorer = rewards.chosen[0] if workbench.ready else None
    info = "Scores each answer. `toolkit reward` trains one."
    reward = gr.Dropdown(
        rewards.choices, value=scorer, label="Reward model", info=info, elem_classes=REWARD_MENU
    )
    return base, checkpoints, reward, gr.Button("Reload runs", size="sm")


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
        )
    return [temperature, tokens, top_k, top_p, beams, system, seed]


def _explanations() -> tuple[gr.Accordion, gr.Textbox]:
    """The meaning of the numbers, and the list of broken runs."""
    with gr.Accordion("What the numbers mean", open=False):
        gr.Markdown(markdown("compare_numbers"))
    with gr.Accordion(visible=False, open=False) as broken_box:
        info = "The reason for each. The other runs are not affected."
        broken = gr.Textbox(
            label="Broken runs", info=info, lines=1, max_lines=30, interactive=False
        )
    return broken_box, broken


def _welcome(examples: list[str]) -> tuple[gr.Column, gr.Row]:
    """The content of an empty chat, with the questions for the embedded world."""
    with gr.Column(elem_classes="welcome") as welcome:
        gr.Markdown(markdown("compare"))
        with gr.Row(elem_classes="questions", visible=bool(examples)) as questions:
            # a script of the page fills in the prompt
            for example in examples or example_prompts(BASE_NAME):
                gr.Button(example, size="sm", min_width=0, scale=0, elem_classes=QUESTION)
    return welcome, questions


def _prompt() -> gr.Textbox:
    """One line that grows: so Enter sends and Shift+Enter breaks the line."""
    return gr.Textbox(
        label="Prompt",
        show_label=False,
        container=False,
        lines=1,
        max_lines=8,
        placeholder="Ask the checkpoints…",
        submit_btn=True,
        elem_id=PROMPT,
        autofocus=True,
    )
