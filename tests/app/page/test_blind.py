"""Nothing that the server sends before the verdict says who answered."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from tests.app.judgements.fake_workbench import FakeWorkbench
from tests.app.page.judgement_page import NAMES, judgement_page
from toolkit.app.judgements.store import Store

Page = tuple[str, FakeWorkbench, Store]
POOL = ["run_000000", "run_000001"]


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """The tabs about judgements over a fake workbench."""
    with judgement_page(tmp_path) as opened:
        yield opened


class Visitor:
    """One browser's session, reading every byte that the server sends for an event."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.session = url, name
        with urllib.request.urlopen(url + "config", timeout=30) as answer:
            config = json.load(answer)
        self.events = {d["api_name"]: d["id"] for d in config["dependencies"] if d["api_name"]}
        self.inputs = {
            d["api_name"]: [self._kind(config, i) for i in d["inputs"]]
            for d in config["dependencies"]
        }

    def _kind(self, config: Any, id: int) -> str:
        return next(c["type"] for c in config["components"] if c["id"] == id)

    def sends(self, event: str, *values: Any) -> str:
        """Everything sent back; values are those of the inputs that the page fills in."""
        given = iter(values)
        data = [None if kind == "state" else next(given) for kind in self.inputs[event]]
        body = {"data": data, "fn_index": self.events[event], "session_hash": self.session}
        request = urllib.request.Request(
            self.url + "gradio_api/queue/join",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            said = answer.read().decode() + str(answer.headers)
        stream = f"{self.url}gradio_api/queue/data?session_hash={self.session}"
        with urllib.request.urlopen(stream, timeout=30) as answer:
            said += str(answer.headers) + answer.read().decode()
        assert "process_completed" in said
        return said


def test_names_are_sent_after_the_vote_only(page: Page) -> None:
    url, _, store = page
    visitor = Visitor(url, "visitor")
    secrets = [*NAMES.split(), *POOL, "secret", "run_"]
    for verdict in ("a", "both_bad"):
        before = visitor.sends("battle", "Who is it?", POOL, 0.7, 16)
        assert "Which answer is better?" in before and "Who is it? " in before
        assert [word for word in secrets if word in before] == []
        after = visitor.sends(f"vote_{verdict}", "", "Ann")
        assert all(name in after for name in NAMES.split())
        told = store.all()[-1]
        assert f"A was {told.replies[0].name}, B was {told.replies[1].name}" in after
        assert (told.verdict, told.labeler) == (verdict, "Ann")
        # not even the id by which the verdict is stored is the page's to know
        assert told.id not in before + after
        shown = [before.index(reply.text) for reply in told.replies]
        assert shown == sorted(shown)  # A is the first of what is stored


def test_names_are_sent_after_the_ranking_only(page: Page) -> None:
    url, _, store = page
    visitor = Visitor(url, "visitor")
    before = visitor.sends("ranking", "Who is it?", POOL, 4, 0.7, 16)
    assert "Put the answers in order" in before
    assert [word for word in [*NAMES.split(), *POOL] if word in before] == []
    graded = [[7, *[0] * 8], [["harmful"], *[[]] * 8]]
    after = visitor.sends("save_ranking", "2 > 1 = 4 > 3", "", "Ann", *graded[0], *graded[1])
    (told,) = store.all()
    assert (told.ranks, told.likert) == ((2, 1, 3, 2), (7, None, None, None))
    assert told.flags == (("harmful",), (), (), ())
    for number, reply in enumerate(told.replies, start=1):
        assert f"{number} was {reply.name}" in after


def test_sessions_do_not_cross_and_a_failure_names_nobody(page: Page) -> None:
    url, fake, store = page
    ann, bob = Visitor(url, "ann"), Visitor(url, "bob")
    ann.sends("battle", "Of Ann?", POOL, 0.7, 16)
    bob.sends("battle", "Of Bob?", POOL, 0.7, 16)
    ann.sends("vote_a", "", "Ann")
    bob.sends("vote_b", "", "Bob")
    assert [(j.prompt[0]["content"], j.verdict, j.labeler) for j in store.all()] == [
        ("Of Ann?", "a", "Ann"),
        ("Of Bob?", "b", "Bob"),
    ]
    fake.fail = {"secret-dpo-run"}
    said = ann.sends("battle", "Of Ann?", POOL, 0.7, 16)
    assert "one of the checkpoints did not answer" in said
    assert "secret" not in said


def test_what_strangers_send_is_refused_in_words(page: Page) -> None:
    url, _, store = page
    client = Client(url, verbose=False, analytics_enabled=False)
    with pytest.raises(AppError, match="not waiting for a verdict"):
        client.predict("", "", api_name="/vote_a")
    for pool, said in (([], "at least two"), (["base"], "at least two")):
        with pytest.raises(AppError, match=said):
            client.predict("Hi", pool, 0.7, 16, api_name="/battle")
    for bad in ("../../etc/passwd", "run_999999", "<img src=x onerror=alert(1)>"):
        with pytest.raises(AppError):
            client.predict("Hi", ["base", bad], 0.7, 16, api_name="/battle")
    client.predict("Hi", POOL, 4, 0.7, 16, api_name="/ranking")
    for order, said in (("", "nothing"), ("1 > 2", "missing: 3, 4"), ("<b", "&lt;b")):
        with pytest.raises(AppError, match=said):
            client.predict(order, "", "", *[0] * 9, *[[]] * 9, api_name="/save_ranking")
    assert store.count() == 0


def test_leaderboard_and_data_show_what_was_judged(page: Page, tmp_path: Path) -> None:
    url, _, store = page
    client = Client(url, verbose=False, analytics_enabled=False, download_files=tmp_path / "got")
    empty, *_ = client.predict(api_name="/leaderboard")
    assert empty["visible"] is True
    *_, said, files, reward, dpo, kto = client.predict(api_name="/export")
    assert said == "There is nothing to export yet." and not files
    for verdict in ("a", "b", "tie"):
        client.predict("Hi", POOL, 0.7, 16, api_name="/battle")
        client.predict("", "Ann", api_name=f"/vote_{verdict}")
    empty, table, plot, *_, agreement = client.predict(api_name="/leaderboard")
    assert empty["visible"] is False
    assert plot["visible"] is False  # nobody is rated: there is nothing to draw
    assert [row[2:] for row in table["value"]["data"]] == [["not enough votes", "", "3", "1"]] * 2
    assert sorted(row[1] for row in table["value"]["data"]) == sorted(NAMES.split())
    assert "No two labelers" in agreement
    *_, said, files, reward, dpo, kto = client.predict(api_name="/export")
    assert "preference.jsonl: 2 rows" in said and "ties.jsonl: 1 rows" in said
    assert str(tmp_path) not in said
    assert sorted(Path(f).name for f in files) == [
        *("preference.jsonl", "ties.jsonl", "unpaired.jsonl"),
    ]
    (preference,) = [Path(f) for f in files if Path(f).name == "preference.jsonl"]
    beside = store.path.parent / "judgements" / "preference.jsonl"
    assert preference.read_bytes() == beside.read_bytes()
    assert reward.startswith("python recipes/reward.py --config recipes/configs/world/reward.yaml")
    assert str(beside) in dpo and "secret-sft-run" in dpo
    assert kto.startswith("python recipes/kto.py") and "judgements/unpaired.jsonl" in kto
