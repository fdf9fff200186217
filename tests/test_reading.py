"""Small files that would take gigabytes or minutes are refused quickly, with the reason."""

import os
import time

import pytest

from toolkit.errors import CheckpointError, ConfigError
from toolkit.models.base import saved_fingerprint
from toolkit.models.tokenizer import saved_template
from toolkit.options.config import load_yaml
from toolkit.reading import parse_json, parse_yaml, read_bytes, read_json
from toolkit.runs.resuming import REQUIRED, last_checkpoint, list_contents
from toolkit.runs.run import Run

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9)
)


@pytest.fixture(autouse=True)
def quick():
    began = time.process_time()
    yield
    assert time.process_time() - began < 3


def sparse(file, size=1 << 40):
    with file.open("wb") as stream:
        stream.truncate(size)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested more than 40 levels"),
        ("[" * 41 + "]" * 41, "nested more than 40 levels"),
        ('{"a": ' * 60 + "1" + "}" * 60, "nested more than 40 levels"),
        ("9" * 41, "a number has 41 digits"),
        ("1" * 100_000, "a number has 100000 digits"),
        ('{"a": [1, -' + "1" * 5000 + "]}", "a number has 5001 digits"),
        ("{", "Expecting property name"),
    ],
)
def test_json_beyond_the_bounds_is_rejected(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_json_of_tokenizers_is_read():
    assert parse_json('{"model_max_length": 1000000000000000019884624838656}') == {
        "model_max_length": 1000000000000000019884624838656
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: " + "[" * 20_000, "nested more than 40 levels"),
        ("a: " + "[" * 50 + "]" * 50, "nested more than 40 levels"),
        (LAUGHS, "more than 100000 values"),
        (MERGES, "more than 100000 values"),
        ("a: &a [*a]", "nested more than 40 levels"),
        ("seed: " + "9" * 5000, "a number has 5000 digits"),
        ("seed: 1" + ":59" * 5000, "a number has 15001 digits"),
        ("x: " + "y" * 300_000, "larger than 256 KiB"),
        ("a: 1\na: 2", "`a` is given twice"),
        ("a: 2001-99-99", "month must be in 1..12"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: \0", "special characters are not allowed"),
    ],
)
def test_yaml_beyond_the_bounds_is_rejected(tmp_path, text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_yaml(text)
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"a\.yaml: not a YAML file \(.*{reason}"):
        load_yaml(str(tmp_path / "a.yaml"))


def test_yaml_with_many_keys_is_read_in_time():
    assert len(parse_yaml("".join(f"k{i}: 1\n" for i in range(12_000)))) == 12_000


def test_yaml_aliases_are_read():
    text = "base: &base {a: 1, b: 2}\nother: {<<: *base, b: 3}\nlist: [*base, *base]"
    assert parse_yaml(text)["other"] == {"a": 1, "b": 3}


def test_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(ValueError, match=r"run\.json is not a regular file"):
        read_json(tmp_path / "run.json")


def test_sparse_file_is_not_read_completely(tmp_path):
    sparse(tmp_path / "run.json")
    with pytest.raises(ValueError, match=r"run\.json is larger than 1 MiB"):
        read_bytes(tmp_path / "run.json")


def test_sparse_files_of_a_run_are_rejected(tmp_path):
    for name in ("run.json", "base.json", "metrics.jsonl", "chat_template.jinja"):
        sparse(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"damaged manifest \(run\.json is larger than 1 MiB"):
        Run.load(tmp_path)
    with pytest.raises(CheckpointError, match=r"base\.json is larger than 1 MiB"):
        saved_fingerprint(tmp_path)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl is larger than 256 MiB"):
        Run(tmp_path, "sft").metrics()
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja is larger than 1 MiB"):
        saved_template(tmp_path)


def test_damaged_checkpoint_state_is_named(tmp_path):
    place = tmp_path / "checkpoint-1"
    place.mkdir()
    for name in REQUIRED:
        (place / name).write_bytes(b"x")
    list_contents(place)
    for content in ("[" * 100_000, "1" * 100_000):
        (place / "contents.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"contents\.json is damaged"):
            last_checkpoint(tmp_path, True)
