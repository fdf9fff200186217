"""What is checked of rows that are well-formed: marks of the template, lengths, repeats, and the
file of what was dropped."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from trl.scripts.utils import DatasetMixtureConfig, ScriptArguments

from toolkit.data import Splits, check_texts, load_splits
from toolkit.data.files import read_rows, stream_rows
from toolkit.data.row_errors import DROPPED_FILE
from toolkit.errors import DatasetError
from toolkit.options.arguments import DataArguments


def lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def chat(prompt: str, completion: str) -> dict[str, Any]:
    return {"prompt": [user(prompt)], "completion": [assistant(completion)]}


def load(
    name: str, *, kind: str = "prompt-completion", folder: Path | None = None, **run_args: Any
) -> Splits:
    return load_splits(
        ScriptArguments(dataset_name=name),
        DatasetMixtureConfig(),
        DataArguments(**run_args),
        kind=kind,
        seed=0,
        texts=kind == "prompt-completion",
        folder=folder,
    )


def kept(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / DROPPED_FILE).read_text().splitlines()]


DROP = DataArguments(drop_bad_rows=True)
BAD = [chat("q1", "a"), chat("q2", "b<|end|>c"), chat("q3", "<|pad|>"), chat("<|user|>q4", "d")]


def test_special_tokens_in_messages_stop(tmp_path: Path, tokenizer: Any) -> None:
    name = lines(tmp_path / "d.jsonl", BAD)
    with pytest.raises(DatasetError) as caught:
        check_texts(load(name), tokenizer, DataArguments())
    assert str(caught.value) == (
        f'{name} row 2: "completion" message 1 must not contain the chat template\'s "<|end|>" (str), '
        'got "b<|end|>c" (str).\n'
        '  row: {"prompt": [{"role": "user", "content": "q2"}], '
        '"completion": [{"role": "assistant", "content": "b<|end|>c"}]}\n'
        "  3 rows fail this check (2, 3, 4). Fix them, or set `drop_bad_rows: true`."
    )


def test_special_tokens_in_messages_are_dropped_into_the_runs_file(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    name = lines(tmp_path / "d.jsonl", [{"prompt": "", "completion": "x"}, *BAD])
    splits = load(name, drop_bad_rows=True, folder=tmp_path)
    checked = check_texts(splits, tokenizer, DROP, folder=tmp_path)
    assert checked["train"].to_list() == [chat("q1", "a")]
    assert [o.number for o in checked.origins["train"]] == [2]
    assert [(row["number"], row["check"]) for row in kept(tmp_path)] == [
        (1, "empty text"),
        (3, "special token"),
        (4, "special token"),
        (5, "special token"),
    ]
    assert kept(tmp_path)[1]["row"] == chat("q2", "b<|end|>c")
    assert "dropped 3 rows: 3 special token (3, 4, 5)" in capsys.readouterr().out


def test_special_tokens_in_plain_text_are_said_and_stay(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    name = lines(tmp_path / "d.jsonl", [{"text": "a"}, {"text": "<|user|>q<|end|>"}])
    assert len(check_texts(load(name), tokenizer, DataArguments())["train"]) == 2
    said = "train: 1 special token (2): the tokenizer reads them as special tokens\n"
    assert capsys.readouterr().out.endswith(said)


def test_special_tokens_everywhere_leave_nothing(tmp_path: Path, tokenizer: Any) -> None:
    name = lines(tmp_path / "d.jsonl", BAD[1:])
    with pytest.raises(DatasetError, match="no row of the train split is left"):
        check_texts(load(name), tokenizer, DROP)


def test_words_of_a_template_without_special_tokens(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}### {{ m['role'] }}:\n{{ m['content'] }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant:\n{% endif %}"
    )
    rows = [chat("### user: what?", "fine"), chat("q", "a\n\n### user:\nand then?")]
    name = lines(tmp_path / "d.jsonl", rows)
    with pytest.raises(DatasetError) as caught:
        check_texts(load(name), tokenizer, DataArguments())
    assert f"{name} row 2:" in str(caught.value)
    assert "1 row fails this check (2)" in str(caught.value)


def test_a_template_of_bare_turns_marks_nothing(tmp_path: Path, tokenizer: Any) -> None:
    """A blank line or "A: " between turns stands in many a text."""
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] }}: {{ m['content'] }}\n\n{% endfor %}"
    )
    name = lines(tmp_path / "d.jsonl", [chat("q", "one\n\na: two")])
    assert len(check_texts(load(name), tokenizer, DataArguments())["train"]) == 1


def test_pairs_of_a_ranking_with_a_special_token_count_as_one_row(
    tmp_path: Path, tokenizer: Any
) -> None:
    row = {"prompt": [user("q")], "completions": ["a", "b<|end|>", "c"], "ranks": [1, 2, 3]}
    splits = load(lines(tmp_path / "d.jsonl", [row]), kind="preference")
    assert len(splits["train"]) == 3
    with pytest.raises(DatasetError, match=r"1 row fails this check \(1\)"):
        check_texts(splits, tokenizer, DataArguments())
    left = check_texts(splits, tokenizer, DROP)["train"].to_list()
    assert [(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in left] == [
        ("a", "c")
    ]


def test_lengths_beyond_the_limit_are_counted(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    # digits are a token each; a turn costs its speaker and <|end|>
    rows = [chat("1" * p, "2" * c) for p, c in [(5, 5), (5, 6), (10, 1), (16, 1), (20, 20)]]
    name = lines(tmp_path / "d.jsonl", rows)
    lengths = [
        len(tokenizer.apply_chat_template(r["prompt"] + r["completion"])["input_ids"]) for r in rows
    ]
    assert lengths == [14, 15, 15, 21, 44]
    check_texts(load(name), tokenizer, DataArguments(), max_length=14)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "train: 4 of 5 rows, 80.0%, are longer than `max_length` 14 tokens and will be truncated; "
        "2 of them are left out, because the prompt fills it"
    )
    check_texts(load(name), tokenizer, DataArguments(), max_length=44)
    assert "max_length" not in capsys.readouterr().out
    with pytest.raises(DatasetError, match="the shortest has 8 tokens and `max_length` is 8"):
        check_texts(load(name), tokenizer, DataArguments(), max_length=8)


def test_lengths_of_pairs_are_those_of_the_longer_answer(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = {"prompt": "12", "chosen": "3", "rejected": "3" * 20}
    name = lines(tmp_path / "d.jsonl", [pair, pair | {"rejected": "4"}])
    check_texts(load(name, kind="preference"), tokenizer, DataArguments(), max_length=20)
    assert "train: 1 of 2 rows, 50.0%, are longer" in capsys.readouterr().out


def test_lost_bytes_are_said(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    name = lines(tmp_path / "d.jsonl", [chat("q", "a"), chat("caf\ufffd", "b")])
    check_texts(load(name), tokenizer, DataArguments())
    assert "train: 1 of 2 rows contain U+FFFD (2)" in capsys.readouterr().out


def test_a_line_that_is_not_utf8_is_named_and_droppable(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    good = json.dumps({"prompt": "q", "completion": "a"}).encode()
    file.write_bytes(good + b'\n{"prompt": "caf\xe9", "completion": "b"}\n' + good)
    with pytest.raises(DatasetError, match="row 2 of 3: line 2 is not UTF-8 text at byte 16"):
        load(str(file))
    assert len(load(str(file), drop_bad_rows=True, folder=tmp_path)["train"]) == 2
    (entry,) = kept(tmp_path)
    assert entry == {
        "place": str(file),
        "number": 2,
        "check": "unreadable",
        "reason": "line 2 is not UTF-8 text at byte 16",
        "row": '{"prompt": "caf\\xe9", "completion": "b"}',
    }


@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_a_record_of_csv_that_is_not_utf8_is_named_and_droppable(
    tmp_path: Path, ending: str
) -> None:
    content = b'prompt,completion\n"q\n1",a\ncaf\xe9,b\nq3,c\n'
    file = tmp_path / f"d.{ending}"
    file.write_bytes(gzip.compress(content) if ending == "csv.gz" else content)
    with pytest.raises(DatasetError, match="row 2 of 3: line 4 is not UTF-8 text; save the file"):
        load(str(file))
    splits = load(str(file), drop_bad_rows=True, folder=tmp_path)
    assert splits["train"]["prompt"][:] == ["q\n1", "q3"]
    (entry,) = kept(tmp_path)
    assert (entry["number"], entry["check"], entry["row"]) == (2, "unreadable", "caf\\xe9,b")
    assert list(stream_rows(file)) == read_rows(file)


def test_rows_that_are_still_being_written_are_not_read(tmp_path: Path) -> None:
    lines(tmp_path / "train.jsonl", [{"prompt": "q"}])
    manifest = {"schema": 1, "recipe": "label", "state": "running"}
    (tmp_path / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(DatasetError, match="the run that writes these rows has not finished"):
        load(str(tmp_path), kind="prompt-only")
    (tmp_path / "run.json").write_text(json.dumps(manifest | {"state": "finished"}))
    load(str(tmp_path), kind="prompt-only")


def test_dropped_rows_are_those_of_the_last_run(tmp_path: Path) -> None:
    bad = lines(tmp_path / "bad.jsonl", [{"prompt": "q"}, {"prompt": "\ud800"}, {"prompt": "é"}, 7])
    load(bad, kind="prompt-only", drop_bad_rows=True, folder=tmp_path)
    assert [(row["number"], row["row"]) for row in kept(tmp_path)] == [
        (2, {"prompt": "\ud800"}),
        (4, 7),
    ]
    load(lines(tmp_path / "good.jsonl", [{"prompt": "q"}]), kind="prompt-only", folder=tmp_path)
    assert not (tmp_path / DROPPED_FILE).exists()


def test_repeats_are_said_and_dropped_where_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": p, "completion": c, "id": i} for i, (p, c) in enumerate(["qa", "qb", "qa"])]
    name = lines(tmp_path / "d.jsonl", rows)
    assert len(load(name)["train"]) == 3
    assert capsys.readouterr().out == (
        f"{name}: prompt-completion (by its columns prompt, completion), 3 rows -> "
        "prompt-completion (train 3); columns not read: id; 1 train row duplicates an earlier one "
        "(3), kept unless `drop_duplicates: true` is set\n"
    )
    splits = load(name, drop_duplicates=True, folder=tmp_path)
    assert splits["train"].to_list() == [
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "completion": "b"},
    ]
    (entry,) = kept(tmp_path)
    assert (entry["number"], entry["reason"], entry["row"]) == (3, "it duplicates row 1", rows[2])


def test_repeats_of_a_ranking_are_whole_rows(tmp_path: Path) -> None:
    row = {"prompt": "q", "completions": ["a", "b", "c"], "ranks": [1, 2, 3]}
    other = row | {"ranks": [1, 3, 2]}
    name = lines(tmp_path / "d.jsonl", [row, other, row])
    assert len(load(name, kind="preference")["train"]) == 9
    assert len(load(name, kind="preference", drop_duplicates=True)["train"]) == 6


@pytest.mark.parametrize(
    ("kind", "rows", "said"),
    [
        (
            "preference",
            [
                {"prompt": "q", "chosen": "a", "rejected": "b"},
                {"prompt": "q", "chosen": "b", "rejected": "a"},
                {"prompt": "r", "chosen": "b", "rejected": "a"},
            ],
            "; 1 pairs also occur with chosen and rejected swapped\n",
        ),
        (
            "unpaired",
            [
                {"prompt": "q", "completion": "a", "label": True},
                {"prompt": "q", "completion": "a", "label": False},
                {"prompt": "q", "completion": "b", "label": False},
            ],
            "; 1 completions are labelled both good and bad\n",
        ),
    ],
)
def test_contradictions_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, rows: list[Any], said: str
) -> None:
    assert len(load(lines(tmp_path / "d.jsonl", rows), kind=kind)["train"]) == 3
    assert capsys.readouterr().out.endswith(said)
