"""The list of judgements on the tab Leaderboard: review, edit and delete."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr

from toolkit.app.judgements.judgement import (
    BATTLE,
    VERDICT_LABELS,
    Judgement,
    complete_judgement,
    order_text,
    parse_order,
)
from toolkit.app.tabs.parts import errors_as_toast, labeler_fields, status_box
from toolkit.errors import ConfigError

if TYPE_CHECKING:
    from toolkit.app.judgements.store import Store

MAX_LISTED = 100
COLUMNS = ["Number", "Time (UTC)", "Judgement", "Checkpoints", "Prompt", "Labeler", "Reason"]
WIDTHS = ["80px", "190px", "150px", "260px", "300px", "120px", "240px"]
NOTHING = "Choose a judgement."
Change = tuple[Judgement, Judgement | None]  # before and after


def judgement_list(tab: gr.Tab, store: "Store", refresh_board: Callable[[Any], Any]) -> None:
    """Build the list; `refresh_board` connects an event that makes the ratings follow a change."""
    root = store.path.parent
    with gr.Accordion("Judgements: review, edit, delete", open=False):
        gr.Markdown(
            f"The latest {MAX_LISTED} judgements, newest first. Ratings and exports follow a change. "
            "The judgement before the change stays in the table `changes` of the SQLite file."
        )
        table = gr.Dataframe(
            headers=COLUMNS,
            datatype="str",
            interactive=False,
            wrap=True,
            max_height=360,
            column_widths=WIDTHS,
            label="Judgements, newest first",
            elem_classes="ratings",
        )
        info = "The numbers of the list. Shows the answers, and fills in the fields below."
        chosen = gr.Dropdown([], label="Judgement to edit or delete", info=info)
        answers = gr.Textbox(
            label="Prompt and answers",
            lines=4,
            max_lines=24,
            interactive=False,
            placeholder=NOTHING,
        )
        with gr.Row():
            info = "Of a battle."
            verdicts = [(label, verdict) for verdict, label in VERDICT_LABELS.items()]
            verdict = gr.Radio(verdicts, label="Verdict", info=info, visible=False)
            info = "Of a ranking, such as 3 > 1 = 2 > 4; = is a tie."
            order = gr.Textbox(label="Corrected order", info=info, visible=False)
        reason, labeler = labeler_fields()
        with gr.Row():
            save = gr.Button("Save the change", variant="primary")
            delete = gr.Button("Delete the judgement", variant="stop")
            undo = gr.Button("Undo the last change", interactive=False)
        status = status_box(NOTHING)
    listed = gr.State({})  # number -> `Judgement`; ids are not sent to the page
    last: gr.State = gr.State(None)  # the last `Change` of this page

    def update(number: Any) -> list[Any]:
        """The judgements by number, the list, and the menu, in which `number` stays selected."""
        with errors_as_toast(root):
            rows = {str(number): j for number, j in store.newest(MAX_LISTED).items()}
        number = number if number in rows else None
        choices = [(_label(n, j), n) for n, j in rows.items()]
        menu = gr.update(choices=choices, value=number)
        return [rows, gr.update(value=[_row(n, j) for n, j in rows.items()]), menu]

    def show(rows: dict[str, Judgement], number: Any) -> list[Any]:
        judgement = rows.get(str(number))
        if judgement is None:
            hidden = [gr.update(visible=False) for _ in range(2)]
            return ["", *hidden, "", "", NOTHING]
        battle = judgement.kind == BATTLE
        return [
            _answers(judgement),
            gr.update(visible=battle, value=judgement.verdict),
            gr.update(visible=not battle, value=order_text(judgement.ranks or ())),
            judgement.reason,
            judgement.labeler,
            f"Number {number} is chosen.",
        ]

    def chosen_of(rows: dict[str, Judgement], number: Any) -> Judgement:
        judgement = rows.get(str(number))
        if judgement is None:
            raise ConfigError("choose a judgement first")
        return judgement

    def store_change(
        rows: Any, number: Any, verdict: Any, order: Any, why: Any, name: Any
    ) -> list[Any]:
        with errors_as_toast(root):
            before = chosen_of(rows, number)
            ranks = before.ranks and parse_order(order, len(before.replies))
            after = complete_judgement(
                before,
                time=before.time,
                verdict=verdict,
                ranks=ranks,
                likert=before.likert,
                flags=before.flags,
                reason=why,
                labeler=name,
            )
            store.replace(before, after)
        return changed((before, after), f"Number {number} is changed.")

    def remove(rows: Any, number: Any) -> list[Any]:
        with errors_as_toast(root):
            before = chosen_of(rows, number)
            store.replace(before, None)
        return changed((before, None), f"Number {number} is deleted.")

    def undo_change(change: Change | None) -> list[Any]:
        with errors_as_toast(root):
            if change is None:
                raise ConfigError("there is no change to undo")
            before, after = change
            if after is None:
                store.add(before)
            else:
                store.replace(after, before)
        return changed(None, "The last change is undone.")

    def changed(change: Change | None, message: str) -> list[Any]:
        return [change, gr.update(interactive=change is not None), message]

    fields = [answers, verdict, order, reason, labeler]
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    inputs = [listed, chosen, verdict, order, reason, labeler]
    outputs = [last, undo, status]
    chosen.input(show, [listed, chosen], [*fields, status], **quiet)
    tab.select(update, chosen, [listed, table, chosen], **quiet)
    for event in (
        save.click(store_change, inputs, outputs, api_name="edit_judgement"),
        delete.click(remove, [listed, chosen], outputs, api_name="delete_judgement"),
        undo.click(undo_change, last, outputs, api_name="undo_change"),
    ):
        updated = event.success(update, chosen, [listed, table, chosen], **quiet)
        updated.success(lambda *now: show(*now)[:-1], [listed, chosen], fields, **quiet)
        refresh_board(updated)


def _verdict(judgement: Judgement) -> str:
    if judgement.kind == BATTLE:
        return VERDICT_LABELS[str(judgement.verdict)]
    return order_text(judgement.ranks or ())


def _label(number: str, judgement: Judgement) -> str:
    return f"{number}: {_verdict(judgement)}, {_short(judgement.prompt[-1]['content'], 60)}"


def _row(number: str, judgement: Judgement) -> list[str]:
    battle = judgement.kind == BATTLE
    names = [
        f"{chr(65 + i) if battle else i + 1}: {reply.name}"
        for i, reply in enumerate(judgement.replies)
    ]
    return [
        *(number, judgement.time.removesuffix("Z").replace("T", " "), _verdict(judgement)),
        *(", ".join(names), _short(judgement.prompt[-1]["content"], 200)),
        *(judgement.labeler, _short(judgement.reason, 200)),
    ]


def _answers(judgement: Judgement) -> str:
    parts = [f"{message['role']}: {message['content']}" for message in judgement.prompt]
    for i, reply in enumerate(judgement.replies):
        name = chr(65 + i) if judgement.kind == BATTLE else str(i + 1)
        parts.append(f"Answer {name}, {reply.name}:\n{reply.text}")
    return "\n\n".join(parts)


def _short(text: str, longest: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
