"""Checks of well-formed rows: template marks, lengths, duplicates, and the file of dropped rows."""

import copy
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, normalizers

from tests.data.helpers import chat, load, user, write_rows
from toolkit.data import check_texts
from toolkit.data.encoding import encode_prompt
from toolkit.data.files import read_rows, stream_rows
from toolkit.data.row_errors import DROPPED_FILE
from toolkit.errors import DatasetError
from toolkit.options.arguments import DataArguments


def dropped_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / DROPPED_FILE).read_text().splitlines()]


DROP = DataArguments(drop_bad_rows=True)
BAD = [chat("q1", "a"), chat("q2", "b<|end|>c"), chat("q3", "<|pad|>"), chat("<|user|>q4", "d")]


def test_special_tokens_in_messages_raise(tmp_path: Path, tokenizer: Any) -> None:
    name = write_rows(tmp_path / "d.jsonl", BAD)
    with pytest.raises(DatasetError) as caught:
        check_texts(load(name), tokenizer, DataArguments())
    assert str(caught.value) == (
        f'{name} row 2: "completion" message 1 must not contain the chat template\'s "<|end|>" (str), '
        'got "b<|end|>c" (str).\n'
        '  row: {"prompt": [{"role": "user", "content": "q2"}], '
        '"completion": [{"role": "assistant", "content": "b<|end|>c"}]}\n'
        "  3 rows fail this check (2, 3, 4). Fix them, or set `drop_bad_rows: true`."
    )


def test_special_tokens_in_messages_drop_rows_to_file(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    name = write_rows(tmp_path / "d.jsonl", [{"prompt": "", "completion": "x"}, *BAD])
    splits = load(name, drop_bad_rows=True, folder=tmp_path)
    checked = check_texts(splits, tokenizer, DROP, folder=tmp_path)
    assert checked["train"].to_list() == [chat("q1", "a")]
    assert [o.number for o in checked.origins["train"]] == [2]
    assert [(row["number"], row["check"]) for row in dropped_rows(tmp_path)] == [
        (1, "empty text"),
        (3, "special token"),
        (4, "special token"),
        (5, "special token"),
    ]
    assert dropped_rows(tmp_path)[1]["row"] == chat("q2", "b<|end|>c")
    assert "dropped 3 rows: 3 special token (3, 4, 5)" in capsys.readouterr().out


def test_special_tokens_in_plain_text_are_reported_and_kept(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    name = write_rows(tmp_path / "d.jsonl", [{"text": "a"}, {"text": "<|user|>q<|end|>"}])
    assert len(check_texts(load(name, texts=True), tokenizer, DataArguments())["train"]) == 2
    line = "train: 1 of 2 rows contain special tokens (2), which are not tokenized as text\n"
    assert capsys.readouterr().out.endswith(line)


def test_marks_of_other_models_chats_are_reported(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": "<|im_start|>user\nq<|im_end|>", "completion": "a [INST]"}
    rows = [{"prompt": "[1] <|q <|end", "completion": "<|user|> a"}, row, row | {"prompt": "q"}]
    splits = load(write_rows(tmp_path / "d.jsonl", rows))
    check_texts(splits, tokenizer, DataArguments())
    line = "train: 2 of 3 rows contain <|im_start|> (2, 3), which is not a token of this tokenizer"
    assert line in capsys.readouterr().out
    tokenizer.name_or_path = ""  # of a base that has embeddings for the next tokens
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = "[INST] {{ messages[0].content }} [/INST]"  # as Llama 2's
    check_texts(splits, tokenizer, DataArguments())
    assert "not a token" not in capsys.readouterr().out


def test_texts_that_the_tokenizer_changes_are_reported(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        chat("q", "if x:\n    y = 1 \ufb01\u4f60"),
        chat("q", "a b"),
        chat("q", "A long answer. B"),
    ]
    splits = load(write_rows(tmp_path / "d.jsonl", rows))
    check_texts(splits, tokenizer, DataArguments())
    assert "the tokenizer changes" not in capsys.readouterr().out
    steps = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    changed = copy.deepcopy(tokenizer)
    changed.backend_tokenizer.normalizer = normalizers.Sequence(steps)
    check_texts(splits, changed, DataArguments())
    line = 'train: the tokenizer changes the text of 2 of the first 3 rows: "if x:\\n    y'
    assert line in capsys.readouterr().out


def test_token_without_embedding_names_the_row(
    tmp_path: Path, tokenizer: Any, tiny_base: Path
) -> None:
    shutil.copytree(tiny_base, tmp_path / "base")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(tmp_path / "base")
    tokenizer = type(tokenizer).from_pretrained(tmp_path / "base")
    rows = [{"prompt": f"q{i}", "completion": "a"} for i in range(2)]
    rows += [{"prompt": "a <image>", "completion": "a"}]
    splits = load(write_rows(tmp_path / "d.jsonl", rows))
    message = 'row 3: "prompt" must not contain the token <image>: the base has no embedding'
    with pytest.raises(DatasetError, match=message):
        check_texts(splits, tokenizer, DataArguments())
    assert len(check_texts(splits, tokenizer, DROP, folder=tmp_path)["train"]) == 2
    for prompt in ("a <image>", [user("a <image>")]):  # in PPO from Python, reports and the app
        with pytest.raises(DatasetError, match="no embedding"):
            encode_prompt(tokenizer, prompt)


def test_special_tokens_in_all_rows_raise(tmp_path: Path, tokenizer: Any) -> None:
    name = write_rows(tmp_path / "d.jsonl", BAD[1:])
    with pytest.raises(DatasetError, match="no row of the train split is left"):
        check_texts(load(name), tokenizer, DROP)


def test_turn_words_of_a_template_are_marks(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}### {{ m['role'] }}:\n{{ m['content'] }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant:\n{% endif %}"
    )
    rows = [chat("### user: what?", "fine"), chat("q", "a\n\n### user:\nand then?")]
    name = write_rows(tmp_path / "d.jsonl", rows)
    with pytest.raises(DatasetError) as caught:
        check_texts(load(name), tokenizer, DataArguments())
    assert f"{name} row 2:" in str(caught.value)
    assert "1 row fails this check (2)" in str(caught.value)


def test_template_with_short_turn_words_has_no_marks(tmp_path: Path, tokenizer: Any) -> None:
    """Many texts contain a blank line or "A: "."""
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] }}: {{ m['content'] }}\n\n{% endfor %}"
    )
    name = write_rows(tmp_path / "d.jsonl", [chat("q", "one\n\na: two")])
    assert len(check_texts(load(name), tokenizer, DataArguments())["train"]) == 1


