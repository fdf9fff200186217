"""Predicted memory against counting by hand, against recorded peaks, and against a run."""

import json
import os
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from peft import LoraConfig

from tests.conftest import ROOT
from toolkit.errors import ConfigError
from toolkit.models.arguments import ModelArguments
from toolkit.models.roles import POLICY, Roles
from toolkit.preflight.apart import apart
from toolkit.preflight.cases import CASES, Case, predict_case
from toolkit.preflight.fit import Planner
from toolkit.preflight.live import ACTIVATIONS, LOGITS, LiveBytes
from toolkit.preflight.measure import measure
from toolkit.preflight.phantom import made_in, phantom_base, phantom_mode, stored_bytes
from toolkit.preflight.rehearsal import Peak, with_score_head

RECORDED = json.loads((ROOT / "docs/results/preflight.json").read_text(encoding="utf-8"))["cases"]
WITHIN = 0.15


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Make a case's base on disk."""

    def make(case):
        folder = tmp_path_factory.mktemp(case.name)
        case.save_base(folder)
        return folder

    return make


def predicted(case, folder, **named):
    return apart(lambda: predict_case(case, folder, **named))


def planner_of(case, folder):
    """As the recipes predict: from a few layers."""
    return Planner(
        case.model(folder),
        lambda layers: layers,
        lambda layers, batch: predicted(replace(case, batch=batch), folder, layers=layers),
    )


def test_live_bytes_follow_what_is_allocated_and_freed():
    live = LiveBytes(7, resident=False)
    with live:
        a = torch.zeros(10, 10)
        b = torch.zeros(3, 7)
        view = a.view(100)
        view.add_(1)
        assert live.live == {ACTIVATIONS: 400, LOGITS: 84}
        del a, b
        assert live.total == 400  # the view holds it
        del view
        assert live.total == 0
        torch.zeros(50)
    assert live.peak == 484
    assert live.at_peak == {ACTIVATIONS: 400, LOGITS: 84}


def test_a_phantom_is_as_large_as_the_base_it_stands_for(tiny_base):
    from toolkit.models.base import load_base

    for four_bit in (False, True):
        model = ModelArguments(
            model_name_or_path=str(tiny_base), dtype="float32", load_in_4bit=four_bit
        )
        loaded, _ = load_base(model)
        phantom = phantom_base(model, phantom_mode(), scalar=False)
        weights = stored_bytes(loaded)
        if four_bit:  # the scales hang on the parameters, where no module sees them
            weights += sum(
                p.quant_state.absmax.nbytes
                for p in loaded.parameters()
                if hasattr(p, "quant_state")
            )
        assert stored_bytes(phantom) == pytest.approx(weights, rel=0.02)


@pytest.mark.filterwarnings("error:Accessing the data pointer")
def test_a_copy_of_a_phantom_asks_for_no_data(tiny_base):
    """PyTorch's own copy does, and damages the memory of the process when it goes."""
    model = ModelArguments(model_name_or_path=str(tiny_base), dtype="bfloat16")
    mode = phantom_mode()
    base = phantom_base(model, mode, scalar=True)
    with made_in(mode):
        adapted = with_score_head(base, LoraConfig(r=2, target_modules=["q_proj"]))
    original = adapted.get_base_model().score.original_module.weight
    copied = adapted.get_base_model().score.modules_to_save["default"].weight
    assert copied.shape == original.shape and copied.dtype == original.dtype
    assert isinstance(copied, torch.nn.Parameter) and copied.requires_grad
    assert copied.untyped_storage()._cdata != original.untyped_storage()._cdata


def test_what_a_layer_keeps_is_what_counting_by_hand_says(base):
    """Bytes that autograd holds after a forward pass, per layer of a Llama with LoRA everywhere."""
    case = Case("hand", "sft", hidden=128, layers=3, vocabulary=512)
    folder, rank, tokens = base(case), 4, 64
    kept = {}
    for layers in (2, 3):
        mode = phantom_mode()
        model = phantom_base(case.model(folder), mode, scalar=False, layers=layers)
        roles = Roles(model, {})
        with made_in(mode):
            roles.create(
                POLICY, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
            )
        roles.model.train()
        live = LiveBytes(case.vocabulary, resident=False)
        with live:
            out = roles.model.get_base_model().model(
                input_ids=torch.ones((1, tokens), dtype=torch.long), use_cache=False
            )
            kept[layers] = live.live[ACTIVATIONS]
            del out
    d, wide, heads = case.hidden, case.hidden * 8 // 3 // 64 * 64, case.hidden // 64
    norms = 2 * (3 * d + 1)  # its input, the scaled input, the output; a number per token
    attention = 3 * d + d + heads  # rotated q and k, v, the result; its log-sum
    mlp = 4 * wide  # gate, its activation, up, their product
    low_rank = 7 * rank
    residual = 0  # the two sums are the norms' inputs
    by_hand = 4 * tokens * (norms + attention + mlp + low_rank + residual)
    assert kept[3] - kept[2] == pytest.approx(by_hand, rel=0.1)


