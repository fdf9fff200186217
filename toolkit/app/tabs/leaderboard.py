"""The tab Leaderboard: ratings with their intervals, wins by pair, and the labelers' agreement."""

import functools
import threading
from typing import TYPE_CHECKING, Any

import gradio as gr

from toolkit.app.judgements.leaderboard import MIN_PROMPTS, MIN_VOTES, Board, leaderboard
from toolkit.app.tabs.parts import column_widths, errors_as_toast
from toolkit.app.texts import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
MAX_NAME = 28  # characters of a name in the plot


def leaderboard_tab(tab: gr.Tab, store: "Store") -> None:
    """Build the tab; opening it computes the ratings if there are new judgements."""
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
    with gr.Accordion("How ratings are computed", open=False):
        gr.Markdown(markdown("leaderboard_ratings"))
    lock = threading.Lock()  # several visitors wait for one computation

    @functools.lru_cache(maxsize=1)  # stored judgements never change
    def board_of(count: int) -> Board:
        return leaderboard(store.all())

    def refresh() -> list[Any]:
        with errors_as_toast(store.path.parent), lock:
            board = board_of(store.count())
        figure = interval_plot(board)
        places = [str(place) for place in range(1, len(board.standings) + 1)]
        return [
            gr.update(visible=not board.standings),
            gr.update(visible=bool(board.standings)),
            gr.update(value=_standings_rows(board)),
            gr.update(value=figure, visible=figure is not None),
            gr.update(value=_wins_rows(board), headers=["Checkpoint", *places]),
            _agreement_text(board),
        ]

    outputs = [empty, results, table, plot, pairs, agreement]
    update.click(refresh, None, outputs, api_name="leaderboard")
    tab.select(refresh, None, outputs, api_visibility="private", show_progress="minimal")


def _standings_rows(board: Board) -> list[list[str]]:
    rows = []
    for place, standing in enumerate(board.standings, start=1):
        rating, interval = standing.unrated, ""
        if standing.rating is not None and standing.interval is not None:
            rating = f"{standing.rating:.0f}"
            interval = f"{standing.interval[0]:.0f} to {standing.interval[1]:.0f}"
        counts = [str(standing.votes), str(standing.prompts)]
        rows.append([str(place), standing.name, rating, interval, *counts])
    return rows


def _wins_rows(board: Board) -> list[list[str]]:
    """Each checkpoint's share of wins against every other one, and the number of comparisons."""
    rows = []
    for i, standing in enumerate(board.standings):
        cells = [
            f"{wins / n:.0%} of {n}" if n else "–"
            for wins, n in zip(board.wins[i], board.comparisons[i], strict=True)
        ]
        rows.append([f"{i + 1}. {standing.name}", *cells])
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


def interval_plot(board: Board) -> "Figure | None":
    """Ratings with their 95 % intervals, best on top; None if no checkpoint is rated."""
    from matplotlib.figure import Figure  # unlike pyplot, safe to use in several threads

    rated = [(s.name, s.rating, s.interval) for s in board.standings if s.rating is not None]
    if not rated:
        return None
    figure = Figure(figsize=(6, 1.2 + 0.4 * len(rated)), dpi=140, layout="constrained")
    axes = figure.subplots()
    for place, (_, rating, interval) in enumerate(rated):
        assert interval is not None
        axes.plot(interval, (place, place), color="#0072B2", linewidth=3, alpha=0.5)
        axes.plot(rating, place, "o", color="#0072B2")
    names = [name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…" for name, *_ in rated]
    axes.set_yticks(range(len(rated)), names, parse_math=False)  # "$x" is a valid run name
    axes.set_ylim(len(rated) - 0.5, -0.5)
    axes.set_title("Ratings with their 95 % intervals")
    axes.set_xlabel("rating (400 points more: odds of 10 to 1)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#E3E3E3")
    axes.set_axisbelow(True)
    return figure
