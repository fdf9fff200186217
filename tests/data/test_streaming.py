"""Streams: same rows as a whole reading, checked one by one; options that cannot be streamed."""

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from trl.scripts.utils import DatasetConfig, DatasetMixtureConfig, ScriptArguments

from tests.data.helpers import assistant, chat, pairs, user, write_rows
from toolkit.data import check_source, check_texts, load_splits
from toolkit.data.row_errors import DROPPED_FILE
from toolkit.data.streaming import Stream, first_rows, open_stream
from toolkit.errors import DatasetError
from toolkit.options.arguments import DataArguments, SourceArguments

STREAMED = {"dataset_streaming": True}


@pytest.fixture
def stream_of(tokenizer: Any) -> Any:
    """The stream that a recipe opens, and the splits of its first rows."""

    def make(
        name: Any,
        *,
        test: float | None = None,
        folder: Path | None = None,
        kind: str = "prompt-completion",
        **run_args: Any,
    ) -> tuple[Stream, Any]:
        script = ScriptArguments(dataset_name=str(name), **STREAMED)
        mixture, data_args = DatasetMixtureConfig(test_split_size=test), DataArguments(**run_args)
        splits = load_splits(script, mixture, data_args, kind=kind, seed=0, folder=folder)
        splits = check_texts(splits, tokenizer, data_args, folder=folder)
        opened = open_stream(script, mixture, data_args, splits, tokenizer, folder=folder)
        return opened, splits

    return make


def test_stream_gives_all_rows_of_a_file(tmp_path: Path, stream_of: Any) -> None:
    from datasets import Dataset

    rows = [{"prompt": f"é\u2028 {i}", "completion": "a\nb"} for i in range(600)]
    raw = Path(write_rows(tmp_path / "a.jsonl", rows))
    (tmp_path / "b.jsonl").write_bytes(
        b"\xef\xbb\xbf" + raw.read_bytes().replace(b"\n", b"\r\n\r\n")
    )
    (tmp_path / "c.json").write_text(json.dumps(rows))
    Dataset.from_list(rows).to_csv(tmp_path / "d.csv")
    Dataset.from_list(rows).to_parquet(tmp_path / "e.parquet")
    for file in sorted(tmp_path.glob("[a-e].*")):
        (tmp_path / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    files = sorted(tmp_path.iterdir())
    assert len(files) == 10
    for file in files:
        stream, splits = stream_of(file)
        assert list(stream.rows()) == rows, file.name
        assert splits["train"].to_list() == rows
        assert stream.read == 600


def test_stream_reads_two_answers_and_their_winner(tmp_path: Path, stream_of: Any) -> None:
    answers = {"response_a": "Blue.", "response_b": "Green."}
    rows = [{"prompt": f"q{i}", **answers, "winner": "ab"[i % 2]} for i in range(1500)]
    stream, splits = stream_of(write_rows(tmp_path / "d.jsonl", rows), kind="preference")
    expected = ["Blue.", "Green."] * 750
    assert [row["chosen"] for row in stream.rows()] == expected
    assert list(splits["train"]["chosen"]) == expected[:1000]


def test_stream_reads_only_requested_rows(tmp_path: Path, stream_of: Any) -> None:
    file = tmp_path / "d.jsonl.gz"
    content = "".join(json.dumps(row) + "\n" for row in pairs(20_000)).encode()
    file.write_bytes(gzip.compress(content)[:-8])
    stream, splits = stream_of(file)
    assert len(splits["train"]) == 1000
    assert list(itertools.islice(stream.rows(), 1200)) == pairs(1200)
    with pytest.raises(DatasetError, match=r"d\.jsonl\.gz: cannot read the file"):
        list(stream.rows())


def test_stream_has_no_prompt_of_the_test_split(tmp_path: Path, stream_of: Any) -> None:
    rows = [{"prompt": f"q{i % 700}", "completion": f"a{i}"} for i in range(2100)]
    name = write_rows(tmp_path / "d.jsonl", rows)
    stream, splits = stream_of(name, test=0.1)
    streamed = list(stream.rows())
    held = {row["prompt"] for row in splits["test"]}
    # in the first 1000 rows 300 prompts occur twice and 400 once
    assert len(splits["test"]) + len(splits["train"]) == 1000
    assert len(held) == 70
    assert streamed == [row for row in rows if row["prompt"] not in held]
    assert stream.held_out == 2100 - len(streamed) == 3 * len(held)
    assert f"{3 * len(held)} left out because the test split has their prompts" in stream.summary()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"prompt": "q"}', '"completion" is missing'),
        ("{", "line 1201 is not JSON"),
        (json.dumps({"prompt": "q", "completion": "a"}), "the prompt must be messages"),
        (json.dumps(chat("q", "<|user|>")), "must not contain the chat template's"),
    ],
)
def test_later_malformed_row_raises_or_is_dropped_once(
    tmp_path: Path, stream_of: Any, bad: str, message: str, tokenizer: Any
) -> None:
    bad = bad.replace("<|user|>", str(tokenizer.eos_token))
    good = [json.dumps(chat(f"q{i}", "a")) for i in range(1250)]
    file = tmp_path / "d.jsonl"
    file.write_text("\n".join([*good[:1200], bad, *good[1200:]]))
    stream, _ = stream_of(file)
    with pytest.raises(DatasetError) as caught:
        list(stream.rows())
    assert f"{file} row 1201: " in str(caught.value)
    assert message in str(caught.value)
    stream, _ = stream_of(file, drop_bad_rows=True, folder=tmp_path)
    for _ in range(2):
        assert len(list(stream.rows())) == 1250
    (entry,) = map(json.loads, (tmp_path / DROPPED_FILE).read_text().splitlines())
    assert (entry["number"], entry["place"]) == (1201, str(file))
    assert stream.summary().endswith(f" dropped after the first 1000: 1 {entry['check']} (1201)")