@pytest.mark.parametrize("recorded", RECORDED, ids=[row["case"]["name"] for row in RECORDED])
def test_recorded_peaks_are_predicted_within_15_percent(recorded, base):
    case = Case(**recorded["case"])
    told = planner_of(case, base(case)).highest(case.batch).total / 2**20
    assert abs(told / recorded["measured_mb"] - 1) <= WITHIN


def test_the_record_spans_what_it_should():
    cases = [Case(**row["case"]) for row in RECORDED]
    assert len(cases) >= 6
    assert {c.recipe for c in cases} == {"sft", "reward", "dpo", "ppo"}
    assert {c.checkpointing for c in cases} == {c.four_bit for c in cases} == {True, False}
    assert {(c.hidden, c.layers) for c in cases} == {(256, 4), (768, 12)}
    assert {c.name for c in cases} <= {c.name for c in CASES}


@pytest.mark.slow
def test_a_run_takes_what_was_predicted(base):
    case = Case("live", "sft", batch=16, length=128)
    told = max(peak.total for peak in predicted(case, base(case))) / 2**20
    assert told > 200
    assert measure(case) == pytest.approx(told, rel=WITHIN)


@pytest.mark.parametrize("recipe", ["sft", "ppo"])
def test_a_few_layers_tell_what_all_take(recipe, base):
    """Also where a pass holds more than the weights: 10 narrow layers, many tokens."""
    case = Case("depth", recipe, 64, 10, 128, batch=16, checkpointing=recipe == "sft")
    folder = base(case)
    plan = planner_of(case, folder)
    assert len(plan.rehearsals) == 2
    every = predicted(case, folder)
    for told, whole in zip(plan.peaks(case.batch), every, strict=True):
        assert told.total == pytest.approx(whole.total, rel=0.01)


def test_the_largest_batch_fits_and_the_next_does_not(base):
    case = Case("largest", "sft", layers=2, batch=4, length=64)
    folder = base(case)
    plan = planner_of(case, folder)
    memory = plan.highest(9).total + 4096
    assert plan.highest(10).total > memory
    assert plan.largest_batch(memory, 4, plan.peaks(4)) == 9
    assert plan.largest_batch(1 << 20, 4, plan.peaks(4)) == 0


def test_a_prediction_that_dies_or_hangs_takes_nothing_down():
    with pytest.raises(ConfigError, match="died"):
        apart(partial(os._exit, 9))
    with pytest.raises(ConfigError, match="given up after 0 s"):
        apart(lambda: time.sleep(60), limit_s=0.2)
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        apart(lambda: 1 / 0)
    assert apart(lambda: [1, "a"]) == [1, "a"]


def test_a_fresh_process_sees_no_gpu_and_inherits_nothing(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert apart(partial(os.getenv, "CUDA_VISIBLE_DEVICES"), fresh=True) == ""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert apart(os.getpid, fresh=True) != os.getpid()
    with pytest.raises(ConfigError, match="does not start"):
        apart(lambda: 1, fresh=True)  # nothing that could be handed over
    monkeypatch.setattr("toolkit.preflight.apart.IMPORTS_S", 0.0)
    with pytest.raises(ConfigError, match="given up after 0 s"):
        apart(partial(time.sleep, 60), limit_s=0.2, fresh=True)


def test_a_process_that_uses_a_gpu_is_never_copied(monkeypatch):
    made = []

    def context(kind):
        made.append(kind)
        raise ConfigError("far enough")

    monkeypatch.setattr("toolkit.preflight.apart.multiprocessing.get_context", context)
    for used in (True, False):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda used=used: used)
        with pytest.raises(ConfigError, match="far enough"):
            apart(os.getpid)
    assert made == ["spawn", "fork"]


def test_the_largest_batch_is_that_of_the_phase_that_grows():
    """Sampling needs the most at first and the same at any batch; the update overtakes it."""
    run = lambda _, batch: [Peak("sampling", {"a": 5000}), Peak("update", {"a": 500 * batch})]  # noqa: E731
    plan = Planner.__new__(Planner)
    plan.rehearsals, plan.run = [None], run
    assert plan.largest_batch(8000, 4, plan.peaks(4)) == 16
    assert plan.largest_batch(4999, 4, plan.peaks(4)) == 0
