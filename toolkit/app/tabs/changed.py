"""One answer token by token: what training changed, and what else could have been said."""

import html
from typing import TYPE_CHECKING, Any

import gradio as gr

from toolkit.app.answering.changes import ENTROPY, LOG_RATIO, VALUE, Changes, scaled, text_diff
from toolkit.app.answering.chat import Chat
from toolkit.app.answering.request import MAX_PROMPT_CHARACTERS
from toolkit.app.choices import checkpoint_choices
from toolkit.app.texts import CHANGES, NO_ANSWER_YET, TOKENS_LEGEND, scale
from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    from toolkit.app.workbench import Workbench

COLOURS = [
    ("against the reference (log π/π_ref)", LOG_RATIO),
    ("value V(s)", VALUE),
    ("entropy", ENTROPY),
]
TOKENS = [
    "#",
    "Token",
    "log π",
    "log π/π_ref",
    "V(s)",
    "Entropy",
    "Policy's likeliest",
    "Reference's likeliest",
]
# a wide page is filled, a narrow one scrolls the table
TOKEN_WIDTHS = [
    f"max({pixels}px, {share}%)"
    for pixels, share in zip(
        (48, 110, 90, 120, 90, 100, 150, 170), (5, 15, 10, 14, 8, 11, 18, 19), strict=True
    )
]
PLACE = ["Policy", "p", "Reference", "p_ref"]


def changed_tab(tab: gr.Tab, workbench: "Workbench", chat: gr.State) -> None:
    """The tab's contents; `chat` is what Compare was asked."""
    gr.Markdown(CHANGES)
    empty = gr.Markdown(NO_ANSWER_YET)
    found = gr.State(None)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            checkpoint, prompt, answer, colour, look = _question(workbench)
        with gr.Column(scale=3, min_width=300):
            coloured, said, place = _tokens()
    table = gr.Dataframe(
        headers=TOKENS,
        datatype="str",
        interactive=False,
        wrap=True,
        max_height=360,
        label="All tokens",
        column_widths=TOKEN_WIDTHS,
        elem_classes="tokens",
    )
    with gr.Accordion("What the numbers mean", open=False):
        gr.Markdown(TOKENS_LEGEND)
    other, diff, diff_note = _difference()

    def chosen(name: Any) -> str:
        """The checkpoint; before the page has its list, the one that will stand there."""
        return str(checkpoint_choices(workbench.catalog).chosen[-1] if name is None else name)

    def examine(chat: Chat, name: Any, asked: Any, text: Any, what: Any) -> list[Any]:
        name = chosen(name)
        messages, ids = _known(chat, name, asked, text)
        try:
            changes = workbench.changes(name, messages, text, ids=ids)
        except ToolkitError as error:  # the toast is HTML
            raise gr.Error(html.escape(str(error)), print_exception=False) from error
        first = _most_changed(changes)
        return [
            changes,
            gr.update(visible=False),
            *_colours(changes, what),
            _place(changes, first),
            _rows(changes),
        ]

    def recolour(changes: Changes | None, what: Any) -> list[Any]:
        return [gr.skip(), gr.skip()] if changes is None else _colours(changes, what)

    def select(changes: Changes | None, event: gr.SelectData) -> Any:
        number = event.index if isinstance(event.index, int) else 0
        return gr.skip() if changes is None else _place(changes, number)

    def take(chat: Chat, name: Any) -> list[Any]:
        """The last turn's answer of a checkpoint, where it has one."""
        catalog = workbench.catalog
        answers = chat.turns[-1].answers if chat.turns else {}
        models = checkpoint_choices(catalog)
        known = [i for _, i in models.choices]
        last = next(reversed(answers), models.chosen[-1])  # the one trained furthest
        shown = name if name in (answers or known) else last
        said = answers.get(shown)
        return [
            gr.update(choices=models.choices, value=shown if shown in known else models.chosen[-1]),
            gr.update(choices=models.choices, value=_beside(shown, list(answers), known)),
            chat.last_prompt if said else gr.skip(),
            said.text if said else gr.skip(),
            gr.update(visible=not answers),
        ]

    def take_one(chat: Chat, name: Any) -> list[Any]:
        said = chat.turns[-1].answers.get(name) if chat.turns else None
        return [chat.last_prompt, said.text] if said else [gr.skip(), gr.skip()]

    def compare_texts(chat: Chat, name: Any, asked: Any, text: Any, second: Any) -> list[Any]:
        return _diff(workbench, chat, chosen(name), str(asked), str(text), str(second))

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    inputs = [chat, checkpoint, prompt, answer]
    outputs = [found, empty, coloured, said, place, table]
    steady: dict[str, Any] = quiet | {"show_progress": "minimal", "concurrency_limit": 4}
    look.click(examine, [*inputs, colour], outputs, **steady).success(
        compare_texts, [*inputs, other], [diff, diff_note], **steady
    )
    colour.change(recolour, [found, colour], [coloured, said], **quiet)
    coloured.select(select, found, [place], **quiet)
    checkpoint.input(take_one, [chat, checkpoint], [prompt, answer], **quiet)
    other.input(compare_texts, [*inputs, other], [diff, diff_note], **steady)
    tab.select(take, [chat, checkpoint], [checkpoint, other, prompt, answer, empty], **quiet)


