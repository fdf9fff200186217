"""`toolkit sample`: its files train, and a killed run continues to the same answers."""

import json
import shutil
import time

import pytest

from toolkit.cli import run
from toolkit.data.auxiliary import load_split
from toolkit.errors import CheckpointError
from toolkit.evaluation import best_of_n
from toolkit.models.tokenizer import load_tokenizer
from toolkit.recipe import find
from toolkit.runs.replacing import REPLACES
from toolkit.runs.run import Run

PROMPTS, N = 7, 3


@pytest.fixture
def words(tiny_base, adapter_runs):
    """The command line of a small run, in batches of two prompts."""
    options = {
        "dataset_name": "world:prompts",
        "model_name_or_path": tiny_base,
        "parent": adapter_runs / "sft",
        "reward_model": adapter_runs / "reward",
        "max_rows": PROMPTS,
        "num_generations": N,
        "max_new_tokens": 12,
        "generation_batch_size": 2 * N,
    }

    def command(folder, **changes):
        changed = options | {"output_dir": folder} | changes
        pairs = ((f"--{name}", str(value)) for name, value in changed.items() if value is not None)
        return [word for pair in pairs for word in pair]

    return command


@pytest.fixture
def ends_often(monkeypatch):
    """Make a fifth of all tokens end an answer, because the tiny base hardly ends any."""
    monkeypatch.setattr("toolkit.evaluation.answers.stop_ids", lambda *_: list(range(0, 512, 5)))


def sample(words):
    return run(find("sample"), words)


@pytest.mark.parametrize("rewards", ["one", "ensemble", "function"])
def test_best_answers_and_pairs_are_training_data(
    rewards, words, ends_often, tiny_base, adapter_runs, tmp_path, capsys
):
    code, folder, reward = tmp_path / "mine.py", tmp_path / "sample", adapter_runs / "reward"
    code.write_text(
        "def brief(completion_ids, **_):\n    return [-len(x) for x in completion_ids]\n"
    )
    command = words(folder, reward_model=reward if rewards == "one" else None, write_pairs="all")
    command += ["--reward_model", str(reward), str(reward)] if rewards == "ensemble" else []
    command += ["--reward_funcs", f"{code}:brief"] if rewards == "function" else []
    assert sample(command) == 0
    rows = list(best_of_n.read_rows(folder / "answers.jsonl"))
    assert (len(rows), {len(row["completions"]) for row in rows}) == (PROMPTS, {N})
    assert all(row["scores"] == sorted(row["scores"], reverse=True) for row in rows)
    if rewards == "function":
        assert [row["scores"] for row in rows] == [[-n for n in row["tokens"]] for row in rows]
    results = Run.load(folder).results
    assert results["kl_best_of_n"] == 0.431946  # log 3 - 2/3
    tokenizer = load_tokenizer(str(tiny_base))
    for file, kind in (("best", "prompt-completion"), ("pairs", "preference")):
        made = list(best_of_n.read_rows(folder / f"{file}.jsonl"))
        name = str(folder / f"{file}.jsonl")
        options = {"option": file, "kind": kind, "drop_bad_rows": False, "seed": 0}
        loaded = load_split(name, "train", tokenizer=tokenizer, **options)
        assert len(loaded) == len(made) > 0
        count = results["demonstrations" if file == "best" else "pairs"]
        assert (count, loaded[0]["prompt"]) == (len(made), made[0]["prompt"])
    options = {"option": "answers", "kind": "preference", "drop_bad_rows": True, "seed": 0}
    assert load_split(str(folder / "answers.jsonl"), "train", tokenizer=tokenizer, **options)
    assert "KL 0.432 nats" in capsys.readouterr().out


def test_interrupted_run_continues_to_the_same_answers(words, tmp_path, monkeypatch, capsys):
    assert sample(words(tmp_path / "whole")) == 0
    expected = (tmp_path / "whole" / "answers.jsonl").read_bytes()
    append, folder = best_of_n.append_rows, tmp_path / "killed"

    def breaks(file, rows):
        if file.stat().st_size if file.exists() else 0:
            with file.open(
                "a"
            ) as stream:  # one row of the second batch, and a part of the next one
                stream.write("".join(json.dumps(row) + "\n" for row in rows)[:-40])
            raise KeyboardInterrupt
        append(file, rows)

    with monkeypatch.context() as patch:
        patch.setattr(best_of_n, "append_rows", breaks)
        assert sample(words(folder)) == 130
    assert "answers.jsonl is complete, continue with --resume_from_checkpoint true" in (
        capsys.readouterr().err
    )
    resume = {"resume_from_checkpoint": "true"}
    for changes, message in (
        ({}, "holds answers.jsonl of a run that did not finish: continue it with"),
        (resume | {"temperature": 0.5}, "written with `temperature` 1.0, but this run has 0.5"),
        (resume | {"max_rows": 6}, "written with `training rows` 7"),
        (resume | {"parent": None}, "written with `parent`"),
    ):
        before = (folder / "answers.jsonl").read_bytes()
        assert sample(words(folder, **changes)) == CheckpointError.exit_code, changes
        assert message in capsys.readouterr().err
        assert (folder / "answers.jsonl").read_bytes() == before
    shutil.copytree(folder, tmp_path / "again")
    with monkeypatch.context() as patch:  # as a pipeline whose stage has changed
        patch.setenv(REPLACES, "1")
        assert sample(words(tmp_path / "again", max_rows=2)) == 0
    assert (tmp_path / "again" / "answers.jsonl").read_bytes().count(b"\n") == 2
    shutil.move(folder, tmp_path / "moved")
    assert sample(words(tmp_path / "moved", **resume)) == 0
    assert "continues after 2 of 7 prompts" in capsys.readouterr().out
    assert (tmp_path / "moved" / "answers.jsonl").read_bytes() == expected
    results = Run.load(tmp_path / "moved").results
    whole = Run.load(tmp_path / "whole").results
    assert results | {"seconds": 0} == whole | {"seconds": 0}


@pytest.mark.slow
def test_killed_run_continues_to_the_same_answers(words, processes, tmp_path):
    more = {"max_rows": 40, "generation_batch_size": N}
    script, log = ["recipes/sample.py"], tmp_path / "log"
    processes.run([*script, *words(tmp_path / "whole", **more)], log)
    process, file = (
        processes.start([*script, *words(tmp_path / "killed", **more)], log),
        (tmp_path / "killed" / "answers.jsonl"),
    )
    while process.poll() is None and not (file.exists() and file.read_bytes().count(b"\n") >= 5):
        time.sleep(0.001)
    process.kill()
    assert process.wait() < 0
    assert Run.load(file.parent).state == "running"
    resume = words(file.parent, **more, resume_from_checkpoint="true")
    processes.run([*script, *resume], log)
    assert file.read_bytes() == (tmp_path / "whole" / "answers.jsonl").read_bytes()
