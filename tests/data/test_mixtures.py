"""Mixtures: shares of several sources, renamed columns, and a format for each source."""

from pathlib import Path
from typing import Any

import pytest
from trl.scripts.utils import DatasetConfig, DatasetMixtureConfig, ScriptArguments

from tests.data.helpers import pairs, write_rows
from toolkit.data import Splits, check_source, load_splits
from toolkit.data.reading import mixture_sizes
from toolkit.errors import ConfigError, DatasetError
from toolkit.options.arguments import DataArguments, SourceArguments
from toolkit.options.command_line import parse


def load(
    sources: list[dict[str, Any]],
    *,
    kind: str = "prompt-completion",
    seed: int = 0,
    test: float | None = None,
    name: str | None = None,
    **run_args: Any,
) -> Splits:
    return load_splits(
        ScriptArguments(dataset_name=name),
        DatasetMixtureConfig(test_split_size=test),
        DataArguments(sources=[SourceArguments(**s) for s in sources], **run_args),
        kind=kind,
        seed=seed,
    )


def test_each_source_has_its_own_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alpaca = write_rows(tmp_path / "a.jsonl", [{"instruction": "i", "output": "o"}])
    gpt = [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]
    sharegpt = write_rows(tmp_path / "s.jsonl", [{"conversations": gpt, "id": 1}])
    splits = load([{"dataset_name": alpaca}, {"dataset_name": sharegpt}])
    assert [row["prompt"][0]["content"] for row in splits["train"]] == ["i", "h"]
    assert [(o.place, o.number) for o in splits.origins["train"]] == [(alpaca, 1), (sharegpt, 1)]
    assert capsys.readouterr().out == (
        f"{alpaca}: alpaca (by its columns instruction, output), 1 rows -> prompt-completion "
        "(train 1)\n"
        f"{sharegpt}: sharegpt (by its columns conversations), 1 rows -> prompt-completion "
        "(train 1); columns not read: id\n"
        "mixture of 2 sources: prompt-completion (train 2)\n"
    )


@pytest.mark.parametrize(
    ("sizes", "shares", "counts"),
    [
        ([500, 150], [1, 1], [150, 150]),
        ([500, 150], [0.5, 0.5], [150, 150]),
        ([100, 300], [0.25, 0.75], [100, 300]),
        ([100, 300], [0.75, 0.25], [100, 33]),
        ([10, 10, 10], [2, 1, 1], [10, 5, 5]),
        ([7], [0.1], [7]),  # a single source is used whole
    ],
)
def test_mixture_sizes_keep_shares(
    sizes: list[int], shares: list[float], counts: list[int]
) -> None:
    assert mixture_sizes(sizes, shares) == counts


def test_fractions_are_drawn_by_the_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write_rows(tmp_path / "a.jsonl", pairs(100, prefix="a"))
    b = write_rows(tmp_path / "b.jsonl", pairs(20, prefix="b"))
    sources = [{"dataset_name": a, "fraction": 0.6}, {"dataset_name": b, "fraction": 0.4}]
    first, again, other = (load(sources, seed=seed)["train"].to_list() for seed in (0, 0, 1))
    output = capsys.readouterr().out
    assert output.count(", 30 of 100 rows -> prompt-completion (train 30)\n") == 3
    assert output.count(", 20 rows -> prompt-completion (train 20)\n") == 3
    assert first == again != other
    for rows in (first, other):
        prompts = [row["prompt"] for row in rows]
        assert sum(p.startswith("a") for p in prompts) == 30
        assert sum(p.startswith("b") for p in prompts) == 20
        assert len(set(prompts)) == 50
        drawn = [int(p[1:]) for p in prompts[:30]]
        assert drawn == sorted(drawn)  # in their order, and not the first 30
        assert drawn != list(range(30))


def test_malformed_row_of_a_fraction_is_named(tmp_path: Path) -> None:
    rows = pairs(50)
    rows[41]["completion"] = ""
    a, b = write_rows(tmp_path / "a.jsonl", rows), write_rows(tmp_path / "b.jsonl", pairs(45))
    sources = [{"dataset_name": name, "fraction": 1} for name in (a, b)]
    for seed in range(9):  # row 42 is among the 45 of 50 that most seeds draw
        try:
            assert len(load(sources, seed=seed)["train"]) == 90
        except DatasetError as error:
            assert f"{a} row 42 of 50:" in str(error)  # noqa: PT017
            break
    else:
        pytest.fail("no seed drew row 42")


def test_hold_out_separates_prompts_of_all_sources(tmp_path: Path) -> None:
    a, b = write_rows(tmp_path / "a.jsonl", pairs(30)), write_rows(tmp_path / "b.jsonl", pairs(20))
    splits = load([{"dataset_name": a}, {"dataset_name": b}], test=0.2)
    train, test = ({row["prompt"] for row in splits[s]} for s in ("train", "test"))
    assert len(splits["train"]) + len(splits["test"]) == 50
    assert not train & test
    assert any(f"q{i}" in test for i in range(20))  # and so both its rows


def test_equal_groups_of_two_sources_stay_apart(tmp_path: Path) -> None:
    files = [
        write_rows(
            tmp_path / f"{name}.jsonl",
            [
                {"prompt": f"{name}{g}", "chosen": f"good {i}", "rejected": "bad", "group_id": g}
                for g in (0, 1)
                for i in (0, 1)
            ],
        )
        for name in "ab"
    ]
    groups = load([{"dataset_name": f} for f in files], kind="preference")["train"]["group_id"]
    assert len(set(groups)) == 4
    assert [groups[i] == groups[i + 1] for i in (0, 2, 4, 6)] == [True] * 4
    alone = load([{"dataset_name": files[0]}], kind="preference")["train"]["group_id"]
    assert list(alone) == [0, 0, 1, 1]


