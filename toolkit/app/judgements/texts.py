"""What the tabs about judgements say, and their tables in plain words."""

from collections.abc import Mapping

from toolkit.app.judgements.judgement import BATTLE, BOTH_BAD, SKIP, TIE, A, B, Judgement
from toolkit.app.judgements.leaderboard import ENOUGH_PROMPTS, ENOUGH_VOTES, Board
from toolkit.app.judgements.store import Tally

ARENA = """# Arena
Two of the checkpoints that you chose answer one prompt, and you say which answer is better before \
you know who gave it. Which two, and which of them is A, is drawn on the server for each battle. \
Judge the answers alone: an answer that is longer or surer of itself is not better for that."""

RANK = """# Rank
Put several answers to one prompt in order, the best first; equally good ones may share a place. \
Ranking says more than single battles: K answers make K·(K−1)/2 comparisons. Who gave which answer \
is told when the order is saved."""

LEADERBOARD = f"""# Leaderboard
What all judgements together say. A checkpoint needs {ENOUGH_VOTES} votes on {ENOUGH_PROMPTS} \
different prompts to be rated."""

METHOD = """
- **Rating**: the strength that makes the judgements most probable (Bradley-Terry for battles, \
Plackett-Luce for rankings, in one fit). The average checkpoint is at 1000, and 400 points more are \
odds of 10 to 1: 100 points more win 64 % of decided battles. A weak prior (a standard deviation \
of 350 points) keeps the rating of one that never lost finite.
- **95 % interval**: from 300 resamples of the prompts, each with all of its votes. Where two \
intervals overlap widely, the order of the two is not settled.
- **Ties** count as half a win for each; so does **both bad**, because it says that neither is \
better. **Skipped** battles count nowhere. Several tied answers of a ranking count as every order of \
them in equal shares.
- **Votes**: judgements in which the checkpoint was compared with another one. In the tables of \
pairs a ranking counts once for each two of its answers that are of different checkpoints.
- A checkpoint is its name **and** its weights: one that was trained again under an old name starts \
from nothing, and the old one stays, with the first letters of its weights' hash in brackets.
- **Agreement** is about the same two checkpoints on the same prompt, between labelers who gave a \
name; what each said last of the two counts. A ranking prefers the checkpoint that wins more of the \
pairs of their answers. Krippendorff's α is 1 where all agree and 0 where \
they agree as often as chance would; the answers may differ from time to time, which lowers it.
"""

DATA = """# Data
Every judgement is in one SQLite file beside the runs, from the moment the page says "Saved". \
*Export* writes them as training data."""

NO_VOTES = """**Nobody has judged anything yet.** Vote in *Arena* or put answers in order in *Rank*; \
what you say there shows up here."""

FILES_TEXT = """
- **preference.jsonl**: prompt, chosen, rejected, as messages: decided battles and the pairs of \
rankings. For `recipes/reward.py`, `recipes/dpo.py` and TRL's trainers.
- **ranked.jsonl**: prompt, completions, ranks: the rankings whole.
- **unpaired.jsonl**: prompt, completion, label: the same answers as good or bad. For \
`recipes/kto.py` and TRL's KTOTrainer.
- **ties.jsonl** and **both_bad.jsonl**: battles that nobody won, apart; the latter as bad answers \
for KTO.

Each row says where it comes from (`provenance`): the checkpoints and the SHA-256 of their \
adapters, the base's fingerprint, sampling, seeds, labeler and time. Labelers' names are in it.
"""

VERDICT_WORDS: Mapping[str, str] = {
    A: "A is better",
    B: "B is better",
    TIE: "Tie",
    BOTH_BAD: "Both bad",
    SKIP: "Skip",
}


def revealed(judgement: Judgement) -> str:
    """Who gave which answer, once it is stored."""
    if judgement.kind == BATTLE:
        a, b = (reply.name for reply in judgement.replies)
        return f"Saved: {VERDICT_WORDS[str(judgement.verdict)]}. A was {a}, B was {b}."
    names = (f"{i} was {reply.name}" for i, reply in enumerate(judgement.replies, start=1))
    return f"Saved. Answer {', '.join(names)}."


def standings_rows(board: Board) -> list[list[str]]:
    """The leaderboard's rows: place, checkpoint, rating, interval, votes, prompts."""
    rows = []
    for place, one in enumerate(board.standings, start=1):
        rating, between = one.lacks, ""
        if one.rating is not None and one.interval is not None:
            rating = f"{one.rating:.0f}"
            between = f"{one.interval[0]:.0f} to {one.interval[1]:.0f}"
        rows.append([str(place), one.name, rating, between, str(one.votes), str(one.prompts)])
    return rows


def wins_rows(board: Board) -> list[list[str]]:
    """Per checkpoint its share of wins against each other one, and of how many comparisons."""
    rows = []
    for i, one in enumerate(board.standings):
        cells = [
            f"{board.wins[i, j] / board.seen[i, j]:.0%} of {board.seen[i, j]}"
            if board.seen[i, j]
            else "–"
            for j in range(len(board.standings))
        ]
        rows.append([f"{i + 1}. {one.name}", *cells])
    return rows


def agreement_text(board: Board) -> str:
    """How far labelers agree, in a sentence or two."""
    found = board.agreement
    if found is None:
        return (
            "No two labelers with a name have judged the same two checkpoints on the same prompt "
            "yet. Let several people judge the prompts of one file."
        )
    alpha = "not defined (all said the same)" if found.alpha is None else f"{found.alpha:.2f}"
    return (
        f"The same verdict in {found.share:.0%} of {found.pairs} pairs of verdicts on "
        f"{found.units} prompts with two checkpoints. Krippendorff's α: {alpha}."
    )


def count_rows(tally: Tally) -> list[list[str]]:
    """What there is, and how much of it."""
    battles = sum(tally.verdicts.values())
    rows: list[list[object]] = [["Judgements", tally.judgements], ["Battles", battles]]
    rows += [[f"– {words}", tally.verdicts.get(v, 0)] for v, words in VERDICT_WORDS.items()]
    rows += [["Rankings", tally.rankings], ["Answers ranked", tally.ranked]]
    rows += [["Different prompts", tally.prompts], ["Labelers with a name", tally.labelers]]
    return [[str(cell) for cell in row] for row in rows]
