"""Loading: sources, splits, options, the printed summary, and the error for each mistake."""

import gzip
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trl.scripts.utils import DatasetConfig, DatasetMixtureConfig, ScriptArguments

from tests.data.helpers import assistant, load, pairs, user, write_rows
from toolkit.data import check_source
from toolkit.data.splits import hold_out
from toolkit.errors import DatasetError

# without a time stamp: these bytes are part of test names, which must be equal in all workers
CUT_GZIP = gzip.compress(b'{"prompt": "q"}' * 99, mtime=0)[:-12]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a temporary cache for the hub's loader."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def test_jsonl_prints_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = write_rows(tmp_path / "d.jsonl", pairs(3))
    splits = load(name)
    assert {k: v.to_list() for k, v in splits.items()} == {"train": pairs(3)}
    line = f"{name}: prompt-completion (by its columns prompt, completion), 3 rows -> "
    line += "prompt-completion (train 3)\n"
    assert capsys.readouterr().out == line


def dialogue(name: str, turns: int) -> dict[str, Any]:
    return {"messages": [(assistant if i % 2 else user)(f"{name} {i}") for i in range(2 * turns)]}


def test_dialogues_become_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [dialogue("a", 1), dialogue("b", 3), dialogue("c", 2), dialogue("c", 2)]
    name = write_rows(tmp_path / "d.jsonl", rows)
    splits = load(name, turns="all", drop_duplicates=True)
    assert [len(row["prompt"]) for row in splits["train"]] == [1, 1, 3, 5, 1, 3]
    assert [o.number for o in splits.origins["train"]] == [1, 2, 2, 2, 3, 3]
    assert splits["train"].column_names == ["prompt", "completion"]
    assert capsys.readouterr().out == (
        f"{name}: messages (by its columns messages), 4 rows -> prompt-completion (train 6); "
        "4 dialogues became 8 examples, one for each assistant turn; "
        "1 train row duplicates an earlier one (4), dropped\n"
    )
    assert len(load(name, turns="last")["train"]) == 4
    assert " became " not in capsys.readouterr().out


def test_dialogue_stays_in_one_split(tmp_path: Path) -> None:
    names = [write_rows(tmp_path / f"{n}.jsonl", [dialogue(f"{n}{i}", 3) for i in range(20)])
             for n in "ab"]  # fmt: skip
    sources = [{"dataset_name": name} for name in names]
    for options in ({"name": names[0]}, {"sources": sources}):
        splits = load(**options, turns="all", mixture={"test_split_size": 0.3})
        train, test = (
            {row["prompt"][0]["content"] for row in splits[s]} for s in ("train", "test")
        )
        assert not train & test
        assert len(train | test) == 20 * (1 if "name" in options else 2)
        assert len(splits["train"]) == 3 * len(train)
        assert len(splits["test"]) == 3 * len(test) > 0


