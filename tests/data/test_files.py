"""Files and folders as people have them: saved datasets, subfolders, shards, odd CSV and JSON."""

import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.data.helpers import assistant, load, pairs, user, write_rows
from toolkit.data import check_source
from toolkit.errors import DatasetError

SKY = [{"prompt": "Sky?", "completion": "Blue."}, {"prompt": "Snow?", "completion": "White."}]


def test_saved_datasets_are_read(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    train, test = Dataset.from_list(pairs(3)), Dataset.from_list(pairs(1, start=9))
    train.save_to_disk(tmp_path / "one")
    DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "two")
    assert load(str(tmp_path / "one"))["train"].to_list() == pairs(3)
    splits = load(str(tmp_path / "two"))
    assert splits["train"].to_list() == pairs(3)
    assert splits["test"].to_list() == pairs(1, start=9)
    train_only = load(str(tmp_path / "two" / "train"), script={"dataset_streaming": True})
    assert train_only["train"].to_list() == pairs(3)
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(DatasetError, match="cannot read the saved dataset"):
        load(str(tmp_path / "one"))
    for file in (tmp_path / "two" / "test").iterdir():
        file.unlink()
    with pytest.raises(DatasetError, match=r"names the splits train, test, but the folder of test"):
        load(str(tmp_path / "two"))


@pytest.mark.parametrize("parent", [".", "data"])
def test_subfolders_are_splits(tmp_path: Path, parent: str) -> None:
    for name in ("train", "test", ".cache", "raw"):
        (tmp_path / parent / name).mkdir(parents=True)
    folder = tmp_path / parent
    write_rows(folder / "train" / "0000.jsonl", pairs(2))
    write_rows(folder / "train" / "0001.jsonl", pairs(2, start=2))
    write_rows(folder / "train" / "._0001.jsonl", pairs(1, start=5))
    write_rows(folder / "test" / "0000.jsonl", pairs(1, start=9))
    write_rows(folder / "raw" / "train.jsonl", pairs(1, start=7))
    write_rows(tmp_path / "dataset_infos.json", [{}])
    splits = load(str(tmp_path))
    assert splits["train"].to_list() == pairs(4)
    assert splits["test"].to_list() == pairs(1, start=9)
    write_rows(folder / "train" / "0001.json", pairs(2, start=2))
    with pytest.raises(DatasetError, match=r"0001.json and 0001.jsonl are both split 'train'"):
        load(str(tmp_path))