def test_ranking_with_a_special_token_counts_as_one_row(tmp_path: Path, tokenizer: Any) -> None:
    row = {"prompt": [user("q")], "completions": ["a", "b<|end|>", "c"], "ranks": [1, 2, 3]}
    splits = load(write_rows(tmp_path / "d.jsonl", [row]), kind="preference")
    assert len(splits["train"]) == 3
    with pytest.raises(DatasetError, match=r"1 row fails this check \(1\)"):
        check_texts(splits, tokenizer, DataArguments())
    left = check_texts(splits, tokenizer, DROP)["train"].to_list()
    assert [(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in left] == [
        ("a", "c")
    ]


def test_rows_longer_than_max_length_are_counted(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    # each digit is a token; a turn has two more, its speaker and <|end|>
    rows = [chat("1" * p, "2" * c) for p, c in [(5, 5), (5, 6), (10, 1), (16, 1), (20, 20)]]
    name = write_rows(tmp_path / "d.jsonl", rows)
    lengths = [
        len(tokenizer.apply_chat_template(r["prompt"] + r["completion"])["input_ids"]) for r in rows
    ]
    assert lengths == [14, 15, 15, 21, 44]
    check_texts(load(name), tokenizer, DataArguments(), max_length=14)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "train: 4 of 5 rows, 80.0%, are longer than `max_length` 14 tokens and will be truncated; "
        "2 of them are left out: the prompt alone is too long"
    )
    check_texts(load(name), tokenizer, DataArguments(), max_length=44)
    assert "max_length" not in capsys.readouterr().out
    with pytest.raises(
        DatasetError, match="the shortest prompt has 8 tokens and `max_length` is 8"
    ):
        check_texts(load(name), tokenizer, DataArguments(), max_length=8)


def test_length_of_a_pair_uses_the_longer_completion(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = {"prompt": "12", "chosen": "3", "rejected": "3" * 20}
    name = write_rows(tmp_path / "d.jsonl", [pair, pair | {"rejected": "4"}])
    check_texts(load(name, kind="preference"), tokenizer, DataArguments(), max_length=20)
    assert "train: 1 of 2 rows, 50.0%, are longer" in capsys.readouterr().out


def test_replacement_characters_are_reported(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    name = write_rows(tmp_path / "d.jsonl", [chat("q", "a"), chat("caf\ufffd", "b")])
    check_texts(load(name), tokenizer, DataArguments())
    assert "train: 1 of 2 rows contain U+FFFD (2)" in capsys.readouterr().out


def test_line_that_is_not_utf8_raises_or_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    good = json.dumps({"prompt": "q", "completion": "a"}).encode()
    file.write_bytes(good + b'\n{"prompt": "caf\xe9", "completion": "b"}\n' + good)
    with pytest.raises(DatasetError, match="row 2 of 3: line 2 is not UTF-8 text at byte 16"):
        load(str(file))
    assert len(load(str(file), drop_bad_rows=True, folder=tmp_path)["train"]) == 2
    (entry,) = dropped_rows(tmp_path)
    assert entry == {
        "place": str(file),
        "number": 2,
        "check": "unreadable",
        "reason": "line 2 is not UTF-8 text at byte 16",
        "row": '{"prompt": "caf\\xe9", "completion": "b"}',
    }


@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_csv_record_that_is_not_utf8_raises_or_is_dropped(tmp_path: Path, ending: str) -> None:
    content = b'prompt,completion\n"q\n1",a\ncaf\xe9,b\nq3,c\n'
    file = tmp_path / f"d.{ending}"
    file.write_bytes(gzip.compress(content) if ending == "csv.gz" else content)
    with pytest.raises(DatasetError, match="row 2 of 3: line 4 is not UTF-8 text; save the file"):
        load(str(file))
    splits = load(str(file), drop_bad_rows=True, folder=tmp_path)
    assert splits["train"]["prompt"][:] == ["q\n1", "q3"]
    (entry,) = dropped_rows(tmp_path)
    assert (entry["number"], entry["check"], entry["row"]) == (2, "unreadable", "caf\\xe9,b")
    assert list(stream_rows(file)) == read_rows(file)


def test_rows_of_an_unfinished_run_are_rejected(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{"prompt": "q"}])
    manifest = {"schema": 1, "recipe": "label", "state": "running"}
    (tmp_path / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(DatasetError, match="the run that writes these rows has not finished"):
        load(str(tmp_path), kind="prompt-only")
    (tmp_path / "run.json").write_text(json.dumps(manifest | {"state": "finished"}))
    load(str(tmp_path), kind="prompt-only")


def test_dropped_rows_file_belongs_to_the_last_run(tmp_path: Path) -> None:
    bad = write_rows(
        tmp_path / "bad.jsonl", [{"prompt": "q"}, {"prompt": "\ud800"}, {"prompt": "é"}, 7]
    )
    load(bad, kind="prompt-only", drop_bad_rows=True, folder=tmp_path)
    assert [(row["number"], row["row"]) for row in dropped_rows(tmp_path)] == [
        (2, {"prompt": "\ud800"}),
        (4, 7),
    ]
    load(
        write_rows(tmp_path / "good.jsonl", [{"prompt": "q"}]), kind="prompt-only", folder=tmp_path
    )
    assert not (tmp_path / DROPPED_FILE).exists()


def test_duplicates_are_reported_or_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": p, "completion": c, "id": i} for i, (p, c) in enumerate(["qa", "qb", "qa"])]
    name = write_rows(tmp_path / "d.jsonl", rows)
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
    (entry,) = dropped_rows(tmp_path)
    assert (entry["number"], entry["reason"], entry["row"]) == (
        3,
        "this row duplicates row 1",
        rows[2],
    )


def test_duplicate_rankings_are_whole_rows(tmp_path: Path) -> None:
    row = {"prompt": "q", "completions": ["a", "b", "c"], "ranks": [1, 2, 3]}
    other = row | {"ranks": [1, 3, 2]}
    name = write_rows(tmp_path / "d.jsonl", [row, other, row])
    assert len(load(name, kind="preference")["train"]) == 9
    assert len(load(name, kind="preference", drop_duplicates=True)["train"]) == 6


@pytest.mark.parametrize(
    ("kind", "rows", "line"),
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
def test_contradictions_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, rows: list[Any], line: str
) -> None:
    assert len(load(write_rows(tmp_path / "d.jsonl", rows), kind=kind)["train"]) == 3
    assert capsys.readouterr().out.endswith(line)