def test_all_file_types_give_the_same_rows(tmp_path: Path) -> None:
    from datasets import Dataset

    rows = [{"prompt": 'é\u2028, "x"', "completion": "None"}, {"prompt": "b\nc", "completion": "0"}]
    raw = write_rows(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.jsonl").write_text(
        "\ufeff" + "\n\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8"
    )
    (tmp_path / "c.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "d.json").write_text(Path(raw).read_text())
    (tmp_path / "e.csv").write_text(
        'prompt,completion\r\n"é\u2028, ""x""",None\r\n"b\nc",0\r\n', encoding="utf-8"
    )
    Dataset.from_list(rows).to_parquet(tmp_path / "f.parquet")
    for file in sorted(tmp_path.glob("[a-f].*")):
        (tmp_path / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    files = sorted(tmp_path.iterdir())
    assert len(files) == 12
    for file in files:
        assert load(str(file))["train"].to_list() == rows, file.name


def test_folder_has_splits_shards_and_other_files(tmp_path: Path) -> None:
    write_rows(tmp_path / "train-00000-of-00002.jsonl", pairs(2))
    write_rows(tmp_path / "train-00001-of-00002.jsonl", pairs(2, start=2))
    write_rows(tmp_path / "test.jsonl", pairs(1, start=9))
    write_rows(tmp_path / "valid.jsonl", pairs(1, start=7))
    (tmp_path / "README.md").write_text("about")
    splits = load(str(tmp_path))
    assert splits["train"].to_list() == pairs(4)
    assert splits["test"].to_list() == pairs(1, start=9)
    splits = load(str(tmp_path), script={"dataset_test_split": "valid"})
    assert splits["test"].to_list() == pairs(1, start=7)


def test_folder_without_split_names_is_all_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "b.jsonl", pairs(1, start=1))
    write_rows(tmp_path / "a.jsonl", pairs(1))
    assert load(str(tmp_path))["train"].to_list() == pairs(2)
    assert capsys.readouterr().out.endswith("(train 2); the train rows are from a.jsonl, b.jsonl\n")
    splits = load(str(tmp_path), script={"dataset_test_split": "b"})
    assert splits["train"].to_list() == pairs(1)
    assert splits["test"].to_list() == pairs(1, start=1)


def test_split_names_of_files_ignore_case(tmp_path: Path) -> None:
    write_rows(tmp_path / "Train.jsonl", pairs(2))
    write_rows(tmp_path / "TEST.jsonl", pairs(1, start=9))
    splits = load(str(tmp_path))
    assert splits["train"].to_list() == pairs(2)
    assert splits["test"].to_list() == pairs(1, start=9)


def test_two_files_of_one_split_raise(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.json", pairs(1))
    write_rows(tmp_path / "train.jsonl", pairs(1))
    with pytest.raises(DatasetError, match=r"train.json and train.jsonl are both split 'train'"):
        load(str(tmp_path))


def test_max_rows_uses_first_rows_of_each_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "train-0-of-2.jsonl", pairs(3))
    write_rows(tmp_path / "train-1-of-2.jsonl", pairs(3, start=3))
    write_rows(tmp_path / "test.jsonl", pairs(1, start=9))
    splits = load(str(tmp_path), max_rows=4)
    assert splits["train"].to_list() == pairs(4)
    assert len(splits["test"]) == 1
    assert "the first 5 of 7 rows -> prompt-completion (train 4, test 1)" in capsys.readouterr().out


def test_hold_out_keeps_prompts_apart_and_uses_seed(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i % 20}", "completion": f"a{i}"} for i in range(60)]
    name = write_rows(tmp_path / "d.jsonl", rows)
    options = {"test_split_size": 0.1}
    first, again, other = (load(name, mixture=options, seed=s) for s in (0, 0, 1))
    train, test = (first[split].to_list() for split in ("train", "test"))
    assert (len(train), len(test)) == (54, 6)  # 2 of 20 prompts, with three rows each
    assert not {r["prompt"] for r in train} & {r["prompt"] for r in test}
    assert sorted(map(str, train + test)) == sorted(map(str, rows))
    assert train == [r for r in rows if r in train]  # the order is kept
    assert again["test"].to_list() == test
    assert other["test"].to_list() != test


def test_hold_out_ignores_the_order_of_rows() -> None:
    rows = pairs(10)
    train, test = hold_out(rows, 3, seed=0, place="x")
    assert (len(train), len(test)) == (7, 3)
    _, again = hold_out(rows[::-1], 3, seed=0, place="x")
    assert [rows[::-1][i] for i in again] == [rows[i] for i in reversed(test)]


def test_hold_out_is_never_empty() -> None:
    rows = [{"prompt": p, "completion": str(i)} for p in "ab" for i in range(5)]
    train, test = hold_out(rows, 0.1, seed=0, place="x")
    assert (len(train), len(test)) == (5, 5)


@pytest.mark.parametrize("size", [0.0, -1.0, 10.0, 1.0e9, 0.99, 2.5, math.nan, math.inf])
def test_hold_out_rejects_impossible_size(size: float) -> None:
    with pytest.raises(DatasetError, match="`test_split_size` must be a share"):
        hold_out(pairs(10), size, seed=0, place="x")


def test_hold_out_rejects_a_single_prompt() -> None:
    rows = [{"prompt": "q", "completion": str(i)} for i in range(4)]
    with pytest.raises(DatasetError, match="all rows have the same prompt"):
        hold_out(rows, 0.5, seed=0, place="x")


def test_own_test_split_is_used_and_overlap_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "train.jsonl", pairs(4))
    write_rows(tmp_path / "test.jsonl", pairs(2, start=3))
    splits = load(str(tmp_path), mixture={"test_split_size": 0.5})
    assert (len(splits["train"]), len(splits["test"])) == (4, 2)
    assert "; 1 test rows have a prompt of the train split" in capsys.readouterr().out