def _question(workbench: "Workbench") -> tuple[Any, ...]:
    models = checkpoint_choices(workbench.catalog)
    checkpoint = gr.Dropdown(
        models.choices,
        value=models.chosen[-1] if workbench.ready else None,
        label="Checkpoint",
        info="Whose answer it is; it is read against the SFT model that its training began with.",
    )
    prompt = gr.Textbox(
        label="What was asked",
        info="Filled in from Compare's last turn; earlier turns are taken along.",
        lines=2,
        max_lines=6,
        max_length=MAX_PROMPT_CHARACTERS,
    )
    answer = gr.Textbox(
        label="Answer to look at",
        info="As the checkpoint gave it, or any text: see how likely the checkpoint finds it.",
        lines=3,
        max_lines=10,
        max_length=MAX_PROMPT_CHARACTERS,
    )
    colour = gr.Radio(
        COLOURS,
        value=LOG_RATIO,
        label="Colour tokens by",
        info="The scale is printed beside the coloured text.",
    )
    return checkpoint, prompt, answer, colour, gr.Button("Look", variant="primary")


def _tokens() -> tuple[Any, ...]:
    coloured = gr.HighlightedText(
        label="Tokens (click one)",
        show_legend=False,
        show_inline_category=False,
        combine_adjacent=False,
        elem_classes="coloured",
    )
    said = gr.Textbox(
        label="Scale", lines=2, max_lines=10, interactive=False, placeholder="Press Look first."
    )
    place = gr.Dataframe(
        headers=PLACE,
        datatype="str",
        interactive=False,
        label="What else could stand there",
        elem_classes="tokens",
    )
    return coloured, said, place


def _difference() -> tuple[Any, ...]:
    with gr.Accordion("Difference between two checkpoints' answers", open=True):
        other = gr.Dropdown(
            [],
            label="Compare with",
            info="Another checkpoint that answered the same turn on Compare.",
        )
        diff = gr.HighlightedText(
            label="Both answers in one",
            show_legend=True,
            combine_adjacent=True,
            color_map={"only here": "green", "only there": "red"},
            elem_classes="difference",
        )
        note = gr.Textbox(label="Whose words", interactive=False, lines=1, max_lines=3)
    return other, diff, note


def _known(chat: Chat, name: Any, asked: Any, text: Any) -> tuple[object, tuple[int, ...]]:
    """The conversation before an answer, and its tokens where Compare has just shown it."""
    if not chat.turns or asked != chat.last_prompt:
        return asked, ()
    said = chat.turns[-1].answers.get(name)
    same = said is not None and said.text == text
    return chat.conversation(str(name)), said.ids if said is not None and same else ()


def _beside(chosen: Any, answered: list[str], known: list[str]) -> str | None:
    """Somebody to compare with: another that answered, else anybody else."""
    return next((i for i in [*answered, *known] if i != chosen and i in known), None)


def _colours(changes: Changes, what: Any) -> list[Any]:
    """Coloured tokens and the scale's words."""
    kind = what if what in (LOG_RATIO, VALUE, ENTROPY) else LOG_RATIO
    shares, largest = scaled(changes.numbers(kind))
    shown = [(_visible(t.text), share) for t, share in zip(changes.tokens, shares, strict=True)]
    return [gr.update(value=shown), scale(changes, kind, largest)]


def _place(changes: Changes, number: int) -> Any:
    """The table of one token's alternatives."""
    if not 0 <= number < len(changes.tokens):
        return gr.skip()
    token = changes.tokens[number]
    rows = []
    for rank in range(max(len(token.policy), len(token.reference))):
        sides = []
        for side in (token.policy, token.reference):
            there = side[rank] if rank < len(side) else None
            sides += [_visible(there.text), f"{there.probability:.3f}"] if there else ["", ""]
        rows.append(sides)
    title = f"What else could stand at {number + 1}, in place of {_visible(token.text)!r}"
    return gr.update(value=rows, label=title)


def _rows(changes: Changes) -> Any:
    rows = []
    for number, t in enumerate(changes.tokens, start=1):
        numbers = [_short(n) for n in (t.logprob, t.log_ratio, t.value, t.entropy)]
        firsts = [
            f"{_visible(side[0].text)} {side[0].probability:.2f}" if side else ""
            for side in (t.policy, t.reference)
        ]
        rows.append([str(number), _visible(t.text), *numbers, *firsts])
    return gr.update(value=rows)


def _most_changed(changes: Changes) -> int:
    ratios = [abs(n or 0.0) for n in changes.numbers(LOG_RATIO)]
    return ratios.index(max(ratios)) if ratios else 0


def _diff(
    workbench: "Workbench", chat: Chat, name: str, asked: str, text: str, second: str
) -> list[Any]:
    """The diff and whose words are whose, or why there is none."""
    answers = chat.turns[-1].answers if chat.turns and asked == chat.last_prompt else {}
    there = answers.get(second)
    names = {e.id: e.name for e in workbench.catalog.checkpoints.values()}
    if second not in names:
        return [[], "There is nobody to compare with: ask two checkpoints on Compare."]
    if there is None or there.problem is not None:
        asked_too = "ask it on Compare, with this one"
        return [[], f"{names[second]} has no answer to this prompt: {asked_too}"]
    words = {None: None, "-": "only here", "+": "only there"}
    shown = [(part, words[kind]) for part, kind in text_diff(text, there.text)]
    return [shown, f"only here: {names.get(name, name)}; only there: {there.name}"]


def _short(number: float | None) -> str:
    return "" if number is None else f"{round(number, 2) + 0.0:.2f}"


def _visible(text: str) -> str:
    """A token with its line breaks to be seen, and blanks where it has nothing else."""
    shown = text.replace("\n", "↵").replace("\t", "⇥")
    return shown if shown.strip(" ") else shown.replace(" ", "␣")
