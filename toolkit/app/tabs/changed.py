"""The tab What changed: one answer token by token, and the difference between two answers."""

from typing import TYPE_CHECKING, Any

import gradio as gr

from toolkit.app.answering.changes import (
    ENTROPY,
    LOG_RATIO,
    MAX_WORDS,
    VALUE,
    Changes,
    scaled,
    text_diff,
)
from toolkit.app.answering.chat import Chat
from toolkit.app.answering.request import MAX_PROMPT_CHARACTERS
from toolkit.app.choices import checkpoint_choices
from toolkit.app.tabs.parts import column_widths, errors_as_toast, show_token_count
from toolkit.app.tabs.run_menus import RUN_MENU
from toolkit.app.texts import NO_ANSWER_YET, colour_scale, markdown, two_decimals

if TYPE_CHECKING:
    from toolkit.app.workbench import Workbench

COLOURS = [
    ("change from the reference (log π/π_ref)", LOG_RATIO),
    ("value V(s)", VALUE),
    ("entropy", ENTROPY),
]
TOKENS = {  # column -> minimum pixels and share of the width, %
    "#": (48, 5),
    "Token": (110, 15),
    "log π": (90, 10),
    "log π/π_ref": (120, 14),
    "V(s)": (90, 8),
    "Entropy": (100, 11),
    "Policy's likeliest": (150, 18),
    "Reference's likeliest": (170, 19),
}
THIS, OTHER = "only in this answer", "only in the other answer"
ALTERNATIVES = ["Policy", "p", "Reference", "p_ref"]


def changed_tab(tab: gr.Tab, workbench: "Workbench", chat: gr.State) -> None:
    """Build the tab; `chat` is the visitor's conversation on Compare."""
    gr.Markdown(markdown("changed"))
    empty = gr.Markdown(NO_ANSWER_YET)
    current = gr.State(None)  # the `Changes` on the page
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            checkpoint, prompt, answer, colour, analyze = _question(workbench)
        with gr.Column(scale=3, min_width=300):
            coloured, legend, alternatives = _tokens()
    table = gr.Dataframe(
        headers=list(TOKENS),
        datatype="str",
        interactive=False,
        wrap=True,
        max_height=360,
        label="All tokens",
        column_widths=column_widths(TOKENS.values()),
        elem_classes="tokens",
    )
    with gr.Accordion("What the numbers mean", open=False):
        gr.Markdown(markdown("changed_numbers"))
    other, diff, diff_note = _difference()

    def chosen(id: Any) -> str:
        """The checkpoint; the default one if the page has not loaded its list yet."""
        return str(checkpoint_choices(workbench.catalog).chosen[-1] if id is None else id)

    def examine(chat: Chat, id: Any, question: Any, text: Any, kind: Any) -> list[Any]:
        id = chosen(id)
        messages, token_ids = _conversation(chat, id, question, text)
        with errors_as_toast():
            changes = workbench.changes(id, messages, text, ids=token_ids)
        return [
            changes,
            gr.update(visible=False),
            *_coloured(changes, kind),
            _alternatives(changes, _most_changed(changes)),
            gr.update(value=_token_rows(changes)),
        ]

    def recolour(changes: Changes | None, kind: Any) -> list[Any]:
        return [gr.skip(), gr.skip()] if changes is None else _coloured(changes, kind)

    def select(changes: Changes | None, event: gr.SelectData) -> Any:
        number = event.index if isinstance(event.index, int) else 0
        return gr.skip() if changes is None else _alternatives(changes, number)

    def take(chat: Chat, id: Any) -> list[Any]:
        """Fill in a checkpoint's last answer on Compare, if it has one."""
        answers = chat.turns[-1].answers if chat.turns else {}
        models = checkpoint_choices(workbench.catalog)
        known = [i for _, i in models.choices]
        last = next(reversed(answers), models.chosen[-1])  # the last of the list
        selected = id if id in (answers or known) else last
        reply = answers.get(selected)
        value = selected if selected in known else models.chosen[-1]
        second = next((i for i in [*answers, *known] if i != selected and i in known), None)
        return [
            gr.update(choices=models.choices, value=value),
            gr.update(choices=models.choices, value=second),
            chat.last_prompt if reply else gr.skip(),
            reply.text if reply else gr.skip(),
            gr.update(visible=not answers),
        ]

    def streaming(chat: Chat) -> bool:
        return bool(chat.turns) and not chat.turns[-1].answers

    def take_or_wait(chat: Chat, id: Any) -> list[Any]:
        return [*take(chat, id), gr.update(active=streaming(chat))]

    def take_complete(chat: Chat, id: Any) -> list[Any]:
        return [gr.skip() for _ in range(6)] if streaming(chat) else take_or_wait(chat, id)

    def take_one(chat: Chat, id: Any) -> list[Any]:
        reply = chat.turns[-1].answers.get(id) if chat.turns else None
        return [chat.last_prompt, reply.text] if reply else [gr.skip(), gr.skip()]

    def compare_texts(chat: Chat, id: Any, question: Any, text: Any, second: Any) -> list[Any]:
        return _diff(workbench, chat, chosen(id), str(question), str(text), str(second))

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    inputs = [chat, checkpoint, prompt, answer]
    outputs = [current, empty, coloured, legend, alternatives, table]
    slow: dict[str, Any] = quiet | {"show_progress": "minimal", "concurrency_limit": 4}
    analyze.click(examine, [*inputs, colour], outputs, **slow).success(
        compare_texts, [*inputs, other], [diff, diff_note], **slow
    )
    colour.change(recolour, [current, colour], [coloured, legend], **quiet)
    coloured.select(select, current, [alternatives], **quiet)
    checkpoint.input(take_one, [chat, checkpoint], [prompt, answer], **quiet)
    other.input(compare_texts, [*inputs, other], [diff, diff_note], **slow)
    waiting = gr.Timer(1, active=False)  # the tab may be open while the answers stream
    filled = [checkpoint, other, prompt, answer, empty, waiting]
    tab.select(take_or_wait, [chat, checkpoint], filled, **quiet)
    waiting.tick(take_complete, [chat, checkpoint], filled, **quiet)


