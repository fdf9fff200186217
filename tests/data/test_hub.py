"""Hub datasets from the loader's cache, without a network: whole and as streams."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trl.scripts.utils import DatasetMixtureConfig, ScriptArguments

from tests.conftest import ROOT
from tests.data.helpers import load, pairs, write_rows
from toolkit.data import check_texts, load_splits
from toolkit.data.streaming import open_stream
from toolkit.errors import DatasetError
from toolkit.options.arguments import DataArguments

STREAMED = {"dataset_streaming": True}
COUNT = 1500


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's loader, in offline mode."""
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def cache_dataset(cache: Path, tmp_path: Path) -> Callable[..., str]:
    """Write a dataset to the cache in the layout of `load_dataset`."""
    import datasets

    def put(owner: str, name: str, *, config: str = "default", **splits: list[Any]) -> str:
        source = tmp_path / "source"
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir()
        files = {
            split: write_rows(source / f"{split}.jsonl", rows) for split, rows in splits.items()
        }
        datasets.load_dataset("json", data_files=files, cache_dir=str(tmp_path / "built"))
        (info_file,) = (tmp_path / "built").glob("json/*/*/*/dataset_info.json")
        info = json.loads(info_file.read_text()) | {"dataset_name": name, "config_name": config}
        info_file.write_text(json.dumps(info))
        folder = cache / f"{owner}___{name}" / config / "0.0.0" / "0123abcd"
        shutil.copytree(info_file.parent, folder)
        for file in folder.glob("json-*.arrow"):
            file.rename(folder / file.name.replace("json-", f"{name}-"))
        shutil.rmtree(tmp_path / "built")
        return f"{owner}/{name}"

    return put


def streamed(name: str, tokenizer: Any, **script: Any) -> Any:
    """The stream that a recipe opens, and the splits of its first rows."""
    args = ScriptArguments(dataset_name=name, **STREAMED, **script)
    mixture, data_args = DatasetMixtureConfig(), DataArguments()
    splits = load_splits(args, mixture, data_args, kind="prompt-completion", seed=0)
    splits = check_texts(splits, tokenizer, data_args)
    return open_stream(args, mixture, data_args, splits, tokenizer), splits


def test_cached_dataset_is_read_at_once_and_as_stream(
    cache_dataset: Callable[..., str], tokenizer: Any
) -> None:
    name = cache_dataset("org", "set", train=pairs(COUNT), test=pairs(5, start=COUNT))
    splits = load(name)
    assert splits["train"].to_list() == pairs(COUNT)
    assert splits["test"].to_list() == pairs(5, start=COUNT)
    stream, head = streamed(name, tokenizer)
    assert head["train"].to_list() == pairs(1000)
    assert head["test"].to_list() == pairs(5, start=COUNT)
    assert list(stream.rows()) == pairs(COUNT)
    assert stream.summary() == f"org/set: {COUNT} rows of the stream were read"
    again = list(itertools.islice(stream.rows(), 3))  # a second epoch starts again
    assert again == pairs(3)


def test_malformed_row_late_in_a_stream_raises(
    cache_dataset: Callable[..., str], tokenizer: Any
) -> None:
    rows = pairs(COUNT)
    rows[1200]["completion"] = ""
    stream, _ = streamed(cache_dataset("org", "set", train=rows), tokenizer)
    with pytest.raises(DatasetError, match=r'org/set \(train\) row 1201: "completion" must be'):
        list(stream.rows())


def test_config_and_split_of_a_cached_dataset(
    cache_dataset: Callable[..., str], tokenizer: Any
) -> None:
    name = cache_dataset("org", "set", config="v1", train_sft=pairs(4), train_gen=pairs(2, start=9))
    cache_dataset("org", "set", config="v2", train=pairs(3))
    options = {"dataset_config": "v1", "dataset_train_split": "train_sft"}
    assert load(name, script=options)["train"].to_list() == pairs(4)
    stream, _ = streamed(name, tokenizer, **options)
    assert list(stream.rows()) == pairs(4)
    for streaming in ({}, STREAMED):
        with pytest.raises(DatasetError, match="multiple 'org/set' configurations in the cache: v"):
            load(name, script=streaming)
        with pytest.raises(DatasetError, match=r"no split 'train' .*it has train_gen, train_sft"):
            load(name, script={"dataset_config": "v1", **streaming})


@pytest.mark.parametrize("script", [{}, STREAMED], ids=["whole", "stream"])
def test_dataset_that_is_not_cached_raises_one_line(script: dict[str, Any]) -> None:
    with pytest.raises(DatasetError) as caught:
        load("no-owner/no-set", script=script)
    output = str(caught.value)
    assert output.startswith("no-owner/no-set: cannot load from the hub (")
    assert "\n" not in output


def test_copy_of_a_hub_repository_is_a_folder(tmp_path: Path, tokenizer: Any) -> None:
    """The hub's layout without a script: a card, a folder `data`, shards named by split."""
    from datasets import Dataset

    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n---\n")
    (folder / ".gitattributes").write_text("*.parquet filter=lfs\n")
    rows = pairs(COUNT)
    for number, part in enumerate((rows[:700], rows[700:])):
        file = folder / "data" / f"train-0000{number}-of-00002.parquet"
        Dataset.from_list(part).to_parquet(file)
    Dataset.from_list(pairs(5, start=COUNT)).to_parquet(
        folder / "data" / "test-00000-of-00001.parquet"
    )
    assert load(str(folder))["train"].to_list() == rows
    stream, head = streamed(str(folder), tokenizer)
    assert list(stream.rows()) == rows
    assert head["test"].to_list() == pairs(5, start=COUNT)


@pytest.mark.slow
def test_recipe_trains_on_a_cached_stream(
    cache_dataset: Callable[..., str],
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.preflight.test_check import stage_of
    from tests.preflight.test_requirements import recipe_main

    monkeypatch.chdir(ROOT)
    name = cache_dataset("org", "set", train=pairs(COUNT), test=pairs(5, start=COUNT))
    words = ["--model_name_or_path", tiny_base, "--output_dir", tmp_path / "run", "--max_steps", 2]
    words += ["--dataset_name", name, "--dataset_streaming", "true", "--save_strategy", "steps"]
    recipe_main("sft")(*stage_of("sft", *words).options)
    output = capsys.readouterr().out
    assert "the first 1005 rows of a stream -> prompt-completion (train 1000, test 5)" in output
    assert "org/set: 1500 rows of the stream were read" in output
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
