"""KTO through its recipe: labels out of comparisons, the SFT adapter as reference, neighbours apart."""

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
    given = {
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
    for name, value in (given | options).items():
        words += [f"--{name}", str(value)]
    assert run(find("kto"), words) == 0
    return Run.load(folder)


def test_good_answers_rise_above_bad_ones_from_where_sft_stands(
    tiny_base, sft_run, tmp_path, capsys
):
    run = call(tiny_base, sft_run, tmp_path / "kto", max_rows=16, num_train_epochs=6)
    assert "preference (by its columns" in (said := capsys.readouterr().out)
    assert "-> unpaired (train 32" in said
    logged = [row for row in run.metrics() if "rewards/margins" in row]
    # before the first update the policy is its reference, whose adapter is far from the base's zero
    assert abs(logged[0]["rewards/chosen"]) < 1e-5
    assert abs(logged[0]["rewards/rejected"]) < 1e-5
    last = logged[-4:]  # an epoch
    chosen, rejected = (sum(r[f"rewards/{side}"] for r in last) for side in ("chosen", "rejected"))
    assert chosen / 4 > rejected / 4 + 0.2
    start, found = (load_file(p / "adapter_model.safetensors") for p in (sft_run, run.path))
    assert start.keys() == found.keys()
    assert any(not torch.equal(start[name], found[name]) for name in start)
    assert run.parents == {"adapter": str(sft_run)}
    assert not (run.path / "ref").exists()


def test_a_rows_kl_is_hardly_ever_taken_from_an_answer_to_its_own_prompt(
    tiny_base, sft_run, tmp_path, monkeypatch
):
    """In the order of the comparisons every second row would stand after its own prompt's other answer."""
    seen = []

    class Watched(supervised.KTOTrainer):
        _name = "KTO"

        def __init__(self, model, **given):
            super().__init__(model, **given)
            seen.extend(self.train_dataset)

    monkeypatch.setattr(supervised, "KTOTrainer", Watched)
    call(tiny_base, sft_run, tmp_path / "kto", max_rows=200, max_steps=1)
    own = {}
    for row in seen:
        own.setdefault(str(row["prompt"]), []).append(row["completion_ids"])
    mine = [row["KL_completion_ids"] in own[str(row["prompt"])] for row in seen]
    assert len(seen) == 400
    assert sum(mine) / len(mine) < 0.1


@pytest.mark.parametrize("method", ["dora", "ia3", "prefix"])
def test_the_reference_is_sft_whatever_kind_its_adapter_is(method, tiny_base, tmp_path):
    assert methods.call("sft", tmp_path / "sft", tiny_base, peft_method=method) == 0
    run = call(tiny_base, tmp_path / "sft", tmp_path / "kto", max_rows=16, max_steps=2)
    first = run.metrics()[0]
    assert abs(first["rewards/chosen"]) < 1e-5
    assert abs(first["rewards/rejected"]) < 1e-5
    start, found = (
        load_file(p / "adapter_model.safetensors") for p in (tmp_path / "sft", run.path)
    )
    assert any(not torch.equal(start[name], found[name]) for name in start)
