"""What a run held out in training is what is evaluated."""

import json

import pytest
from trl import DatasetMixtureConfig, ScriptArguments

from toolkit.data.loading import load_splits
from toolkit.data.splits import hash_rows
from toolkit.errors import ConfigError
from toolkit.evaluation.held_out import held_out_prompts, held_out_rows
from toolkit.options.arguments import DataArguments
from toolkit.runs.run import ENSEMBLE, Run
from toolkit.runs.settings import ROWS


@pytest.fixture
def make_run(tmp_path):
    """A run on 20 pairs of 10 prompts; with a size, it held out a test split."""
    file = tmp_path / "pairs.jsonl"
    pairs = [
        {"prompt": f"Question {i // 2}?", "chosen": f"Yes {i}.", "rejected": f"No {i}."}
        for i in range(20)
    ]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))

    def make(recipe="dpo", *, size=0.3, seed=3):
        config = {"dataset_name": str(file), "test_split_size": size, "seed": seed}
        splits = load_splits(
            ScriptArguments(dataset_name=str(file)),
            DatasetMixtureConfig(test_split_size=size),
            DataArguments(),
            kind="preference",
            seed=seed,
        )
        inputs = {ROWS[name]: hash_rows(rows) for name, rows in splits.items()}
        run = Run(tmp_path / f"{recipe}-{seed}-{size}", recipe, config=config, inputs=inputs)
        return run, splits

    return make


def test_held_out_rows_are_test_rows_of_training(make_run):
    for seed in (3, 4):
        run, splits = make_run(seed=seed)
        assert held_out_rows(run) == list(splits["test"])
    assert held_out_rows(make_run(size=None)[0]) == []
    assert held_out_rows(Run(run.path, "sft")) == []  # made elsewhere


def test_ensemble_held_out_the_rows_of_its_members(make_run):
    run, splits = make_run(ENSEMBLE)
    (run.path / "member-0").mkdir(parents=True)
    for one in (run, Run(run.path / "member-0", "dpo")):
        one.save()
    assert held_out_rows(run) == list(splits["test"])


def test_first_run_with_held_out_prompts_decides(make_run, tokenizer, capsys):
    (without, _), (first, splits), (second, _) = (
        make_run(size=None),
        make_run(seed=3),
        make_run(seed=4),
    )
    rows = held_out_prompts([without, first, second], tokenizer)
    expected = list(dict.fromkeys(row["prompt"] for row in splits["test"]))
    assert [row["prompt"] for row in rows] == expected
    assert f"prompts: 3 that {first.path} held out" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no run held out prompts; name a dataset as `prompts`"):
        held_out_prompts([without], tokenizer)


def test_changed_dataset_is_rejected(make_run):
    run, _ = make_run()
    with open(run.config["dataset_name"], "a") as file:
        rows = [{"prompt": f"New {i}?", "chosen": "Yes.", "rejected": "No."} for i in range(20)]
        file.writelines(json.dumps(row) + "\n" for row in rows)
    with pytest.raises(ConfigError, match="other test rows than in training"):
        held_out_rows(run)
