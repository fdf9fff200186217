"""Agreement of a judge with people, against published values and the app's own function."""

import numpy as np
import pytest

from tests.app.judgements.judgements import battle, ranking
from tests.judging.conftest import ROWS
from toolkit.app.judgements import leaderboard
from toolkit.app.judgements.judged import FILE, judged_boards, read_judgements
from toolkit.app.judgements.store import Store
from toolkit.errors import DatasetError
from toolkit.judging.agreement import agreement, cohen_kappa, coincidences, krippendorff_alpha


def test_kappa_of_cohens_example():
    """Cohen 1960, table 1, in numbers of 200 cases: kappa is .492."""
    table = np.array([[88, 14, 18], [10, 40, 10], [2, 6, 12]], dtype=float)
    assert cohen_kappa(table) == pytest.approx(0.492, abs=5e-4)


def test_alpha_of_krippendorffs_example():
    """Krippendorff 2011, part C: two observers, 12 nominal units of five values; alpha is .692."""
    one, two = "aabbdcccedda", "babbbccceddd"
    values = sorted({*one, *two})
    table = np.zeros((5, 5))
    for pair in zip(map(values.index, one), map(values.index, two), strict=True):
        table[pair] += 1
        table[pair[::-1]] += 1
    assert krippendorff_alpha(table) == pytest.approx(0.692, abs=5e-4)


def test_alpha_equals_that_of_the_leaderboard():
    units = [(1.0, 1.0, 0.5), (0.0, 0.0), (0.5, 1.0, 1.0, 0.0), (0.0, 1.0)]
    expected = leaderboard.agreement({i: list(map(str, u)) for i, u in enumerate(units)})
    total = sum(map(coincidences, units))
    assert krippendorff_alpha(total) == pytest.approx(expected.alpha)


def test_intervals_contain_the_coefficient_and_need_common_pairs():
    judge = {i: (1.0, 0.5, 0.0)[i % 3] for i in range(60)}
    people = {i: [judge[i] if i % 4 else 1.0] for i in range(60)}
    found = agreement(judge, people, {i: i // 2 for i in range(60)}, seed=0)
    for name in ("kappa", "alpha"):
        low, high = found[name]["ci95"]
        assert 0 < low < found[name]["mean"] < high < 1
    assert agreement(judge, {99: [1.0]}, {}, seed=0) is None
    same = agreement({1: 1.0}, {1: [1.0]}, {1: 1}, seed=0)
    assert (same["equal"], same["kappa"]["mean"], same["alpha"]["ci95"]) == (1, None, [None, None])


def test_judge_is_compared_with_votes_of_the_app(judge, tmp_path, capsys):
    store = Store(tmp_path / "judgements.sqlite")
    for number, verdict in enumerate(("a", "a", "b", "both_bad", "skip")):
        one = battle(str(number), "good", "bad", verdict, prompt=f"Q{number}?", labeler="Ann")
        store.add(one)
    store.add(battle("again", "good", "bad", "a", prompt="Q0?", labeler="Bob"))
    store.add(battle("named", "good", "bad", "b", prompt="Q0?", sampling={"named": 1.0}))
    store.add(ranking("r", "bad good other", (2, 1, 3), prompt="Rank?"))
    assert judge(dataset_name=None, votes=store.path) == 0
    people = judge.read("report.json")["agreement"]["people"]
    # "good" beats all others, and the judge calls "bad" and "other" equal: 3 + 2 of 8 votes are equal
    assert (people["pairs"], people["votes"]) == (7, 8)
    assert people["equal"] == 5 / 8
    assert "of 8 verdicts equal those of the people" in capsys.readouterr().out
    assert set(judge.read("report.json")["win_rates"]) == {"good", "bad", "other"}
    (board,) = judged_boards(tmp_path).values()
    assert {s.name: s.votes for s in board.standings} == {"good": 5, "bad": 5, "other": 1}
    stored = read_judgements(judge.out / FILE)
    assert {(j.verdict, j.ranks, j.labeler) for j in stored} == {
        ("a", None, "judge tiny"),
        (None, (2, 1, 2), "judge tiny"),
    }
    (judge.out / FILE).write_text('{"id": 1}\n')
    assert list(judged_boards(tmp_path)) == ["judge (tiny)"]
    assert "damaged" in judged_boards(tmp_path)["judge (tiny)"]
    assert judge(rows=ROWS, votes=store.path) == 0  # other answers
    assert judge.read("report.json")["agreement"]["people"] is None
    assert judge(votes=tmp_path / "missing.sqlite") == DatasetError.exit_code
