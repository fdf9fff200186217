"""Several checkpoints answer the same thing side by side."""

import html
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from toolkit.arena import request as limits
from toolkit.arena.choices import checkpoint_choices, reward_choices, reward_id
from toolkit.arena.request import MAX_COLUMNS, MAX_PROMPT_CHARACTERS
from toolkit.arena.wording import INTRODUCTION, LEGEND, NO_RUNS, measures
from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    from toolkit.arena.workbench import Answer, Workbench


def compare_tab(page: gr.Blocks, workbench: "Workbench") -> None:
    """The tab's contents. What it shows of the disk or of a model is escaped or plain text."""
    gr.Markdown(INTRODUCTION)
    no_runs = gr.Markdown(NO_RUNS, visible=workbench.catalog.empty)
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            prompt, ask = _prompt(workbench.examples())
        with gr.Column(scale=2, min_width=320):
            checkpoints, reward, look = _models(workbench)
            sampling = _sampling()
    columns = _answers()
    with gr.Accordion("What the numbers mean", open=False):
        gr.Markdown(LEGEND)
    broken_box, broken = _broken()

    def compare(*asked: Any) -> Iterator[list[Any]]:
        yield from _compare(workbench, *asked)

    def refresh(chosen: list[str] | None, scorer: str | None) -> list[Any]:
        catalog = workbench.refresh()
        models = checkpoint_choices(catalog, chosen or [])
        rewards = reward_choices(catalog, scorer)
        title = f"Runs that cannot be used ({len(catalog.broken)})"
        return [
            gr.update(visible=catalog.empty),
            gr.update(choices=models.choices, value=models.chosen),
            gr.update(choices=rewards.choices, value=rewards.chosen[0]),
            gr.update(visible=bool(catalog.broken), label=title),
            "\n".join(f"{name}: {reason}" for name, reason in catalog.broken),
        ]

    gr.on(
        [ask.click, prompt.submit],
        compare,
        [prompt, checkpoints, reward, *sampling],
        columns,
        api_name="compare",
        concurrency_limit=1,
        show_progress="minimal",
    )
    lists = [no_runs, checkpoints, reward, broken_box, broken]
    look.click(refresh, [checkpoints, reward], lists, api_name="refresh")
    page.load(refresh, [checkpoints, reward], lists, api_visibility="private")


def _prompt(examples: list[str]) -> tuple[gr.Textbox, gr.Button]:
    prompt = gr.Textbox(
        label="Prompt",
        info="What all of them are asked. Shift+Enter asks, too.",
        lines=3,
        max_lines=12,
        max_length=MAX_PROMPT_CHARACTERS,
        placeholder="Ask something…",
    )
    ask = gr.Button("Ask", variant="primary")
    if examples:
        gr.Examples([[e] for e in examples], prompt, label="Questions to try")
    return prompt, ask


def _models(workbench: "Workbench") -> tuple[gr.Dropdown, gr.Dropdown, gr.Button]:
    models, rewards = checkpoint_choices(workbench.catalog), reward_choices(workbench.catalog)
    checkpoints = gr.Dropdown(
        models.choices,
        value=models.chosen,
        multiselect=True,
        max_choices=MAX_COLUMNS,
        label="Checkpoints",
        info=f"Two or more, up to {MAX_COLUMNS}. The base is the model before any training.",
    )
    reward = gr.Dropdown(
        rewards.choices,
        value=rewards.chosen[0],
        label="Reward model",
        info="Gives each answer its score. Made by recipes/reward.py.",
    )
    return checkpoints, reward, gr.Button("Look for runs again", size="sm")


def _sampling() -> tuple[gr.Slider, gr.Slider, gr.Number]:
    with gr.Accordion("Sampling", open=False):
        temperature = gr.Slider(
            0,
            limits.MAX_TEMPERATURE,
            value=limits.DEFAULT_TEMPERATURE,
            step=0.05,
            label="Temperature",
            info="0 always takes the likeliest token; higher is more varied.",
        )
        tokens = gr.Slider(
            1,
            limits.MAX_NEW_TOKENS,
            value=limits.DEFAULT_NEW_TOKENS,
            step=1,
            label="Max new tokens",
            info="Where an answer is cut off if it does not end by itself.",
        )
        seed = gr.Number(
            0,
            precision=0,
            minimum=0,
            maximum=limits.MAX_SEED,
            label="Seed",
            info="Where chance starts, alike in all columns. The same seed repeats an answer.",
        )
    return temperature, tokens, seed


def _answers() -> list[Any]:
    """Column, answer and measures of each checkpoint, one after the other."""
    parts: list[Any] = []
    with gr.Row(equal_height=False):
        for _ in range(MAX_COLUMNS):
            with gr.Column(min_width=280, visible=False) as column:
                answer = gr.Textbox(
                    label="Answer",
                    lines=5,
                    max_lines=24,
                    interactive=False,
                    buttons=["copy"],
                )
                numbers = gr.Textbox(lines=4, max_lines=9, interactive=False)
                parts += [column, answer, numbers]
    return parts


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


def _compare(
    workbench: "Workbench",
    prompt: Any,
    checkpoints: Any,
    reward: Any,
    temperature: Any,
    tokens: Any,
    seed: Any,
) -> Iterator[list[Any]]:
    """Updates of all columns, again after each answer."""
    try:
        answers = workbench.compare(
            prompt,
            checkpoints,
            reward=reward_id(reward),
            temperature=temperature,
            max_new_tokens=tokens,
            seed=seed,
        )
    except ToolkitError as error:  # the toast is HTML
        raise gr.Error(html.escape(str(error)), print_exception=False) from error
    shown: list[Answer] = []
    for answer in answers:
        shown.append(answer)
        unused = [None] * (MAX_COLUMNS - len(shown))
        # made again each time: Gradio empties the updates that it is given
        yield [part for column in [*shown, *unused] for part in _column(column)]


def _column(answer: "Answer | None") -> list[Any]:
    """Updates of one column's three parts."""
    if answer is None:
        return [gr.update(visible=False), gr.update(value=""), gr.update(value="")]
    failed = answer.problem is not None
    return [
        gr.update(visible=True),
        gr.update(
            value=answer.text,
            label=answer.name,
            placeholder="(no answer)" if failed else "(an empty answer)",
        ),
        gr.update(value=measures(answer), label="Why there is none" if failed else "Numbers"),
    ]
