"""The tab Leaderboard: ratings with their intervals, wins by pair, and the labelers' agreement."""

import functools
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from toolkit.app.history.curves import escaped, layout
from toolkit.app.judgements.judged import judged_boards
from toolkit.app.judgements.leaderboard import MIN_PROMPTS, MIN_VOTES, Board, leaderboard
from toolkit.app.tabs.judgement_list import judgement_list
from toolkit.app.tabs.parts import column_widths, errors_as_toast, plotly
from toolkit.app.texts import markdown
from toolkit.evaluation.plots import PALETTE, short_names

if TYPE_CHECKING:
    from toolkit.app.judgements.store import Store

INTRODUCTION = f"""# Leaderboard
Ratings of the checkpoints from all judgements. A checkpoint is rated if it has at least {MIN_VOTES} \
votes on at least {MIN_PROMPTS} different prompts."""
HEADERS = {  # column -> minimum pixels and share of the width, %
    "#": (50, 7),
    "Checkpoint": (180, 26),
    "Rating": (150, 21),
    "95 % interval": (150, 22),
    "Votes": (80, 11),
    "Prompts": (90, 13),
}
MAX_NAME = 28  # characters of a name in the plot and above a column


def leaderboard_tab(tab: gr.Tab, store: "Store", runs: Path) -> None:
    """Build the tab; opening it computes the ratings if there are new judgements.

    Args:
        runs: the folder with the runs of model judges.
    """
    gr.Markdown(INTRODUCTION)
    empty = gr.Markdown(markdown("no_judgements"), visible=False)
    update = gr.Button("Update ratings", size="sm")
    with gr.Column(visible=False) as results:
        table = gr.Dataframe(
            headers=list(HEADERS),
            column_widths=column_widths(HEADERS.values()),
            interactive=False,
            wrap=True,
            label="Ratings, best first",
            elem_classes="ratings",
        )
        # a label would cover the plot
        plot = gr.Plot(show_label=False, visible=False, elem_classes="toolkit-curve")
        pairs = gr.Dataframe(
            headers=["Checkpoint", "1"],
            interactive=False,
            wrap=True,
            label="Share of wins of each row against each column, and number of comparisons",
            elem_classes="ratings",
        )
        info = "How often two labelers gave the same verdict on the same pair."
        agreement = gr.Textbox(
            label="Agreement between labelers", info=info, lines=2, interactive=False
        )
    judged = gr.Dataframe(
        headers=["Judge", *HEADERS],
        interactive=False,
        wrap=True,
        visible=False,
        label="Ratings by models (toolkit judge), not by people",
        elem_classes="ratings",
    )
    with gr.Accordion("How ratings are computed", open=False):
        gr.Markdown(markdown("leaderboard_ratings"))
    lock = threading.Lock()  # several visitors wait for one computation

    @functools.lru_cache(maxsize=1)
    def board_of(version: tuple[int, int]) -> Board:
        return leaderboard(store.all())

    def refresh() -> list[Any]:
        with errors_as_toast(store.path.parent), lock:
            board = board_of(store.version())
        figure = interval_plot(board)
        return [
            gr.update(visible=not board.standings),
            gr.update(visible=bool(board.standings)),
            gr.update(value=_standings_rows(board)),
            gr.update(value=figure and plotly(figure), visible=figure is not None),
            gr.update(value=_wins_rows(board), headers=_wins_headers(board)),
            _agreement_text(board),
        ]

    def refresh_judged() -> Any:
        rows = _judged_rows(judged_boards(runs))
        return gr.update(value=rows, visible=bool(rows))

    outputs = [empty, results, table, plot, pairs, agreement]
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
    update.click(refresh, None, outputs, api_name="leaderboard")
    tab.select(refresh, None, outputs, **quiet)
    for event in (update.click, tab.select):
        event(refresh_judged, None, judged, **quiet)
    judgement_list(tab, store, lambda event: event.then(refresh, None, outputs, **quiet))


def _standings_rows(board: Board) -> list[list[str]]:
    """The rows of the table; a checkpoint without a rating has no place."""
    rows = []
    for place, standing in enumerate(board.standings, start=1):  # the rated ones are first
        number, rating, interval = "–", standing.unrated, ""
        if standing.rating is not None and standing.interval is not None:
            number, rating = str(place), f"{standing.rating:.0f}"
            interval = f"{standing.interval[0]:.0f} to {standing.interval[1]:.0f}"
        counts = [str(standing.votes), str(standing.prompts)]
        rows.append([number, standing.name, rating, interval, *counts])
    return rows


def _judged_rows(boards: Mapping[str, Board | str]) -> list[list[str]]:
    """The standings of each judge, or the reason why there are none."""
    rows = []
    for judge, board in boards.items():
        if isinstance(board, str):
            rows.append([judge, "–", board, *[""] * (len(HEADERS) - 2)])
        else:
            rows += [[judge, *standing] for standing in _standings_rows(board)]
    return rows


def _wins_headers(board: Board) -> list[str]:
    """A column for each checkpoint."""
    names = short_names([standing.name for standing in board.standings], MAX_NAME)
    return ["Checkpoint", *(f"over {name}" for name in names)]


def _wins_rows(board: Board) -> list[list[str]]:
    """Each checkpoint's share of wins against every other one, and the number of comparisons."""
    rows = []
    for i, standing in enumerate(board.standings):
        cells = [
            f"{wins / n:.0%} of {n}" if n else "–"
            for wins, n in zip(board.wins[i], board.comparisons[i], strict=True)
        ]
        rows.append([standing.name, *cells])
    return rows


def _agreement_text(board: Board) -> str:
    agreement = board.agreement
    if agreement is None:
        return (
            "No two labelers with a name have judged the same two checkpoints on the same prompt "
            "yet. Let several people judge prompts from one file."
        )
    alpha = "undefined" if agreement.alpha is None else f"{agreement.alpha:.2f}"
    return (
        f"{agreement.share:.0%} of {agreement.pairs} pairs of verdicts are equal, in "
        f"{agreement.units} combinations of a prompt and two checkpoints. Krippendorff's α: {alpha}."
    )


def interval_plot(board: Board) -> dict[str, Any] | None:
    """Ratings with their 95 % intervals, best on top, for Plotly; None if no checkpoint is rated."""
    rated = [(s.name, s.rating, s.interval) for s in board.standings if s.rating is not None]
    if not rated:
        return None
    above, below = [], []
    for _, rating, interval in rated:
        assert interval is not None
        above.append(interval[1] - rating)
        below.append(rating - interval[0])
    names = short_names([name for name, *_ in rated], MAX_NAME)
    points = {
        "x": [rating for _, rating, _ in rated],
        "y": list(range(len(rated))),
        "mode": "markers",
        "marker": {"color": PALETTE[0], "size": 9},
        "error_x": {"type": "data", "symmetric": False, "array": above, "arrayminus": below},
        "hovertemplate": "%{x:.0f}<extra></extra>",
    }
    axes = {
        "xaxis": {"title": {"text": "rating (400 points more: odds of 10 to 1)"}},
        "yaxis": {
            "tickvals": points["y"],
            "ticktext": [escaped(name) for name in names],
            "range": [len(rated) - 0.5, -0.5],
        },
    }
    title = "Ratings with their 95 % intervals"
    return layout(title, [points], height=150 + 40 * len(rated), **axes)