def _question(workbench: "Workbench") -> tuple[Any, ...]:
    models = checkpoint_choices(workbench.catalog)
    value = models.chosen[-1] if workbench.ready else None
    info = "The policy. Its reference is the SFT model that its training started from."
    checkpoint = gr.Dropdown(
        models.choices, value=value, label="Checkpoint", info=info, elem_classes=RUN_MENU
    )
    info = "Filled in from the last turn on Compare; earlier turns are included."
    prompt = gr.Textbox(label="Prompt", info=info, lines=2, max_lines=6)
    show_token_count(workbench, prompt)
    info = "The checkpoint's own answer or any text: see how likely it is under the checkpoint."
    answer = gr.Textbox(label="Answer to analyze", info=info, lines=3, max_lines=10)
    show_token_count(workbench, answer)
    info = "The scale is shown below the coloured tokens."
    colour = gr.Radio(COLOURS, value=LOG_RATIO, label="Colour tokens by", info=info)
    return checkpoint, prompt, answer, colour, gr.Button("Analyze", variant="primary")


def _tokens() -> tuple[Any, ...]:
    coloured = gr.HighlightedText(
        label="Tokens (click one)",
        show_legend=False,
        show_inline_category=False,
        combine_adjacent=False,
        elem_classes="coloured",
    )
    legend = gr.Textbox(
        label="Scale", lines=2, max_lines=10, interactive=False, placeholder="Press Analyze first."
    )
    label = "Likeliest tokens at this position"
    alternatives = gr.Dataframe(
        headers=ALTERNATIVES, datatype="str", interactive=False, label=label, elem_classes="tokens"
    )
    return coloured, legend, alternatives


def _difference() -> tuple[Any, ...]:
    with gr.Accordion("Difference between two checkpoints' answers", open=True):
        info = "Another checkpoint that answered the same turn on Compare."
        other = gr.Dropdown([], label="Compare with", info=info, elem_classes=RUN_MENU)
        diff = gr.HighlightedText(
            label="Both answers in one text",
            show_legend=True,
            combine_adjacent=True,
            color_map={THIS: "green", OTHER: "red"},
            elem_classes="difference",
        )
        note = gr.Textbox(label="Colours", interactive=False, lines=1, max_lines=3)
    return other, diff, note


