"""Predicted memory against counting by hand, against recorded peaks, and against a run."""

import json
import os
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from peft import LoraConfig

from benchmarks.memory import CASES, Case, measure, predict_case
from tests.conftest import ROOT
from toolkit.errors import ConfigError
from toolkit.models.arguments import ModelArguments
from toolkit.models.base import load_base
from toolkit.models.roles import POLICY, Roles
from toolkit.preflight.dry_run import Peak, with_score_head
from toolkit.preflight.fake_model import made_in, phantom_base, phantom_mode, stored_bytes
from toolkit.preflight.fit import Planner
from toolkit.preflight.isolated_process import apart
from toolkit.preflight.memory_tracker import ACTIVATIONS, LOGITS, LiveBytes
from toolkit.preflight.ppo_dry_run import PPORehearsal
from toolkit.sampling.decoding import decode

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


def test_a_copy_of_a_phantom_asks_for_no_data(tiny_base, monkeypatch):
    """PyTorch's own copy does, and damages the memory of the process when it goes."""

    def asked(*_):
        raise AssertionError("PyTorch's own copy")

    monkeypatch.setattr(torch.Tensor, "__deepcopy__", asked)
    monkeypatch.setattr(torch.nn.Parameter, "__deepcopy__", asked)
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
    monkeypatch.setattr("toolkit.preflight.isolated_process.IMPORTS_S", 0.0)
    with pytest.raises(ConfigError, match="given up after 0 s"):
        apart(partial(time.sleep, 60), limit_s=0.2, fresh=True)


def test_a_process_that_uses_a_gpu_is_never_copied(monkeypatch):
    made = []

    def context(kind):
        made.append(kind)
        raise ConfigError("far enough")

    monkeypatch.setattr("toolkit.preflight.isolated_process.multiprocessing.get_context", context)
    for used in (True, False):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda used=used: used)
        with pytest.raises(ConfigError, match="far enough"):
            apart(os.getpid)
    assert made == ["spawn", "fork"]


def planned(*phases):
    """A planner whose phases take what these functions of the batch say; it counts what is tried."""
    plan = Planner.__new__(Planner)
    tried = []

    def run(_, batch):
        tried.append(batch)
        return [Peak(str(i), {"a": int(phase(batch))}) for i, phase in enumerate(phases)]

    plan.rehearsals, plan.run = [None], run
    return plan, tried


@pytest.mark.parametrize(
    ("phases", "batch", "memory", "largest"),
    [
        ([lambda _: 5000, lambda b: 500 * b], 4, 8000, 16),
        ([lambda _: 5000, lambda b: 500 * b], 4, 4999, 0),
        ([lambda _: 5000, lambda b: 500 * b], 16, 6000, 12),  # the run's own does not fit
        ([lambda _: 5000, lambda b: 500 * b], 33, 6000, 12),
        ([lambda b: max(5000, 500 * b)], 4, 20000, 40),  # flat at first
        ([lambda b: 1000 + 1000 * b**0.5], 1, 8000, 49),  # ever flatter
        ([lambda b: 4934 + 2 * b + max(0, 5663 * (b - 56))], 1, 5053, 56),  # a sharp bend
        ([lambda b: 1000 * b], 1, 1500, 1),
        ([lambda b: 1000 * b], 3, 3000, 3),  # to the byte
        ([lambda b: 1000 * b], 2, 999, 0),
    ],
)
def test_the_largest_batch_is_found_whatever_the_curve(phases, batch, memory, largest):
    plan, tried = planned(*phases)
    assert plan.largest_batch(memory, batch, plan.peaks(batch)) == largest
    assert len(tried) <= 14


def test_layers_of_several_kinds_are_seen():
    from transformers import AutoConfig

    from toolkit.preflight.fit import _alike

    assert _alike(AutoConfig.for_model("llama")) and _alike(AutoConfig.for_model("mixtral"))
    assert _alike(AutoConfig.for_model("qwen3"))
    assert not _alike(AutoConfig.for_model("qwen2_moe", decoder_sparse_step=2))
    assert not _alike(AutoConfig.for_model("deepseek_v3", first_k_dense_replace=3))


def test_sampling_counts_what_decoding_holds(base):
    """Also the moment in which a layer's room grows, and the old one is still there."""
    case = Case("decoding", "ppo", 64, 2, 128, batch=8, length=256)
    folder = base(case)
    model, training, prompt = case.model(folder), case.training(folder / "run"), 9
    training.response_length = 7 * 17 + 1  # its last token finds no room
    told = apart(
        lambda: PPORehearsal(training, model, parent=None, reward_model=[])._generate(prompt)
    )
    parts = told[1].parts
    loaded, _ = load_base(model)
    with torch.no_grad(), LiveBytes(case.vocabulary, resident=True) as live:
        decode(loaded, [[1] * prompt] * 8, max_new_tokens=120, stop=[], pad_id=0, temperature=1.0)
    counted = parts["activations"] + parts["logits"] + parts["kv_cache"]
    assert counted == pytest.approx(live.peak, rel=0.05)
