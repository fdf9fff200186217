"""Before the verdict, the server sends nothing that reveals the checkpoints."""

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from tests.app.judgements.fake_workbench import FakeWorkbench
from tests.app.page.judgement_page import NAMES, judgement_page
from toolkit.app.judgements.judgement import Judgement
from toolkit.app.judgements.store import Store

Page = tuple[str, FakeWorkbench, Store]
POOL = ["run_000000", "run_000001"]


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """The judgement tabs with a fake workbench."""
    with judgement_page(tmp_path) as opened:
        yield opened


class Visitor:
    """A browser session that records every byte of the server's responses."""

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

    def join(self, event: str, *values: Any) -> str:
        """Start an event, without waiting for its result; `values` are the inputs without the states."""
        remaining = iter(values)
        data = [None if kind == "state" else next(remaining) for kind in self.inputs[event]]
        body = {"data": data, "fn_index": self.events[event], "session_hash": self.session}
        request = urllib.request.Request(
            self.url + "gradio_api/queue/join",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read().decode() + str(answer.headers)

    def send(self, event: str, *values: Any) -> str:
        """The responses to an event; `values` are the inputs without the states."""
        response = self.join(event, *values)
        stream = f"{self.url}gradio_api/queue/data?session_hash={self.session}"
        with urllib.request.urlopen(stream, timeout=30) as answer:
            response += str(answer.headers) + answer.read().decode()
        assert "process_completed" in response
        return response


def test_names_are_sent_only_after_the_vote(page: Page) -> None:
    url, _, store = page
    visitor = Visitor(url, "visitor")
    secrets = [*NAMES.split(), *POOL, "secret", "run_"]
    for verdict in ("a", "both_bad"):
        before = visitor.send("battle", "Who is it?", POOL, 0.7, 16)
        assert "Which answer is better?" in before and "Who is it? " in before
        assert [word for word in secrets if word in before] == []
        after = visitor.send(f"vote_{verdict}", "", "Ann")
        assert all(name in after for name in NAMES.split())
        judgement = store.all()[-1]
        names = [reply.name for reply in judgement.replies]
        assert f"A was {names[0]}, B was {names[1]}" in after
        assert (judgement.verdict, judgement.labeler) == (verdict, "Ann")
        assert judgement.id not in before + after  # the id is secret, too
        positions = [before.index(reply.text) for reply in judgement.replies]
        assert positions == sorted(positions)  # A is stored first


def test_names_are_sent_only_after_the_ranking(page: Page) -> None:
    url, _, store = page
    visitor = Visitor(url, "visitor")
    before = visitor.send("ranking", "Who is it?", POOL, 4, 0.7, 16)
    assert "Put the answers in order" in before
    assert [word for word in [*NAMES.split(), *POOL] if word in before] == []
    likert, flags = [7, *[0] * 8], [["harmful"], *[[]] * 8]
    after = visitor.send("save_ranking", "2 > 1 = 4 > 3", "", "Ann", *likert, *flags)
    (judgement,) = store.all()
    assert (judgement.ranks, judgement.likert) == ((2, 1, 3, 2), (7, None, None, None))
    assert judgement.flags == (("harmful",), (), (), ())
    for number, reply in enumerate(judgement.replies, start=1):
        assert f"{number} was {reply.name}" in after


def test_first_of_two_quick_verdicts_is_stored(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    url, _, store = page
    visitor = Visitor(url, "visitor")
    visitor.send("battle", "Who is it?", POOL, 0.7, 16)
    add = Store.add

    def slow_add(self: Store, judgement: Judgement) -> bool:
        time.sleep(0.5 if judgement.verdict == "a" else 0)  # a busy disk
        return add(self, judgement)

    monkeypatch.setattr(Store, "add", slow_add)
    for event in ("vote_a", "vote_b"):
        visitor.join(event, "", "Ann")
        time.sleep(0.1)
    time.sleep(1)
    assert [j.verdict for j in store.all()] == ["a"]


def test_sessions_are_separate_and_errors_name_no_checkpoint(page: Page) -> None:
    url, fake, store = page
    ann, bob = Visitor(url, "ann"), Visitor(url, "bob")
    ann.send("battle", "Of Ann?", POOL, 0.7, 16)
    bob.send("battle", "Of Bob?", POOL, 0.7, 16)
    ann.send("vote_a", "", "Ann")
    bob.send("vote_b", "", "Bob")
    assert [(j.prompt[0]["content"], j.verdict, j.labeler) for j in store.all()] == [
        ("Of Ann?", "a", "Ann"),
        ("Of Bob?", "b", "Bob"),
    ]
    fake.fail = {"secret-dpo-run"}
    response = ann.send("battle", "Of Ann?", POOL, 0.7, 16)
    assert "one of the checkpoints did not answer" in response
    assert "secret" not in response


def test_invalid_requests_get_an_error_message(page: Page) -> None:
    url, _, store = page
    client = Client(url, verbose=False, analytics_enabled=False)
    with pytest.raises(AppError, match="not waiting for a verdict"):
        client.predict("", "", api_name="/vote_a")
    for pool in ([], ["base"]):
        with pytest.raises(AppError, match="at least two"):
            client.predict("Hi", pool, 0.7, 16, api_name="/battle")
    for bad in ("../../etc/passwd", "run_999999", "<img src=x onerror=alert(1)>"):
        with pytest.raises(AppError):
            client.predict("Hi", ["base", bad], 0.7, 16, api_name="/battle")
    client.predict("Hi", POOL, 4, 0.7, 16, api_name="/ranking")
    for order, message in (("", "nothing"), ("1 > 2", "missing: 3, 4"), ("<b", "&lt;b")):
        with pytest.raises(AppError, match=message):
            client.predict(order, "", "", *[0] * 9, *[[]] * 9, api_name="/save_ranking")
    assert store.count() == 0


def test_leaderboard_and_data_show_the_judgements(page: Page, tmp_path: Path) -> None:
    url, _, store = page
    client = Client(url, verbose=False, analytics_enabled=False, download_files=tmp_path / "got")
    empty, *_ = client.predict(api_name="/leaderboard")
    assert empty["visible"] is True
    *_, summary, files, reward, dpo, kto = client.predict(api_name="/export")
    assert summary == "There is nothing to export yet." and not files
    for verdict in ("a", "b", "tie"):
        client.predict("Hi", POOL, 0.7, 16, api_name="/battle")
        client.predict("", "Ann", api_name=f"/vote_{verdict}")
    empty, table, plot, *_, agreement = client.predict(api_name="/leaderboard")
    assert empty["visible"] is False
    assert plot["visible"] is False  # no checkpoint is rated
    unrated = ["not enough votes", "", "3", "1"]
    assert [[row[0], *row[2:]] for row in table["value"]["data"]] == [["–", *unrated]] * 2
    assert sorted(row[1] for row in table["value"]["data"]) == sorted(NAMES.split())
    assert "No two labelers" in agreement
    *_, summary, files, reward, dpo, kto = client.predict(api_name="/export")
    assert "preference.jsonl: 2 row(s)" in summary and "ties.jsonl: 1 row(s)" in summary
    assert str(tmp_path) not in summary
    assert sorted(Path(f).name for f in files) == [
        *("preference.jsonl", "ties.jsonl", "unpaired.jsonl"),
    ]
    (preference,) = [Path(f) for f in files if Path(f).name == "preference.jsonl"]
    beside = store.path.parent / "judgements" / "preference.jsonl"
    assert preference.read_bytes() == beside.read_bytes()
    assert reward.startswith("toolkit reward --config world/reward")
    assert str(beside) in dpo and "secret-sft-run" in dpo
    assert kto.startswith("toolkit kto") and "judgements/unpaired.jsonl" in kto