def test_malformed_rows_raise_or_are_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "d.jsonl"
    write_rows(
        file, [*pairs(2), {"prompt": "q", "completion": ""}, {"prompt": 5, "completion": "a"}]
    )
    file.write_text(file.read_text() + '{"prompt": "cut o\n\n[1]\n')
    with pytest.raises(DatasetError) as caught:
        load(str(file))
    assert str(caught.value) == (
        f'{file} row 3 of 6: "completion" must be non-empty text, got "" (str).\n'
        '  row: {"prompt": "q", "completion": ""}\n'
        "  1 row fails this check (3).\n"
        "  3 rows fail other checks: 1 not text (4), 1 unreadable (5), 1 not a row (6). "
        "Fix them, or set `drop_bad_rows: true`."
    )
    assert load(str(file), drop_bad_rows=True)["train"].to_list() == pairs(2)
    assert capsys.readouterr().out == (
        f"{file}: dropped 4 of 6 rows: "
        "1 empty text (3), 1 not text (4), 1 unreadable (5), 1 not a row (6)\n"
        f"{file}: prompt-completion (by its columns prompt, completion), 6 rows -> "
        "prompt-completion (train 2); 4 malformed rows dropped\n"
    )


def test_line_that_is_not_json_raises(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"prompt": "q"}\n\n{"prompt": }\n')
    with pytest.raises(DatasetError) as caught:
        load(str(file), kind="prompt-only")
    assert f"{file} row 2 of 2: line 3 is not JSON (Expecting value at column 12)." in str(
        caught.value
    )


def test_csv_record_of_wrong_length_raises(tmp_path: Path) -> None:
    file = tmp_path / "d.csv"
    file.write_text("prompt,completion\na,b\nc,d,e\n")
    with pytest.raises(
        DatasetError, match=r"row 2 of 2: line 3 has 3 fields sep.*, the header has 2"
    ):
        load(str(file))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.json", b'[{"prompt": "q"},\n{"prompt"]', "d.json line 2: not JSON"),
        ("d.json", b"3", "expected a list of rows, got int"),
        ("d.json", b"[" * 100_000, "not JSON"),
        ("d.jsonl", b"\xff\xfd", "row 1: line 1 is not UTF-8 text at byte 1"),
        ("d.json", b'["a",\n"\xff"]', "line 2: not UTF-8 text at byte 8 of the file"),
        (
            "d.csv",
            b"prompt\n\xe9t\xe9\n",
            "row 1: line 2 is not UTF-8 text; save the file as UTF-8",
        ),
        ("d.csv", b"prompt,\xe9\na,b\n", "line 1: not UTF-8 text; save the file as UTF-8"),
        ("d.jsonl.gz", b"plain", "cannot read the file"),
        ("d.jsonl.gz", CUT_GZIP, "cannot read the file"),
        ("d.parquet", b"plain", "not a Parquet file"),
        ("d.csv", b"prompt,prompt\na,b\n", "the header repeats a column"),
        ("d.jsonl", b'{"prompt": "a", "prompt": "b"}\n', 'an object has the key "prompt" twice'),
        ("d.json", b'[{"prompt": "a", "prompt": "b"}]', 'an object has the key "prompt" twice'),
        ("d.csv", b'prompt\n"a', "not CSV"),
        ("d.jsonl", b"", "the dataset has no rows"),
        ("d.csv", b"prompt\n", "the dataset has no rows"),
        ("d.jsonl", b"[\n 1,\n]", ": not JSON ("),
        ("d.jsonl", b'[\n{,\n{"prompt": "q"}\n]', "d.jsonl line 2: not JSON"),
        ("d.txt", b"x", "must end in .jsonl, .ndjson, .json, .csv, .tsv, .parquet or .gz"),
    ],
)
def test_broken_file_raises_one_error(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        load(str(tmp_path / name), kind="prompt-only")
    assert message in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_metadata_of_mixed_types_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = write_rows(tmp_path / "a.jsonl", [{"prompt": "q", "x": 1}, {"prompt": "r", "y": "b"}])
    assert load(name, kind="prompt-only")["train"].to_list() == [
        {"prompt": "q", "x": 1, "y": None},
        {"prompt": "r", "x": None, "y": "b"},
    ]
    pair = {"prompt": "q", "chosen": "a", "rejected": "b", "id": 1}
    rows = [pair | {"x": 1}, pair | {"x": {"y": [2]}, "chosen": "c"}]
    name = write_rows(tmp_path / "b.jsonl", rows)
    for kind in ("prompt-completion", "preference", "unpaired", "prompt-only"):
        assert "x" not in load(name, kind=kind)["train"].column_names
    output = capsys.readouterr().out
    assert f'{name}: column "x" does not fit into a table: its values are dict, int; ' in output
    assert load(name, kind="preference")["train"].column_names == [*pair]


def test_dataset_format_overrides_detection(tmp_path: Path) -> None:
    row = {"prompt": "q", "completion": "a", "instruction": "i", "output": "o"}
    name = write_rows(tmp_path / "d.jsonl", [row])
    assert load(name)["train"][0] == {"prompt": "q", "completion": "a"}
    assert load(name, dataset_format="alpaca")["train"][0] == {
        "prompt": [{"role": "user", "content": "i"}],
        "completion": [{"role": "assistant", "content": "o"}],
    }
    with pytest.raises(DatasetError, match="unknown dataset_format 'alpacca'; known: sharegpt"):
        load(name, dataset_format="alpacca")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": None}, "no dataset: set `dataset_name`"),
        ({"mixture": {"streaming": True}}, "`streaming` is not supported; set `dataset_streaming`"),
        ({"script": {"dataset_config": "main"}}, "is only for hub datasets; remove it"),
        ({"script": {"dataset_train_split": "x"}}, "no split 'x' (`dataset_train_split`)"),
        ({"script": {"dataset_test_split": "x"}}, "it has train"),
        ({"script": {"dataset_test_split": "train"}}, "no data is left to train on"),
        ({"kind": "preference"}, "its format is prompt-completion"),
        ({"mixture": {"test_split_size": 3.0}}, "less than the 3 prompts, got 3"),
    ],
)
def test_unusable_option_raises(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    name = write_rows(tmp_path / "d.jsonl", pairs(3))
    with pytest.raises(DatasetError) as caught:
        load(**{"name": name, **options})
    assert message in str(caught.value)


def test_dataset_of_only_ties_raises(tmp_path: Path) -> None:
    row = {"prompt": "q", "completions": ["a", "b"], "ranks": [1, 1]}
    message = "the train split has no usable row: all 2 rows contain only ties"
    with pytest.raises(DatasetError, match=message):
        load(write_rows(tmp_path / "d.jsonl", [row, row]), kind="preference")


def test_unknown_kind_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="kind must be one of"):
        load("x.jsonl", kind="sft")


