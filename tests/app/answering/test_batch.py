"""A file of prompts over several checkpoints: reading it, the rows, and the exported files."""

import csv
import io
import json
from pathlib import Path
from typing import Any, cast

import pytest

from tests.app.judgements.fake_workbench import FakeWorkbench
from toolkit.app.answering import batch
from toolkit.app.answering.batch import BatchRow, answer_all, parse_prompts, to_csv, to_jsonl
from toolkit.app.tabs.batch import _filled
from toolkit.errors import BusyError, ConfigError

POOL = ["run_000000", "run_000001"]


def test_prompts_are_lines_or_json_objects() -> None:
    rows = [{"prompt": "In JSON?", "x": 1}, {"prompt": [{"role": "user", "content": "A message?"}]}]
    lines = ["Plain?", "", "  Plain?  ", "{not JSON", *map(json.dumps, rows)]
    assert parse_prompts("\r\n".join(lines)) == ["Plain?", "{not JSON", "In JSON?", "A message?"]
    other = ["A\u2028B", "C\x85D", "E\x0bF\x0cG\x1eH"]  # str.splitlines splits at these
    assert parse_prompts("\r".join(other)) == other


def test_buttons_fill_in_one_line_per_prompt() -> None:
    prompts = ["Plain?", "Two\nlines?", "{brace}", '{"prompt": "JSON"}', "A\u2028separator"]
    text, status = _filled(prompts, "prompts")
    assert parse_prompts(text) == prompts and status == "5 prompts."
    text, status = _filled([str(i) for i in range(501)], "prompts")
    assert len(parse_prompts(text)) == 500 and status == "The first 500 of 501 prompts."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no prompts"),
        (" \n", "no prompts"),
        ('ok\n{"question": "x"}', 'line 2: a JSON line needs "prompt"'),
        ('ok\r\n{ "prompt": "x"', "line 2: not valid JSON"),
        ("x" * 8001, "line 1: the prompt has 8,001 characters"),
        ("\n".join(map(str, range(501))), "501 prompts; at most 500"),
    ],
)
def test_unusable_prompts_raise(text: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_prompts(text)


def test_every_prompt_gets_a_row_per_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWorkbench(tmp_path / "runs")
    fake.fail = {"dpo"}
    compare, busy = fake.compare, iter([False, True, False, True, True])

    def sometimes_busy(*args: Any, **options: Any) -> Any:
        if next(busy, False):
            raise BusyError("busy")
        return compare(*args, **options)

    monkeypatch.setattr(fake, "compare", sometimes_busy)
    monkeypatch.setattr(batch, "BUSY_WAIT_S", 0.0)
    prompts = [f"Prompt {i}?" for i in range(7)]
    *_, rows = answer_all(cast(Any, fake), prompts, POOL, seed=3)
    assert [(r.number, r.prompt, r.checkpoint) for r in rows] == [
        (i + 1, prompt, name) for i, prompt in enumerate(prompts) for name in ("sft", "dpo")
    ]
    assert rows[0].answer == "Prompt 0? 111 3" and rows[1].problem == "dpo is broken"


def test_closed_batch_cancels_the_waiting_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, calls = FakeWorkbench(tmp_path / "runs"), []
    compare = fake.compare
    monkeypatch.setattr(
        fake,
        "compare",
        lambda *args, **options: calls.append(compare(*args, **options)) or calls[-1],
    )
    running = cast(Any, answer_all(cast(Any, fake), list("abcdefgh"), POOL, seed=0))
    next(running)
    running.close()
    assert len(calls) == batch.AT_ONCE and all(call.closed for call in calls)


def test_files_hold_every_row_and_no_formula() -> None:
    rows = [
        BatchRow(1, "=1+1", "sft", 'Say "hi",\nthen go', 0.25, None, 5, True, ""),
        BatchRow(2, "Füß", "dpo", "@SUM(A1)", None, -1.5, 4, False, ""),
    ]
    assert [BatchRow(**json.loads(line)) for line in to_jsonl(rows).splitlines()] == rows
    first, second = csv.DictReader(io.StringIO(to_csv(rows)))
    assert (first["prompt"], first["answer"], first["score"]) == ("'=1+1", rows[0].answer, "0.25")
    assert (second["answer"], second["kl"], second["score"]) == ("'@SUM(A1)", "-1.5", "")
