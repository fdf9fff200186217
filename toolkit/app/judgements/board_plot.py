"""The leaderboard's picture: each rated checkpoint with its interval."""

from typing import TYPE_CHECKING

from toolkit.app.judgements.leaderboard import Board

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_NAME = 28


def interval_plot(board: Board) -> "Figure | None":
    """Ratings with their 95 % intervals, best on top; None where nobody is rated."""
    from matplotlib.figure import Figure  # not pyplot, which several threads may not share

    rated = [s for s in board.standings if s.rating is not None and s.interval is not None]
    if not rated:
        return None
    figure = Figure(figsize=(6, 1.2 + 0.4 * len(rated)), dpi=140, layout="constrained")
    axes = figure.subplots()
    for place, one in enumerate(rated):
        assert one.rating is not None and one.interval is not None
        axes.plot(one.interval, (place, place), color="#0072B2", linewidth=3, alpha=0.5)
        axes.plot(one.rating, place, "o", color="#0072B2")
    names = [
        s.name if len(s.name) <= LONGEST_NAME else f"{s.name[: LONGEST_NAME - 1]}…" for s in rated
    ]
    # a run may be called "$x", which is no formula
    axes.set_yticks(range(len(rated)), names, parse_math=False)
    axes.set_ylim(len(rated) - 0.5, -0.5)
    axes.set_title("Ratings with their 95 % intervals")
    axes.set_xlabel("rating (400 points more: odds of 10 to 1)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#E3E3E3")
    axes.set_axisbelow(True)
    return figure