def test_early_malformed_row_raises_before_training(tmp_path: Path, stream_of: Any) -> None:
    name = write_rows(
        tmp_path / "d.jsonl", [*pairs(3), {"prompt": "q", "completion": ""}, *pairs(2)]
    )
    with pytest.raises(DatasetError, match='row 4: "completion" must be non-empty text'):
        stream_of(name)
    stream, splits = stream_of(name, drop_bad_rows=True, folder=tmp_path)
    assert len(splits["train"]) == len(list(stream.rows())) == 5
    assert len((tmp_path / DROPPED_FILE).read_text().splitlines()) == 1


def test_stream_of_rankings_with_columns_and_max_rows(tmp_path: Path, stream_of: Any) -> None:
    rows = [{"q": f"q{i}", "completions": ["a", "b", "c"], "ranks": [2, 1, 2]} for i in range(9)]
    name = write_rows(tmp_path / "d.jsonl", rows)
    stream, _ = stream_of(name, kind="preference", columns={"q": "prompt"}, max_rows=2)
    assert list(stream.rows()) == [
        {"prompt": f"q{i}", "chosen": "b", "rejected": worse} for i in range(2) for worse in "ac"
    ]


def test_table_is_shuffled_by_the_seed(tmp_path: Path, stream_of: Any) -> None:
    rows = pairs(1500)
    stream, _ = stream_of(write_rows(tmp_path / "d.jsonl", rows))
    first, again, other = (list(stream.table(seed=s).take(3000)) for s in (0, 0, 1))
    assert first == again != other
    passes = first[:1500], first[1500:]
    assert passes[0] != rows
    assert passes[0] != passes[1]
    assert [sorted(map(str, one)) for one in passes] == [sorted(map(str, rows))] * 2
    assert len(first_rows(stream.table(seed=0))) == 1000
    assert stream.read == 1500  # not the sum over all iterations


@pytest.mark.parametrize("option", ["sources", "datasets", "drop_duplicates"])
def test_option_that_needs_all_rows_raises(option: str) -> None:
    entries = [DatasetConfig(path="json", data_files="a.jsonl")]
    mixture = DatasetMixtureConfig(datasets=entries if option == "datasets" else [])
    options: dict[str, Any] = {
        "sources": {"sources": [SourceArguments("a.jsonl")]},
        "drop_duplicates": {"drop_duplicates": True},
    }.get(option, {})
    script = ScriptArguments(dataset_name="a.jsonl", **STREAMED)
    with pytest.raises(
        DatasetError,
        match=f"`dataset_streaming` does not work with `{option}`, which needs all rows at once",
    ):
        check_source(script, mixture, DataArguments(**options))


def test_later_stream_rows_have_the_format_of_the_first(tmp_path: Path, stream_of: Any) -> None:
    rows = [
        {
            "system": "Be brief." if i % 2 else None,
            "prompt": f"Question {i}?",
            "completion": f"Question {i}? Answer {i}.",
        }
        for i in range(1003)
    ]
    name = write_rows(tmp_path / "d.jsonl", rows)
    stream = list(stream_of(name)[0].rows())
    assert len(stream) == 1003
    for i in (0, 1001):
        system = [{"role": "system", "content": "Be brief."}] if i % 2 else []
        assert stream[i] == {
            "prompt": [*system, user(f"Question {i}?")],
            "completion": [assistant(f"Answer {i}.")],
        }
