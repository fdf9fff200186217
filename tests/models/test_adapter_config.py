"""An adapter made elsewhere cannot change the base, import code or stop the others."""

import json
import time

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tests.conftest import fresh_roles, lora, randomise
from toolkit.errors import CheckpointError
from toolkit.models.adapter_config import read_config
from toolkit.models.adapters import read_adapter
from toolkit.models.base_state import BaseState
from toolkit.models.roles import POLICY, REFERENCE, Roles

SLOW = "(a+)+$|(\\w+)+!|((.*)*)*x"
IDS = torch.arange(40).view(2, 20)


def logits(roles: Roles, name: str | None) -> torch.Tensor:
    with roles.using(name) as model, torch.no_grad():
        return model(input_ids=IDS).logits


def edit(run, **changes) -> None:
    file = run / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def outcome(run) -> str:
    try:
        read_adapter(run)
    except CheckpointError as error:
        return str(error)
    return "accepted"


REFUSED = {
    "layer_replication": [[0, 2], [0, 2]],
    "target_parameters": ["mlp.gate_proj.weight"],
    "megatron_config": {"a": 1},
    "trainable_token_indices": [1, 2],
    "modules_to_save": [SLOW],
    "rank_pattern": {SLOW: 4},
    "alpha_pattern": {SLOW: 4},
    "corda_config": {"a": 1},
    "loftq_config": {"loftq_bits": 4},
    "lora_ga_config": {"a": 1},
    "velora_config": {"a": 1},
    "monteclora_config": {"a": 1},
    "kasa_config": {"a": 1},
    "arrow_config": {"a": 1},
    "use_bdlora": {"a": 1},
    "use_qalora": True,
    "alora_invocation_tokens": [1],
    "ensure_weight_tying": True,
    "field_of_a_newer_peft": "anything",
    "init_lora_weights": "pissa_niter_4",
    "peft_type": "LOHA",
    "task_type": "SEQ_2_SEQ_LM",
    "target_modules": ["(a+)+"],
    "r": 10**9,
    "lora_alpha": float("nan"),
    "lora_dropout": 7,
    "use_dora": "yes",
    "bias": "some",
}


@pytest.mark.parametrize("field", REFUSED)
def test_fields_beyond_plain_lora_are_rejected_by_name(sft_run, field):
    edit(sft_run, **{field: REFUSED[field]})
    assert outcome(sft_run) != "accepted"
    assert field in outcome(sft_run)


@pytest.mark.parametrize(
    "changes",
    [
        {"field_of_a_newer_peft": None},
        {"another_field": False, "third": [], "fourth": {}},
        {"auto_mapping": {"parent_library": "planted", "base_model_class": "X"}},
        {"runtime_config": {"ephemeral_gpu_offload": True}},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"init_lora_weights": "gaussian"},
        {"target_modules": "all-linear"},
        {"rank_pattern": {"^layers.7.q_proj$": 2, r"model\.layers\.\d.none": 1}},
    ],
)
def test_fields_without_effect_are_accepted(sft_run, changes, model_config):
    expected, roles = fresh_roles(model_config), fresh_roles(model_config)
    expected.attach(POLICY, sft_run)
    edit(sft_run, **changes)
    roles.attach(POLICY, sft_run)
    assert torch.equal(logits(roles, POLICY), logits(expected, POLICY))


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": SLOW},
        {"target_modules": r".*\.(q|k|v|o)_proj|.*mlp\..*"},
        {"exclude_modules": SLOW},
        {"layers_to_transform": [0, 1], "layers_pattern": [SLOW]},
    ],
)
def test_layers_come_from_the_weights_instead_of_patterns(sft_run, changes, model_config):
    expected, roles = fresh_roles(model_config), fresh_roles(model_config)
    expected.attach(POLICY, sft_run)
    edit(sft_run, **changes)
    began = time.process_time()
    roles.attach(POLICY, sft_run)
    assert time.process_time() - began < 2
    assert torch.equal(logits(roles, POLICY), logits(expected, POLICY))


def test_prompt_adapter_does_not_load_its_tokenizer(tmp_path, pristine, monkeypatch):
    model = get_peft_model(
        pristine, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    model.save_pretrained(tmp_path)
    text = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "x"}
    edit(tmp_path, **text, tokenizer_name_or_path="evil/tokenizer")
    config, _ = read_adapter(tmp_path)
    assert (config.prompt_tuning_init, config.tokenizer_name_or_path) == ("RANDOM", None)
    edit(tmp_path, tokenizer_kwargs={"trust_remote_code": True})
    assert "`tokenizer_kwargs` is not supported" in outcome(tmp_path)
    edit(tmp_path, tokenizer_kwargs=None, num_virtual_tokens=10**6)
    assert "`num_virtual_tokens` is 1000000, larger than the adapter's weights" in outcome(tmp_path)


def fails(*_, **__):
    raise MemoryError


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("damage", ["shape", "error in PEFT", "config", "head"])
def test_failed_attach_does_not_change_the_base(model_config, sft_run, first, damage, monkeypatch):
    roles = fresh_roles(model_config)
    if not first:
        roles.create(REFERENCE, lora())
        randomise(roles, REFERENCE, seed=1)
    names = [None] if first else [None, REFERENCE]
    before = {name: logits(roles, name) for name in names}
    parameters = [n for n, _ in roles.base.named_parameters()]
    state = BaseState(roles.base, [REFERENCE])
    if damage == "shape":
        weights = load_file(sft_run / "adapter_model.safetensors")
        weights |= {k: v[:, :2].contiguous() for k, v in list(weights.items())[-1:]}
        save_file(weights, sft_run / "adapter_model.safetensors")
    elif damage == "config":
        edit(sft_run, layer_replication=[[0, 2], [0, 2]])
    elif damage == "error in PEFT":
        monkeypatch.setattr("peft.tuners.lora.LoraModel._mark_only_adapters_as_trainable", fails)
    with pytest.raises((CheckpointError, MemoryError)):
        roles.attach(POLICY, sft_run, head=damage == "head")
    monkeypatch.undo()
    assert state.difference(roles.base, [REFERENCE]) is None
    assert [n for n, _ in roles.base.named_parameters()] == parameters
    for name, expected in before.items():
        assert torch.equal(logits(roles, name), expected)
    roles.create(POLICY, lora())  # the name can be used again


@pytest.mark.parametrize("change", ["layers", "weight"])
def test_changed_base_stops_all_roles(model_config, sft_run, monkeypatch, change):
    """In place of a fault in PEFT that the list of fields does not foresee."""
    roles = fresh_roles(model_config)
    roles.create(REFERENCE, lora())

    def damages(*_):
        if change == "layers":
            roles.base.model.layers.append(roles.base.model.layers[0])
        else:
            roles.base.model.norm.weight.data = roles.base.model.norm.weight + 1
        raise CheckpointError("refused")

    monkeypatch.setattr("toolkit.models.roles.fill", damages)
    with pytest.raises(CheckpointError, match="refused"):
        roles.attach(POLICY, sft_run)
    with pytest.raises(CheckpointError, match=r"changed the base .*; load the base again"):
        logits(roles, REFERENCE)


def test_config_of_this_peft_has_no_unknown_field(tmp_path):
    """Every field that PEFT writes for a plain LoRA is accepted or has its default."""
    LoraConfig(r=8, target_modules=["q_proj"], task_type="CAUSAL_LM").save_pretrained(tmp_path)
    assert read_config(tmp_path).target_modules == {"q_proj"}
