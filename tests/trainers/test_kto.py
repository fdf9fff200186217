"""KTO through its recipe: labels from comparisons, the SFT adapter as reference, KL completions."""

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.models import methods
from toolkit.cli import run
from toolkit.recipe import find
from toolkit.runs.run import Run
from toolkit.trainers import supervised

pytestmark = pytest.mark.slow


def call(base, parent, folder, **options):
    """Run the recipe with its shipped config of the embedded world and some options changed."""
    defaults = {
        "model_name_or_path": base,
        "parent": parent,
        "output_dir": folder,
        "dataset_name": "world:comparisons",
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "warmup_steps": 0,
        "save_strategy": "no",
    }
    words = ["--config", str(ROOT / "recipes/configs/world/kto.yaml")]
    for name, value in (defaults | options).items():
        words += [f"--{name}", str(value)]
    assert run(find("kto"), words) == 0
    return Run.load(folder)


def test_kto_rewards_separate_starting_from_sft(tiny_base, sft_run, tmp_path, capsys):
    run = call(tiny_base, sft_run, tmp_path / "kto", max_rows=16, num_train_epochs=6)
    output = capsys.readouterr().out
    assert "preference (by its columns" in output
    assert "-> unpaired (train 32" in output
    logged = [row for row in run.metrics() if "rewards/margins" in row]
    # before the first update the policy equals its reference, which differs from the base
    assert abs(logged[0]["rewards/chosen"]) < 1e-5
    assert abs(logged[0]["rewards/rejected"]) < 1e-5
    last = logged[-4:]  # an epoch
    chosen, rejected = (sum(r[f"rewards/{side}"] for r in last) for side in ("chosen", "rejected"))
    assert chosen / 4 > rejected / 4 + 0.2
    start, end = (load_file(p / "adapter_model.safetensors") for p in (sft_run, run.path))
    assert start.keys() == end.keys()
    assert any(not torch.equal(start[name], end[name]) for name in start)
    assert run.parents == {"adapter": str(sft_run)}
    assert not (run.path / "ref").exists()


def test_kl_completions_come_from_other_prompts(tiny_base, sft_run, tmp_path, monkeypatch):
    """In the comparisons' order every second row would follow its own prompt's other answer."""
    splits = []

    class Recorded(supervised.KTOTrainer):
        _name = "KTO"

        def __init__(self, model, **kwargs):
            super().__init__(model, **kwargs)
            splits.extend([list(self.train_dataset), list(self.eval_dataset)])

    monkeypatch.setattr(supervised, "KTOTrainer", Recorded)
    options = {"max_rows": 200, "max_steps": 1, "test_split_size": 0.5}
    call(tiny_base, sft_run, tmp_path / "kto", eval_strategy="steps", eval_steps=1, **options)
    for rows in splits:
        completions = {}
        for row in rows:
            completions.setdefault(str(row["prompt"]), []).append(row["completion_ids"])
        own = [row["KL_completion_ids"] in completions[str(row["prompt"])] for row in rows]
        assert len(own) >= 100
        assert sum(own) / len(own) < 0.1


@pytest.mark.parametrize("method", ["dora", "ia3", "prefix"])
def test_kto_reference_is_sft_for_every_kind(method, tiny_base, tmp_path):
    assert methods.call("sft", tmp_path / "sft", tiny_base, peft_method=method) == 0
    run = call(tiny_base, tmp_path / "sft", tmp_path / "kto", max_rows=16, max_steps=2)
    first = run.metrics()[0]
    assert abs(first["rewards/chosen"]) < 1e-5
    assert abs(first["rewards/rejected"]) < 1e-5
    start, end = (load_file(p / "adapter_model.safetensors") for p in (tmp_path / "sft", run.path))
    assert any(not torch.equal(start[name], end[name]) for name in start)
