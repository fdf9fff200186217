"""Ratings, their intervals, the win matrix and the labelers' agreement."""

import threading
from typing import TYPE_CHECKING, Any

import gradio as gr

from toolkit.app.judgements.board_plot import interval_plot
from toolkit.app.judgements.leaderboard import Board, leaderboard
from toolkit.app.judgements.texts import (
    LEADERBOARD,
    METHOD,
    NO_VOTES,
    agreement_text,
    standings_rows,
    wins_rows,
)
from toolkit.app.tabs.parts import page_error
from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    from toolkit.app.judgements.store import Store

# a wide page is filled, a narrow one scrolls the table
WIDTHS = [
    f"max({pixels}px, {share}%)"
    for pixels, share in zip((50, 180, 150, 150, 80, 90), (7, 26, 21, 22, 11, 13), strict=True)
]
HEADERS = ["#", "Checkpoint", "Rating", "95 % interval", "Votes", "Prompts"]


def leaderboard_tab(tab: gr.Tab, store: "Store") -> None:
    """The tab's contents, worked out when `tab` is opened and there are new judgements."""
    gr.Markdown(LEADERBOARD)
    empty = gr.Markdown(NO_VOTES, visible=False)
    look = gr.Button("Count again", size="sm")
    with gr.Column(visible=False) as results:
        table = gr.Dataframe(
            headers=HEADERS,
            column_widths=WIDTHS,
            interactive=False,
            wrap=True,
            label="Ratings, the best first",
            elem_classes="ratings",
        )
        plot = gr.Plot(
            show_label=False,  # it would lie over the picture
            visible=False,
            elem_classes="toolkit-curve",
        )
        pairs = gr.Dataframe(
            headers=["Checkpoint", "1"],
            interactive=False,
            wrap=True,
            label="Wins of the row's checkpoint over the column's (numbered by place), and votes",
            elem_classes="ratings",
        )
        agreement = gr.Textbox(
            label="Agreement between labelers",
            info="How often two people said the same of the same pair.",
            lines=2,
            interactive=False,
        )
    with gr.Accordion("How ratings are made", open=False):
        gr.Markdown(METHOD)
    counted = _Counted(store)

    def refresh() -> list[Any]:
        try:
            board = counted.board()
        except ToolkitError as error:
            raise page_error(error, store.path.parent) from error
        picture = interval_plot(board)
        numbers = [str(place) for place in range(1, len(board.standings) + 1)]
        return [
            gr.update(visible=not board.standings),
            gr.update(visible=bool(board.standings)),
            gr.update(value=standings_rows(board)),
            gr.update(value=picture, visible=picture is not None),
            gr.update(value=wins_rows(board), headers=["Checkpoint", *numbers]),
            agreement_text(board),
        ]

    outputs = [empty, results, table, plot, pairs, agreement]
    look.click(refresh, None, outputs, api_name="leaderboard")
    tab.select(refresh, None, outputs, api_visibility="private", show_progress="minimal")


class _Counted:
    """The board of the judgements there are; rows are never changed, so their number tells."""

    def __init__(self, store: "Store") -> None:
        self.store = store
        self._lock = threading.Lock()
        self._last: tuple[int, Board] | None = None

    def board(self) -> Board:
        """The leaderboard."""
        with self._lock:
            found = self.store.count()
            if self._last is None or self._last[0] != found:
                judgements = self.store.all()
                self._last = len(judgements), leaderboard(judgements)
            return self._last[1]