def test_trl_mixture_is_held_out_by_prompt(tmp_path: Path) -> None:
    a = write_rows(tmp_path / "a.jsonl", pairs(6) + pairs(6))
    b = write_rows(tmp_path / "b.jsonl", pairs(8, start=20))
    entries = [DatasetConfig(path="json", data_files=f) for f in (a, b)]
    splits = load(mixture={"datasets": entries, "test_split_size": 0.25})
    train, test = (splits[split].to_list() for split in ("train", "test"))
    assert len({r["prompt"] for r in test}) == 4  # a quarter of 14 prompts, rounded
    assert len({r["prompt"] for r in train} - {r["prompt"] for r in test}) == 10
    assert len(train) + len(test) == 20


def test_broken_trl_mixture_raises_one_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("{")
    with pytest.raises(DatasetError) as caught:
        load(mixture={"datasets": [DatasetConfig(path="json", data_files=str(file))]})
    assert str(caught.value).startswith("mixture of json: cannot load this dataset")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("world:demonstrations", "prompt-completion"),
        ("world:prompts", "prompt-only"),
        ("world:comparisons", "preference"),
    ],
)
def test_world_datasets_load(name: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    splits = load(name, kind=kind, max_rows=20)
    assert set(splits) == {"train", "test"}
    assert all(isinstance(row["prompt"], list) for rows in splits.values() for row in rows)
    output = capsys.readouterr().out
    assert output.startswith(f"{name}: {kind} (by its columns ")
    assert "), the first 40 of " in output


def test_unknown_world_dataset_raises() -> None:
    with pytest.raises(DatasetError, match="world:nothing"):
        load("world:nothing")


@pytest.mark.parametrize("name", ["data/gone.jsonl", "../gone", "gone.json.gz", "/gone/far/away"])
def test_missing_file_raises(name: str) -> None:
    with pytest.raises(DatasetError, match=f"^{re.escape(name)}: no such file or folder$"):
        check_source(ScriptArguments(dataset_name=name), DatasetMixtureConfig())


def test_missing_file_of_a_trl_mixture_raises() -> None:
    entries = [DatasetConfig(path="json", data_files={"train": ["*.jsonl", "gone.jsonl"]})]
    with pytest.raises(DatasetError, match=r"^gone\.jsonl: no such file"):
        check_source(ScriptArguments(), DatasetMixtureConfig(datasets=entries))


def test_empty_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no data file"):
        check_source(ScriptArguments(dataset_name=str(tmp_path)), DatasetMixtureConfig())


def test_import_loads_no_heavy_library() -> None:
    code = (
        "import sys, toolkit.data\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'pyarrow', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr.strip()) == ("[]", "")