def test_split_in_a_file_and_a_folder_raises(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    write_rows(tmp_path / "train" / "a.jsonl", pairs(1))
    write_rows(tmp_path / "train.jsonl", pairs(1))
    with pytest.raises(DatasetError, match=r"train.jsonl and train are both split 'train'"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-00000-of-00003", "train-00002-of-00003"], "lacks 1 of its 3 shards (00001-of-0"),
        (["data-00001-of-00002"], "lacks 1 of its 2 shards (00000-of-00002)"),
        (["train-00000-of-00002", "train-00000-of-00001"], "mixes sets of 1 and 2 shards"),
        (["train-1-of-3", "train-3-of-3"], "lacks 1 of its 3 shards (00002-of-00003)"),
    ],
)
def test_incomplete_shards_raise(tmp_path: Path, names: list[str], message: str) -> None:
    for i, name in enumerate(names):
        write_rows(tmp_path / f"{name}.jsonl", pairs(1, start=i))
    with pytest.raises(DatasetError) as caught:
        load(str(tmp_path))
    assert message in str(caught.value)


def test_shard_in_two_formats_raises(tmp_path: Path) -> None:
    for name in ("train-00000-of-00001.jsonl", "train-00000-of-00001.json"):
        write_rows(tmp_path / name, pairs(1))
    with pytest.raises(DatasetError, match="are both split 'train'"):
        load(str(tmp_path))


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.jsonl.gz", "d.ndjson"])
@pytest.mark.parametrize(
    "text",
    [
        "[\n" + ",\n".join(map(json.dumps, SKY)) + "\n]\n",
        json.dumps(SKY),
        "\ufeff" + json.dumps(SKY, indent=2),
        "\n\n".join(json.dumps(row, indent=2) for row in SKY),
        json.dumps({"version": 1, "data": SKY}, indent=1),
        ",\n".join(map(json.dumps, SKY)) + ",\n",
    ],
    ids=["list", "one line", "indented", "objects", "data", "commas"],
)
def test_json_over_several_lines_is_read(tmp_path: Path, text: str, name: str, drop: bool) -> None:
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert load(str(tmp_path / name), drop_bad_rows=drop)["train"].to_list() == SKY


def test_single_indented_object_is_one_row(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps(SKY[0], indent=2))
    assert load(str(file))["train"].to_list() == SKY[:1]


def test_splits_in_one_json_file_raise(tmp_path: Path) -> None:
    file = tmp_path / "d.json"
    file.write_text(json.dumps({"train": SKY, "test": SKY}))
    with pytest.raises(
        DatasetError, match=r"holds the splits test, train; write each split into its own"
    ):
        load(str(file))


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("prompt;completion\nSky?;Blue.\nSnow?;White.\n", "';' separate the fields"),
        ("prompt|completion\nSky?|Blue.\nSnow?|White.\n", "'|' separate the fields"),
        ("prompt\tcompletion\nSky?\tBlue.\nSnow?\tWhite.\n", "tabs separate the fields"),
        ('"prompt";"completion"\n"Sky?";"Blue."\n"Snow?";"White."\n', "';' separate the fields"),
        ("prompt, completion\nSky?, Blue.\nSnow?, White.\n", ""),
        ('"prompt", "completion"\r\n"Sky?", "Blue."\r\n"Snow?", "White."\r\n', ""),
        (" prompt ,completion \nSky?,Blue.\nSnow?,White.\n", ""),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_csv_of_other_separators_is_read(
    tmp_path: Path, text: str, note: str, encoding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "d.csv"
    file.write_bytes(text.encode(encoding))
    assert load(str(file))["train"].to_list() == SKY
    output = capsys.readouterr().out
    assert note in output
    assert ("separate" in output) == bool(note)


def test_tsv_and_utf16_lines_are_read(tmp_path: Path) -> None:
    (tmp_path / "d.tsv").write_text("prompt\tcompletion\nSky?\tBlue.\nSnow?\tWhite.\n")
    (tmp_path / "d.jsonl").write_bytes("\n".join(map(json.dumps, SKY)).encode("utf-16"))
    for name in ("d.tsv", "d.jsonl"):
        assert load(str(tmp_path / name))["train"].to_list() == SKY


def test_csv_keeps_spaces_and_separators_in_texts(tmp_path: Path) -> None:
    file = tmp_path / "d.csv"
    file.write_text("prompt,completion\nSky; or sea?, Blue.\n")
    expected: list[Any] = [{"prompt": "Sky; or sea?", "completion": " Blue."}]
    assert load(str(file))["train"].to_list() == expected


@pytest.mark.parametrize(
    ("header", "records"),
    [
        ('prompt,completion,"Good? (1 = no; 2 = so; 3 = yes)"', ["Sky?,Blue.,1", "Snow?,White.,2"]),
        ('prompt,completion,"a; b; c"', ['Sky?,Blue.,"1; 2; 3"', 'Snow?,White.,"1; 2; 3"']),
        ("prompt;completion;id, name", ["Sky?;Blue.;1", "Snow?;White.;2"]),
        ("prompt;completion;id", ["Sky?;Blue.;a, b, c", "Snow?;White.;d, e, f"]),
        ('\nprompt,completion,"a | b | c"', ["Sky?,Blue.,1", "", "Snow?,White.,2"]),
        ('prompt,completion,"a, b"', ["Sky?,Blue., 1", "Snow?,White., 2"]),
    ],
)
def test_separator_gives_records_of_equal_length(
    tmp_path: Path, header: str, records: list[str]
) -> None:
    file = tmp_path / "d.csv"
    file.write_text("\n".join([header, *records, ""]))
    assert load(str(file))["train"].to_list() == SKY
    file.write_text("\n".join([header, *records, "Sea?", ""]))
    name = "';'" if ";id" in header else "commas"
    with pytest.raises(DatasetError, match=f"has 1 fields separated by {name}, the header has 3"):
        load(str(file))
    assert len(load(str(file), drop_bad_rows=True)["train"]) == 2


def test_spaces_after_a_quoted_comma_stay(tmp_path: Path) -> None:
    file = tmp_path / "d.csv"
    file.write_text('"prompt",completion,"a, b"\nSky?, Blue., 1\n')
    assert load(str(file))["train"]["completion"] == [" Blue."]


def test_separator_line_of_excel_raises(tmp_path: Path) -> None:
    file = tmp_path / "d.csv"
    file.write_text("sep=;\nprompt;completion\nSky?;Blue.\n")
    with pytest.raises(DatasetError, match="line 1: got Excel's sep=; remove this line"):
        load(str(file))


def test_csv_without_header_raises(tmp_path: Path) -> None:
    file = tmp_path / "d.csv"
    file.write_text("Sky?,Blue.\nSnow?,White.\n")
    with pytest.raises(DatasetError, match="the first line of a CSV file must have the names of"):
        load(str(file))


def test_saved_dataset_passes_the_early_check(tmp_path: Path) -> None:
    from datasets import Dataset
    from trl.scripts.utils import DatasetMixtureConfig, ScriptArguments

    Dataset.from_list(pairs(1)).save_to_disk(tmp_path / "one")
    check_source(ScriptArguments(dataset_name=str(tmp_path / "one")), DatasetMixtureConfig())


def test_parquet_with_nested_messages_is_read(tmp_path: Path) -> None:
    from datasets import Dataset

    messages = [
        {"role": "user", "content": "Sky?", "weight": None},
        {"role": "assistant", "content": "Blue.", "weight": 1},
    ]
    rows = [{"messages": messages, "source": {"page": 3}, "tools": None}]
    Dataset.from_list(rows).to_parquet(tmp_path / "d.parquet")
    (row,) = load(str(tmp_path / "d.parquet"))["train"].to_list()
    assert row["completion"] == [{"role": "assistant", "content": "Blue."}]


def test_maps_in_parquet_are_objects(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    text = pyarrow.string()
    message = pyarrow.map_(text, text)
    answers = pyarrow.map_(text, pyarrow.list_(message))
    items = [[("role", role), ("content", role)] for role in ("user", "assistant")]
    flat = pyarrow.table({"messages": pyarrow.array([items], pyarrow.list_(message))})
    nested = pyarrow.table(
        {
            "prompt": pyarrow.array([items[:1]], pyarrow.list_(message)),
            "completion": pyarrow.array([items[1:]], pyarrow.list_(message)),
            "about": pyarrow.array([[("a", items)]], answers),
        }
    )
    expected = [{"prompt": [user("user")], "completion": [assistant("assistant")]}]
    for table in (flat, nested):
        parquet.write_table(table, tmp_path / "d.parquet")
        for streaming in (False, True):
            script = {"dataset_streaming": streaming}
            assert load(str(tmp_path / "d.parquet"), script=script)["train"].to_list() == expected
    twice = pyarrow.array([[[("role", "user"), ("role", "user")]]], pyarrow.list_(message))
    parquet.write_table(pyarrow.table({"messages": twice}), tmp_path / "d.parquet")
    with pytest.raises(DatasetError, match="duplicate key was 'role'"):
        load(str(tmp_path / "d.parquet"))


def test_repeated_names_in_parquet_raise(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    texts = pyarrow.array(["Sky?"])
    names = ["prompt", "completion", "completion"]
    twice = pyarrow.StructArray.from_arrays([texts, texts], names=["a", "a"])
    for table, message in (
        (pyarrow.table([texts] * 3, names=names), f"repeats a column: {', '.join(names)}"),
        (pyarrow.table({"prompt": texts, "meta": twice}), "duplicate field names .*each key once"),
    ):
        parquet.write_table(table, tmp_path / "d.parquet")
        for streaming in (False, True):
            with pytest.raises(DatasetError, match=message):
                load(str(tmp_path / "d.parquet"), script={"dataset_streaming": streaming})


@pytest.mark.parametrize(
    ("row", "more", "message"),
    [
        ({"completion": "Blue."}, {"weight": Decimal("0.50")}, "rows cannot have weights"),
        ({"completion": "Blue."}, {"is_safe": Decimal("0.00")}, "a bad answer would be learned"),
        ({"completion": "Blue."}, {"deleted": Decimal("1.00")}, "marks the row as deleted"),
        (
            {"chosen": "Blue.", "rejected": "Red."},
            {"scores": {"chosen": Decimal("1.50"), "rejected": Decimal("4.50")}},
            "must not be worse",
        ),
        ({"completion": "Blue.", "label": Decimal("0.00")}, {}, None),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("name", ["saved", "d.parquet"])
def test_decimals_are_numbers(
    tmp_path: Path, row: dict[str, Any], more: dict[str, Any], message: str | None, name: str
) -> None:
    import pyarrow
    from datasets import Dataset
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist([{"prompt": "Sky?"} | row | more])
    parquet.write_table(table, tmp_path / "d.parquet")
    Dataset(table).with_format("numpy").save_to_disk(tmp_path / "saved")
    kind = "unpaired" if "label" in row else "prompt-completion"
    for streaming in (False, True):
        script = {"dataset_streaming": streaming}
        if message is None:
            labels = load(str(tmp_path / name), kind=kind, script=script)["train"]["label"]
            assert list(labels) == [False]
            continue
        with pytest.raises(DatasetError, match=message):
            load(str(tmp_path / name), kind=kind, script=script)


@pytest.mark.parametrize("names", [["bad", "good"], ["chosen", "rejected"], ["like", "dislike"]])
def test_class_label_names_mark_the_good_answer(tmp_path: Path, names: list[str]) -> None:
    from datasets import ClassLabel, Dataset

    rows = [{**pair, "label": i % 2} for i, pair in enumerate(pairs(4))]
    table = Dataset.from_list(rows).cast_column("label", ClassLabel(names=names))
    table.save_to_disk(tmp_path / "saved")
    table.to_parquet(tmp_path / "rows.parquet")
    good = [name in ("good", "chosen", "like") for name in names]
    for name in ("saved", "rows.parquet"):
        for streaming in (False, True):
            file, script = str(tmp_path / name), {"dataset_streaming": streaming}
            labels = load(file, kind="unpaired", script=script)["train"]["label"]
            assert list(labels) == good * 2, (name, streaming)


@pytest.mark.parametrize("names", [["math", "code"], ["positive", "negative"]])
def test_class_labels_with_unknown_names_are_ignored(tmp_path: Path, names: list[str]) -> None:
    from datasets import ClassLabel, Dataset

    rows = [{**pair, "label": i % 2} for i, pair in enumerate(pairs(4))]
    table = Dataset.from_list(rows).cast_column("label", ClassLabel(names=names))
    table.save_to_disk(tmp_path / "saved")
    table.to_parquet(tmp_path / "rows.parquet")
    for name in ("saved", "rows.parquet"):
        with pytest.raises(
            DatasetError, match=f'"label" has .*"{names[1]}".*must be true or false'
        ):
            load(str(tmp_path / name), kind="unpaired")
        if "math" in names:
            assert len(load(str(tmp_path / name))["train"]) == 4
        else:
            with pytest.raises(DatasetError, match="a bad answer would be learned as a good one"):
                load(str(tmp_path / name))


@pytest.mark.parametrize(
    ("names", "training"),
    [
        (["train_sft", "test_sft", "train_gen"], ["train_gen", "train_sft"]),
        (["data_train", "data_test"], ["data_train"]),
        (["chats", "validation"], ["chats"]),
        (["chats", "chats_heldout", "hold-out"], ["chats"]),
        (["latest", "contest", "testimonials"], ["contest", "latest", "testimonials"]),
        (["validation", "eval-1"], ["eval-1", "validation"]),
        (["data", "testset"], ["data"]),
        (["data", "tests", "TestData", "xyz-validationset", "myEvals", "QATest"], ["data"]),
        (["training", "evals"], ["training"]),
    ],
)
def test_files_for_testing_are_not_trained_on(
    tmp_path: Path, names: list[str], training: list[str]
) -> None:
    for name in names:
        write_rows(tmp_path / f"{name}.jsonl", pairs(1, prefix=name))
    prompts = load(str(tmp_path))["train"]["prompt"]
    assert list(prompts) == [f"{name}0" for name in training]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("trainset", "testset"),
        ("training", "test"),
        ("train", "test_data"),
        ("train_v2", "testing_v2"),
        ("TrainData", "TestData"),
        ("myTrain", "myTest"),
        ("mytrain", "mytest"),
        ("sft_train", "sft_heldout_test"),
    ],
)
@pytest.mark.parametrize("is_folder", [False, True])
def test_names_of_train_and_test_files_may_vary(
    tmp_path: Path, train: str, test: str, is_folder: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if is_folder and train == "mytrain":
        pytest.skip("only the names of files are compared")
    for name in (train, test):
        file = tmp_path / (f"{name}/a.jsonl" if is_folder else f"{name}.jsonl")
        file.parent.mkdir(exist_ok=True)
        write_rows(file, pairs(1, prefix=name))
    splits = load(str(tmp_path))
    assert {split: rows["prompt"][0] for split, rows in splits.items()} == {
        "train": f"{train}0",
        "test": f"{test}0",
    }
    output = capsys.readouterr().out
    for split, name in {"train": train, "test": test}.items():
        file_name = f"{name}/a.jsonl" if is_folder else f"{name}.jsonl"
        assert (f"the {split} rows are from {file_name}" in output) == (name != split)


@pytest.mark.parametrize("folder", ["tests", "testset", "Eval", "held_out"])
def test_subfolder_for_testing_is_not_trained_on(tmp_path: Path, folder: str) -> None:
    for name in (folder, "testimonials", ".test_cache"):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "t.jsonl", pairs(1, start=9))
    write_rows(tmp_path / "data.jsonl", pairs(2))
    splits = load(str(tmp_path))
    assert {split: rows.to_list() for split, rows in splits.items()} == {"train": pairs(2)}


def test_unrelated_files_are_not_splits(tmp_path: Path) -> None:
    for name in ("train_a", "train_b", "test_a", "test_b"):
        write_rows(tmp_path / f"{name}.jsonl", pairs(1, prefix=name))
    splits = load(str(tmp_path))
    assert list(splits) == ["train"]
    assert splits["train"]["prompt"][:] == ["train_a0", "train_b0"]


def test_json_by_column_gives_its_rows(tmp_path: Path) -> None:
    rows = pairs(3)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    numbered = {name: {str(i): v for i, v in enumerate(c)} for name, c in columns.items()}  # pandas
    file = tmp_path / "d.json"
    for value in (columns, numbered):
        for indent in (None, 1):
            file.write_text(json.dumps(value, indent=indent))
            assert load(str(file))["train"].to_list() == rows
    chat = [{"role": "user", "content": "q"}], [{"role": "assistant", "content": "a"}]
    one = {"prompt": chat[0], "completion": chat[1]}  # a single row of messages
    file.write_text(json.dumps(one))
    assert load(str(file))["train"].to_list() == [one]
    file.write_text(json.dumps(columns | {"prompt": ["q"]}))
    with pytest.raises(DatasetError, match="row 1 of 1"):
        load(str(file))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_json_of_another_shape_is_named(tmp_path: Path, count: int) -> None:
    rows = pairs(count)
    split = {"columns": [*rows[0]], "index": [*range(count)], "data": [[*r.values()] for r in rows]}
    shapes = {
        "apart from their values": split,
        "with the rows under their keys": {f"id{i}": row for i, row in enumerate(rows)},
    }
    for message, value in shapes.items():
        (tmp_path / "d.json").write_text(json.dumps(value))
        with pytest.raises(DatasetError) as caught:
            load(str(tmp_path / "d.json"))
        problem, _, formats = str(caught.value).partition(". Rename the columns, with")
        assert message in problem
        assert "write a list of rows" in problem
        assert "prompt-only" in formats