def test_text_and_messages_in_one_mixture_raise(tmp_path: Path) -> None:
    a = write_rows(tmp_path / "a.jsonl", pairs(2))
    b = write_rows(tmp_path / "b.jsonl", [{"instruction": "i", "output": "o"}])
    with pytest.raises(DatasetError) as caught:
        load([{"dataset_name": a}, {"dataset_name": b}])
    assert str(caught.value).startswith(f"{a} has plain text and {b} has messages")


def test_columns_are_renamed(tmp_path: Path) -> None:
    name = write_rows(tmp_path / "d.jsonl", [{"question": "q", "best": "a", "prompt": "old"}])
    columns = {"question": "prompt", "best": "completion", "prompt": "before"}
    assert load([], name=name, columns=columns)["train"].to_list() == [
        {"prompt": "q", "completion": "a"}
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"qestion": "prompt"},
            '`columns` names "qestion", but no row has it; the columns are answer',
        ),
        (
            {"question": "id"},
            '`columns` renames "question" to "id", but the rows already have "id"',
        ),
    ],
)
def test_columns_that_do_not_fit_raise(
    tmp_path: Path, columns: dict[str, str], message: str
) -> None:
    name = write_rows(tmp_path / "d.jsonl", [{"question": "q", "answer": "a", "id": 1}])
    with pytest.raises(DatasetError) as caught:
        load([], name=name, columns=columns)
    assert message in str(caught.value)


def test_column_that_only_some_rows_have_raises(tmp_path: Path) -> None:
    rows = [{"q": "x", "completion": "a"}, {"question": "y", "completion": "b"}]
    name = write_rows(tmp_path / "d.jsonl", rows)
    with pytest.raises(DatasetError, match='row 2 of 2: "prompt" is missing'):
        load([], name=name, columns={"q": "prompt"}, dataset_format="prompt-completion")


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([{"fraction": 0.5}, {}], "`fraction` must be set for all `sources` or for none"),
        ([{"fraction": 1}, {"fraction": 1e-9}], "`fraction` 1e-09 gives no row"),
        ([{"split": "val"}], "no split 'val' (`split`); it has train"),
        ([{"dataset_name": "gone.jsonl"}], "gone.jsonl: no such file or folder"),
        ([{"dataset_config": "main"}], "is only for hub datasets; remove it"),
    ],
)
def test_impossible_mixture_raises(
    tmp_path: Path, sources: list[dict[str, Any]], message: str
) -> None:
    name = write_rows(tmp_path / "d.jsonl", pairs(5))
    with pytest.raises(DatasetError) as caught:
        load([{"dataset_name": name} | source for source in sources])
    assert message in str(caught.value)


def test_sources_with_another_dataset_option_raise(tmp_path: Path) -> None:
    name = write_rows(tmp_path / "d.jsonl", pairs(5))
    ours = DataArguments(sources=[SourceArguments(name)])
    with pytest.raises(DatasetError, match="`sources` and `dataset_name` both name the data"):
        check_source(ScriptArguments(dataset_name=name), DatasetMixtureConfig(), ours)
    trl = DatasetMixtureConfig(datasets=[DatasetConfig(path="json", data_files=name)])
    with pytest.raises(DatasetError, match="`sources` and `datasets` both name the data"):
        check_source(ScriptArguments(), trl, ours)


YAML = """
columns: {question: prompt}
sources:
  - {dataset_name: a.jsonl, fraction: 0.5, columns: {q: prompt, a: completion}}
  - {dataset_name: org/set, fraction: 5e-1, dataset_config: v1, split: train_sft}
pairs: best
"""


def test_yaml_of_a_mixture_is_parsed(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(YAML)
    (data_args,) = parse([DataArguments], ["--config", str(file), "--max_rows", "3"])
    assert data_args.columns == {"question": "prompt"}
    assert data_args.sources == [
        SourceArguments("a.jsonl", fraction=0.5, columns={"q": "prompt", "a": "completion"}),
        SourceArguments("org/set", fraction=0.5, dataset_config="v1", split="train_sft"),
    ]
    assert (data_args.pairs, data_args.max_rows) == ("best", 3)
    words = ["--columns", '{"q": "prompt"}', "--pairs", "all"]
    (data_args,) = parse([DataArguments], words)
    assert (data_args.columns, data_args.pairs) == ({"q": "prompt"}, "all")


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("sources: [{dataset: a.jsonl}]", "unknown option `dataset`; did you mean `dataset_name`?"),
        ("sources: [{fraction: 1}]", "`dataset_name` is missing"),
        (
            "sources: [{dataset_name: a, fraction: -1}]",
            "`fraction` must be a finite number above 0, got -1",
        ),
        ("sources: [{dataset_name: a, columns: {b: 1}}]", "`columns` must map names to names"),
        ("columns: [a]", "`columns` must be"),
        ("columns: {a: p, b: p}", "`columns` gives two columns the same name"),
        ("columns: '{a'", "`columns` must be a JSON object"),
        ("pairs: some", "`pairs` must be"),
    ],
)
def test_wrong_yaml_of_a_mixture_raises(tmp_path: Path, yaml: str, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(yaml)
    with pytest.raises(ConfigError) as caught:
        parse([DataArguments], ["--config", str(file)])
    assert message in str(caught.value)
