"""Training recipes in this process: on a 4-bit base, resumed, with ensembles and averages."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from toolkit.cli import run
from toolkit.errors import CheckpointError
from toolkit.evaluation import judge
from toolkit.models.base import BASE_FILE
from toolkit.recipe import find
from toolkit.runs.parents import require_adapter, require_reward_models
from toolkit.runs.run import ENSEMBLE, Run
from toolkit.trainers.callbacks import RunCallback

WORLD = "recipes/configs/world"
QUICK = {"logging_steps": 1, "warmup_steps": 0, "per_device_train_batch_size": 4}
STEPS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}


def call(recipe, folder, **options):
    """Run a recipe with its config of the embedded world and changed options."""
    words = ["--config", f"{WORLD}/{recipe}.yaml", "--output_dir", str(folder)]
    for name, value in (QUICK | options).items():
        words += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    assert run(find(recipe), words) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("steps", ["save_steps", "logging_steps"])
def test_run_whose_folder_is_renamed_stops(steps, tiny_base, tmp_path, monkeypatch, capsys):
    def rename(callback, args, state, control, **_):
        Path(args.output_dir).rename(tmp_path / "moved")

    monkeypatch.setattr(RunCallback, "on_step_end", rename)
    words = ["--config", f"{WORLD}/sft.yaml", "--output_dir", str(tmp_path / "run")]
    words += [
        "--model_name_or_path",
        str(tiny_base),
        "--max_steps",
        "2",
        "--save_strategy",
        "steps",
    ]
    words += ["--save_steps", "99", "--logging_steps", "99", f"--{steps}", "1", "--max_rows", "16"]
    assert run(find("sft"), words) == CheckpointError.exit_code
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "run: was removed or renamed while the run was training" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_umask_decides_who_reads_a_run(tiny_base, sft_run, reward_run, tmp_path):
    few = {"model_name_or_path": tiny_base, "max_rows": 16, "parent": sft_run}
    episodes = {"total_episodes": 16, "gradient_accumulation_steps": 1, "response_length": 8}
    umask = os.umask(0o002)
    try:
        call("dpo", tmp_path / "dpo", dataset_name="world:comparisons", **few, **STEPS)
        ppo = few | episodes | STEPS | {"max_steps": -1, "ema_decay": 0.9}
        call("ppo", tmp_path / "ppo", reward_model=reward_run, **ppo)
        merging = ["--parent", str(sft_run), "--output_dir", str(tmp_path / "merged")]
        merging += ["--model_name_or_path", str(tiny_base)]
        assert run(find("merge"), ["--config", f"{WORLD}/merge.yaml", *merging]) == 0
    finally:
        os.umask(umask)
    folders = [tmp_path / name for name in ("dpo", "ppo", "merged")]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    names = {str(file.relative_to(tmp_path)) for file in files if file.suffix == ".safetensors"}
    assert {"dpo/checkpoint-4/adapter_model.safetensors", "merged/model.safetensors"} < names
    assert {"ppo/value/head.safetensors", "ppo/checkpoint-8/ema.safetensors"} < names
    assert [str(file) for file in files if file.stat().st_mode & 0o060 != 0o060] == []


@pytest.mark.slow
def test_every_training_recipe_runs_on_4_bit_base(tiny_base, tmp_path):
    base = {"model_name_or_path": tiny_base, "load_in_4bit": True, "dtype": "bfloat16"}
    few = base | {"max_steps": 2, "max_rows": 16}
    sft = call("sft", tmp_path / "sft", **few)
    reward = call(
        "reward", tmp_path / "reward", parent=sft, dataset_name="world:comparisons", **few
    )
    dpo = call("dpo", tmp_path / "dpo", parent=sft, dataset_name="world:comparisons", **few)
    kto = call("kto", tmp_path / "kto", parent=sft, dataset_name="world:comparisons", **few)
    ppo = call(
        "ppo",
        tmp_path / "ppo",
        parent=sft,
        reward_model=reward,
        total_episodes=16,
        gradient_accumulation_steps=1,
        response_length=8,
        **(few | {"max_steps": -1}),
    )
    start = load_file(sft / "adapter_model.safetensors")
    for folder in (sft, reward, dpo, kto, ppo):
        run = Run.load(folder)
        assert (run.state, run.base["quantization"]) == ("finished", "4bit-nf4")
        weights = load_file(folder / "adapter_model.safetensors")
        assert weights.keys() == start.keys()
        assert folder == sft or any((weights[k] != start[k]).any() for k in start)
    assert abs(json.loads((reward / "run.json").read_text())["results"]["bias"]) > 0
    assert (ppo / "value" / "head.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "streaming"),
    [
        ("sft", False),
        ("reward", False),
        ("dpo", False),
        ("kto", False),
        ("sft", True),
        ("dpo", True),
    ],
)
def test_crashed_run_resumes_to_same_adapter(recipe, streaming, tiny_base, sft_run, tmp_path):
    options = STEPS | {"model_name_or_path": tiny_base, "max_rows": 16}
    options |= {"dataset_streaming": True} if streaming else {}
    if recipe != "sft":
        options |= {"parent": sft_run, "dataset_name": "world:comparisons"}
    else:
        options |= {"lora_r": 4}
    run = call(recipe, tmp_path / "run", **options)
    expected = load_file(run / "adapter_model.safetensors")
    logged = [row["step"] for row in Run.load(run).metrics()]
    # as a crash after step 3 may leave it
    damaged = run / "checkpoint-4" / "adapter_model.safetensors"
    damaged.write_bytes(b"\0" * damaged.stat().st_size)
    (run / "adapter_model.safetensors").unlink()
    Run.load(run).fail(RuntimeError("out of memory"))
    call(recipe, run, resume_from_checkpoint=True, **options)
    resumed = load_file(run / "adapter_model.safetensors")
    for name, tensor in expected.items():
        assert (resumed[name] == tensor).all(), name
    assert [row["step"] for row in Run.load(run).metrics()] == logged


@pytest.mark.slow
def test_sft_continues_the_adapter_of_its_parent(tiny_base, tmp_path):
    few = {"model_name_or_path": tiny_base, "max_rows": 4, "max_steps": 1, "lora_r": 4}
    first = call("sft", tmp_path / "first", **few)
    second = call("sft", tmp_path / "second", parent=first, learning_rate=1e-12, **few)
    before, after = (load_file(f / "adapter_model.safetensors") for f in (first, second))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before)
    assert any(before[name].any() for name in before if "lora_B" in name)
    assert Run.load(second).parents == {"adapter": str(first)}


@pytest.mark.slow
@pytest.mark.parametrize("ensemble", [1, 2])
def test_reward_run_finishes_if_judging_fails(ensemble, tiny_base, sft_run, tmp_path, monkeypatch):
    """Out of memory while judging loses only the report; resuming writes it."""
    options = STEPS | {"model_name_or_path": tiny_base, "parent": sft_run, "max_rows": 40}
    options |= {"dataset_name": "world:comparisons", "ensemble": ensemble}
    folder = tmp_path / "reward"

    def fails(*_, **__):
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(judge, "judge_scorer", fails)
        with pytest.raises(torch.OutOfMemoryError):
            call("reward", folder, **options)
    first = folder if ensemble == 1 else folder / "member-0"
    run = Run.load(first)
    assert (run.state, run.results["judging"]) == ("finished", "failed, OutOfMemoryError: no room")
    require_adapter(str(first), "reward_model")
    trained = load_file(first / "adapter_model.safetensors")
    call("reward", folder, resume_from_checkpoint=True, **options)
    for part in [folder] if ensemble == 1 else require_reward_models(str(folder)):
        run = Run.load(part)
        assert run.state == "finished"
        assert "judging" not in run.results
        report = json.loads((run.path / "reward_report.json").read_text())
        assert run.results["pairwise_accuracy"] == report["pairwise_accuracy"]
    assert all(
        (load_file(first / "adapter_model.safetensors")[k] == trained[k]).all() for k in trained
    )


@pytest.mark.slow
def test_ppo_saves_average_and_logs_gold_metrics(tiny_base, sft_run, reward_run, tmp_path):
    ppo = call(
        "ppo",
        tmp_path / "ppo",
        model_name_or_path=tiny_base,
        parent=sft_run,
        reward_model=reward_run,
        total_episodes=16,
        gradient_accumulation_steps=1,
        response_length=8,
        ema_decay=0.5,
        eval_strategy="steps",
        eval_steps=4,
        eval_prompts=24,
        max_rows=32,
    )
    run = Run.load(ppo)
    assert run.results["adapter"].startswith(
        "the adapter is an average of the policy (ema_decay 0.5)"
    )
    assert "last/" in (ppo / "README.md").read_text()
    average, last = (load_file(ppo / f / "adapter_model.safetensors") for f in (".", "last"))
    assert any((average[name] != last[name]).any() for name in last)
    evaluated = [row for row in run.metrics() if "eval_gold/over_refusal" in row]
    assert [row["step"] for row in evaluated] == [0, 4, 8]
    assert len((ppo / "samples.jsonl").read_text().splitlines()) == 3 * 24
    assert any("a rollout of" in warning for warning in run.results["warnings"])  # 8 answers


@pytest.mark.slow
def test_ensemble_trains_resumes_and_rewards_ppo(tiny_base, sft_run, tmp_path):
    options = {"model_name_or_path": tiny_base, "parent": sft_run, "max_steps": 2, "max_rows": 40}
    options |= {"dataset_name": "world:comparisons", "demonstrations": "world:demonstrations"}
    folder = call("reward", tmp_path / "reward", ensemble=3, unit_variance=True, **options)
    first = Run.load(folder)
    assert (first.recipe, first.state, first.results["members"]) == (ENSEMBLE, "finished", 3)
    assert 0 <= first.results["members_agreement"] <= 1
    members = require_reward_models(str(folder))
    heads = [load_file(f"{member}/head.safetensors")["weight"] for member in members]
    assert not torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[1], heads[2])
    assert [Run.load(m).seed for m in members] == [0, 1, 2]
    assert all(Run.load(m).results["score_std"] == 1.0 for m in members)
    alone = call("reward", tmp_path / "alone", unit_variance=True, **options)
    assert torch.equal(load_file(alone / "head.safetensors")["weight"], heads[0])
    # as a crash during the last member leaves it
    shutil.rmtree(members[2])
    Run.load(folder).fail(RuntimeError("killed"))
    call(
        "reward",
        folder,
        ensemble=3,
        unit_variance=True,
        resume_from_checkpoint=True,
        **options,
    )
    assert torch.equal(load_file(f"{members[2]}/head.safetensors")["weight"], heads[2])
    assert Run.load(folder).results == first.results
    ppo = call(
        "ppo",
        tmp_path / "ppo",
        model_name_or_path=tiny_base,
        parent=sft_run,
        reward_model=folder,
        total_episodes=8,
        gradient_accumulation_steps=1,
        response_length=8,
        reward_aggregation="mean_minus_std",
        max_rows=16,
    )
    assert [v for k, v in Run.load(ppo).parents.items() if k != "adapter"] == members
    Run(sft_run, "sft", state="finished").save()
    words = ["--config", f"{WORLD}/evaluate.yaml", "--model_name_or_path", tiny_base]
    words += ["--runs", sft_run, "--reward_model", folder, "--output_dir", tmp_path / "report"]
    words += ["--comparisons", "world:comparisons", "--max_prompts", 4, "--max_new_tokens", 4]
    assert run(find("evaluate"), list(map(str, words))) == 0
    section = json.loads((tmp_path / "report" / "report.json").read_text())["reward_model"]
    assert (section["members"], len(section["members_accuracy"])) == (3, 3)
    assert abs(section["demonstration_mean"]) < 0.2


def test_ppo_trains_on_python_rewards_only(tiny_base, sft_run, tmp_path, capsys):
    """Without a reward model, the value is an adapter that starts from zero."""
    code, folder = tmp_path / "mine.py", tmp_path / "run"
    code.write_text(
        "def brief(completions, **_):\n    return [-len(c[0]['content']) for c in completions]\n"
        "def ends(**_):\n    raise SystemExit(0)\n"
    )
    shipped = Path(f"{WORLD}/ppo.yaml").read_text().splitlines()
    config = tmp_path / "ppo.yaml"
    config.write_text("\n".join(row for row in shipped if not row.startswith("reward_model:")))
    words = ["--config", str(config), "--parent", str(sft_run), "--output_dir", str(folder)]
    words += ["--model_name_or_path", str(tiny_base), "--total_episodes", "16"]
    words += ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1"]
    words += ["--response_length", "8", "--logging_steps", "1"]

    def ppo(*more):
        return run(find("ppo"), [*words, *more])

    assert ppo() == 2
    assert "reward_model` is missing" in capsys.readouterr().err
    assert ppo("--reward_funcs", f"{code}:brief") == 2
    assert "--value_role zero" in capsys.readouterr().err
    assert ppo("--reward_funcs", f"{code}:ends", "--value_role", "zero") == 2
    error = "RewardError: reward function ends called sys.exit: 0"
    assert error in capsys.readouterr().err
    assert (Run.load(folder).state, Run.load(folder).error.startswith(error)) == ("failed", True)
    assert ppo("--reward_funcs", f"{code}:brief", "--value_role", "zero") == 0
    rows = Run.load(folder).metrics()
    assert any(row.get("rewards/brief/mean", 0) < 0 for row in rows)
    assert Run.load(folder).state == "finished"


@pytest.mark.slow
def test_evaluation_reads_only_test_split_in_batches(
    tiny_base, sft_run, reward_run, tmp_path, monkeypatch
):
    sft = Run.start(tmp_path / "runs" / "sft", recipe="sft")
    sft.config = {"model_name_or_path": str(tiny_base), "dtype": "float32"}
    sft.base = json.loads((sft_run / BASE_FILE).read_text())
    shutil.copytree(sft_run, sft.path, dirs_exist_ok=True)
    sft.finish()
    data = tmp_path / "data"
    data.mkdir()
    pair = {"prompt": "Where?", "chosen": " Here.", "rejected": " No."}
    (data / "test.jsonl").write_text(
        json.dumps(pair) + "\n" + json.dumps(pair | {"prompt": "Who?"})
    )
    (data / "train.jsonl").write_text('{"prompt": 1, "chosen": 2, "rejected": 3}\n')  # malformed
    batch_sizes = []
    score = judge.score_ids

    def recorded(*args, **kwargs):
        batch_sizes.append(kwargs["batch_size"])
        return score(*args, **kwargs)

    monkeypatch.setattr(judge, "score_ids", recorded)
    options = {"runs": sft.path, "reward_model": reward_run, "comparisons": data, "batch_size": 3}
    options |= {
        "prompts": data,
        "max_prompts": 2,
        "max_new_tokens": 4,
        "demonstrations": "world:demonstrations",
    }
    words = [w for name, value in options.items() for w in (f"--{name}", str(value))]
    words += ["--output_dir", str(tmp_path / "report")]
    assert run(find("evaluate"), words) == 0
    assert set(batch_sizes) == {3}
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert (report["prompts"], report["few_shot"]) == (2, 0)  # the base has a chat template
    assert report["checkpoints"]["sft"]["other_sampling"] == {}
    assert report["reward_model"]["pairs"] == 2


@pytest.mark.slow
def test_report_uses_base_and_held_out_rows_of_runs(tiny_base, tmp_path, capsys):
    data = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"Is it {i}?", "chosen": "Yes.", "rejected": "No."} for i in range(12)]
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    few = {"dataset_name": data, "test_split_size": 0.25, "max_steps": 1}
    base = {"model_name_or_path": tiny_base, "dtype": "bfloat16"}
    sft = call("sft", tmp_path / "sft", **base, **few)
    reward = call("reward", tmp_path / "reward", parent=sft, **few)
    words = ["--runs", sft, "--reward_model", reward, "--output_dir", tmp_path / "report"]
    words += ["--max_new_tokens", 4, "--demonstrations", data]
    assert run(find("evaluate"), list(map(str, words))) == 0
    assert f"prompts: 3 that {sft} held out" in capsys.readouterr().out
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert (report["prompts"], report["reward_model"]["pairs"], report["few_shot"]) == (3, 3, 0)
    config = Run.load(tmp_path / "report").config
    assert (config["model_name_or_path"], config["dtype"]) == (str(tiny_base), "bfloat16")