def _conversation(chat: Chat, id: str, question: Any, text: Any) -> tuple[object, tuple[int, ...]]:
    """The conversation before an answer, and its token ids; no ids if Compare does not show it."""
    if not chat.turns or question != chat.last_prompt:
        return question, ()
    reply = chat.turns[-1].answers.get(id)
    return chat.conversation(id), reply.ids if reply is not None and reply.text == text else ()


def _coloured(changes: Changes, kind: Any) -> list[Any]:
    """The coloured tokens and the text of the scale."""
    kind = kind if kind in (LOG_RATIO, VALUE, ENTROPY) else LOG_RATIO
    shares, largest = scaled(changes.numbers(kind))
    tokens = [(_visible(t.text), share) for t, share in zip(changes.tokens, shares, strict=True)]
    return [gr.update(value=tokens), colour_scale(changes, kind, largest)]


def _alternatives(changes: Changes, number: int) -> Any:
    """The table of the likeliest tokens at one position."""
    if not 0 <= number < len(changes.tokens):
        return gr.skip()
    token = changes.tokens[number]
    rows = []
    for rank in range(max(len(token.policy), len(token.reference))):
        row = []
        for side in (token.policy, token.reference):
            choice = side[rank] if rank < len(side) else None
            row += [_visible(choice.text), f"{choice.probability:.3f}"] if choice else ["", ""]
        rows.append(row)
    title = (
        f"Likeliest tokens at position {number + 1}, where the answer has {_visible(token.text)!r}"
    )
    return gr.update(value=rows, label=title)


def _token_rows(changes: Changes) -> list[list[str]]:
    rows = []
    for number, t in enumerate(changes.tokens, start=1):
        numbers = (t.logprob, t.log_ratio, t.value, t.entropy)
        cells = ["" if n is None else two_decimals(n) for n in numbers]
        likeliest = [
            f"{_visible(side[0].text)} {side[0].probability:.2f}" if side else ""
            for side in (t.policy, t.reference)
        ]
        rows.append([str(number), _visible(t.text), *cells, *likeliest])
    return rows


def _most_changed(changes: Changes) -> int:
    ratios = [abs(n or 0.0) for n in changes.numbers(LOG_RATIO)]
    return ratios.index(max(ratios)) if ratios else 0


def _diff(
    workbench: "Workbench", chat: Chat, id: str, question: str, text: str, second: str
) -> list[Any]:
    """The diff and its legend, or an empty diff and the reason."""
    answers = chat.turns[-1].answers if chat.turns and question == chat.last_prompt else {}
    reply = answers.get(second)
    names = {e.id: e.name for e in workbench.catalog.checkpoints.values()}
    if second not in names:
        return [[], "No second checkpoint: ask two checkpoints on Compare."]
    if reply is None or reply.problem is not None:
        fix = "ask it on Compare, together with this one"
        return [[], f"{names[second]} has no answer to this prompt: {fix}."]
    if len(text) > MAX_PROMPT_CHARACTERS:
        most = f"at most {MAX_PROMPT_CHARACTERS:,} are compared"
        return [[], f"The answer has {len(text):,} characters; {most}. Shorten it."]
    labels = {None: None, "-": THIS, "+": OTHER}
    parts, cut = text_diff(text, reply.text)
    note = f"Green: only in the answer of {names.get(id, id)}. Red: only in that of {reply.name}."
    note += f" Only the first {MAX_WORDS:,} words of each answer are compared." if cut else ""
    return [[(part, labels[kind]) for part, kind in parts], note]


def _visible(text: str) -> str:
    """A token with visible line breaks and tabs; blanks are shown if it has nothing else."""
    visible = text.replace("\n", "↵").replace("\t", "⇥")
    return visible if visible.strip(" ") else visible.replace(" ", "␣")
