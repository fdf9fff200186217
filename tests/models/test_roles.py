"""Roles on one PEFT model: switching, isolation, gradients, saving and loading."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.conftest import fresh_roles, lora, randomise, trainable_names
from toolkit.errors import CheckpointError
from toolkit.kernels.packing import padded
from toolkit.models.base import check_fingerprint, save_fingerprint
from toolkit.models.heads import ScalarHead
from toolkit.models.passes import collate, completion_logprobs, scores, state_values
from toolkit.models.roles import POLICY, REFERENCE, REWARD, VALUE

PROMPTS = [[1, 20, 30, 40], [1, 25]]
COMPLETIONS = [[50, 60, 2], [70, 80, 90, 2]]


@pytest.fixture
def batch():
    return collate(PROMPTS, COMPLETIONS, pad_id=0)


def logits(roles, name, batch):
    with roles.using(name) as model, torch.no_grad():
        return model(input_ids=batch.input_ids, attention_mask=batch.attention.long()).logits


def test_switching_restores_active_and_trainable(ppo_roles):
    before = trainable_names(ppo_roles)
    assert any(".default." in n for n in before)
    assert any(".value." in n for n in before)
    assert not any(".ref." in n or ".reward." in n for n in before)
    for name in (REFERENCE, VALUE, REWARD, None, POLICY):
        with ppo_roles.using(name):
            assert trainable_names(ppo_roles) == before
        assert trainable_names(ppo_roles) == before
        assert ppo_roles.model.active_adapters == [POLICY]


@pytest.mark.parametrize("name", [REFERENCE, None])
def test_error_inside_using_restores_everything(ppo_roles, batch, name):
    before, trainable = logits(ppo_roles, POLICY, batch), trainable_names(ppo_roles)
    with pytest.raises(RuntimeError, match="boom"), ppo_roles.using(name):
        raise RuntimeError("boom")
    assert ppo_roles.model.active_adapters == [POLICY]
    assert trainable_names(ppo_roles) == trainable
    assert torch.equal(logits(ppo_roles, POLICY, batch), before)


def test_using_nests(ppo_roles, batch):
    expected = logits(ppo_roles, REFERENCE, batch)
    with ppo_roles.using(REFERENCE) as model:
        logits(ppo_roles, VALUE, batch)
        logits(ppo_roles, None, batch)
        with torch.no_grad():
            again = model(input_ids=batch.input_ids, attention_mask=batch.attention.long()).logits
    assert torch.equal(again, expected)


def test_using_nests_inside_bare_base(ppo_roles, batch):
    bare, policy = logits(ppo_roles, None, batch), logits(ppo_roles, POLICY, batch)
    with ppo_roles.using(None) as model:
        assert torch.equal(logits(ppo_roles, POLICY, batch), policy)
        assert torch.equal(logits(ppo_roles, None, batch), bare)
        with torch.no_grad():
            again = model(input_ids=batch.input_ids, attention_mask=batch.attention.long()).logits
    assert torch.equal(again, bare)
    assert torch.equal(logits(ppo_roles, POLICY, batch), policy)


def test_detach_does_not_change_other_roles(ppo_roles):
    frozen = [n for n, p in ppo_roles.model.named_parameters() if not p.requires_grad]
    ppo_roles.detach(POLICY)
    left = dict(ppo_roles.model.named_parameters())
    assert not [n for n in frozen if n in left and left[n].requires_grad]
    assert any(".value." in n for n in trainable_names(ppo_roles))


def test_bare_base_equals_pristine_base(ppo_roles, pristine, batch):
    with torch.no_grad():
        expected = pristine(input_ids=batch.input_ids, attention_mask=batch.attention.long()).logits
    assert torch.equal(logits(ppo_roles, None, batch), expected)


def test_reference_is_sft_not_base(ppo_roles, batch):
    policy, reference = (logits(ppo_roles, n, batch) for n in (POLICY, REFERENCE))
    assert torch.equal(policy, reference)
    assert (reference - logits(ppo_roles, None, batch)).abs().max() > 1e-3


def test_editing_one_role_keeps_others_bit_identical(ppo_roles, batch):
    before = {n: logits(ppo_roles, n, batch) for n in (POLICY, REFERENCE, VALUE, None)}
    randomise(ppo_roles, REWARD, seed=99, scale=1.0)
    for name, expected in before.items():
        assert torch.equal(logits(ppo_roles, name, batch), expected)


def test_value_loss_trains_only_value(ppo_roles, batch):
    with ppo_roles.using(VALUE) as model:
        state_values(model, ppo_roles.heads[VALUE], batch).pow(2).sum().backward()
    moved = {n for n, p in ppo_roles.model.named_parameters() if p.grad is not None}
    assert moved
    assert all(".value." in n or n.startswith("heads.value") for n in moved)


def test_policy_loss_trains_only_policy(ppo_roles, batch):
    with ppo_roles.using(POLICY) as model:
        completion_logprobs(model, batch, temperature=1.0)[0].sum().backward()
    moved = {n for n, p in ppo_roles.model.named_parameters() if p.grad is not None}
    assert moved
    assert all(".default." in n for n in moved)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_each_role_gets_its_own_gradient(ppo_roles, batch, checkpointing):
    """One joint backward after a switch would give the policy no gradient, or a wrong one."""
    alone = {}
    for name in (POLICY, VALUE):
        step(ppo_roles, name, batch)
        grads = ppo_roles.model.named_parameters()
        alone[name] = {n: p.grad.clone() for n, p in grads if p.grad is not None}
        ppo_roles.model.zero_grad()
    if checkpointing:
        ppo_roles.model.train()
        ppo_roles.model.enable_input_require_grads()
        ppo_roles.model.gradient_checkpointing_enable()
    step(ppo_roles, POLICY, batch)
    step(ppo_roles, VALUE, batch)
    for name, expected in (alone[POLICY] | alone[VALUE]).items():
        gradient = ppo_roles.model.get_parameter(name).grad
        assert torch.allclose(gradient, expected, atol=1e-6), name


def step(roles, name, batch):
    with roles.using(name) as model:
        if name == VALUE:
            loss = state_values(model, roles.heads[VALUE], batch).sum()
        else:
            loss = completion_logprobs(model, batch, temperature=1.0)[0].sum()
        loss.backward()


@pytest.mark.parametrize("pads", [0, 3, 7])
def test_padding_changes_neither_scores_nor_logprobs(ppo_roles, pads):
    alone = collate(PROMPTS[:1], COMPLETIONS[:1], pad_id=0)
    long = [PROMPTS[0], [9] * (len(PROMPTS[0]) + pads)], [COMPLETIONS[0], [9] * (3 + pads)]
    padded = collate(*long, pad_id=0)
    with torch.no_grad():
        with ppo_roles.using(REWARD) as model:
            score = [scores(model, ppo_roles.heads[REWARD], b)[0] for b in (alone, padded)]
        with ppo_roles.using(POLICY) as model:
            logprobs = [
                completion_logprobs(model, b, temperature=1.0)[0][0, :3] for b in (alone, padded)
            ]
    assert score[0].item() == pytest.approx(score[1].item(), abs=1e-5)
    assert torch.allclose(logprobs[0], logprobs[1], atol=1e-5)


def test_eos_as_pad_token_keeps_its_attention():
    """An EOS inside a multi-turn prompt and the final EOS are real tokens."""
    batch = collate([[1, 20, 2, 30]], [[50, 2]], pad_id=2)
    assert batch.attention.all()
    assert batch.mask.tolist() == [[True, True]]


def test_logprobs_use_the_sampling_temperature(ppo_roles, batch):
    with ppo_roles.using(POLICY) as model, torch.no_grad():
        logprobs, entropy = completion_logprobs(model, batch, temperature=0.5, entropy=True)
        all_logits = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention.long(),
            position_ids=padded(batch.input_ids, batch.attention).positions,
        ).logits
    # row 1, completion token 0 is predicted at the prompt's last position, column 3
    expected = (all_logits[1, 3] / 0.5).log_softmax(-1)
    assert logprobs[1, 0].item() == pytest.approx(expected[70].item(), abs=1e-5)
    by_hand = -(expected.exp() * expected).sum().item()
    assert entropy[1, 0].item() == pytest.approx(by_hand, abs=1e-4)
    assert logprobs[0, 3].item() == 0.0


@pytest.mark.parametrize("name", ["", "a.b", "lora", "ora_"])
def test_ambiguous_role_names_are_rejected(model_config, name):
    with pytest.raises(CheckpointError, match="cannot be named"):
        fresh_roles(model_config).create(name, lora())


def test_unknown_role_is_rejected(ppo_roles):
    with pytest.raises(CheckpointError, match="attached roles: default"), ppo_roles.using("critic"):
        pass


def test_saved_role_loads_with_plain_peft(ppo_roles, tmp_path, tiny_base, batch):
    randomise(ppo_roles, VALUE, seed=7)
    ppo_roles.save(VALUE, tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    with torch.no_grad():
        by_peft = plain(input_ids=batch.input_ids, attention_mask=batch.attention.long()).logits
    assert torch.equal(by_peft, logits(ppo_roles, VALUE, batch))
    assert torch.equal(
        ScalarHead.load(tmp_path / "out").weight, ppo_roles.heads[VALUE].weight.detach()
    )


def test_failed_attach_leaves_nothing_behind(ppo_roles, sft_run, batch):
    before = logits(ppo_roles, POLICY, batch)
    tensors = load_file(sft_run / "adapter_model.safetensors")
    tensors.pop(next(iter(tensors)))
    save_file(tensors, sft_run / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="do not fit"):
        ppo_roles.attach("extra", sft_run)
    assert "extra" not in ppo_roles.model.peft_config
    assert not any(".extra." in n for n, _ in ppo_roles.model.named_parameters())
    assert ppo_roles.model.active_adapters == [POLICY]
    assert torch.equal(logits(ppo_roles, POLICY, batch), before)


def test_reattaching_a_name_uses_the_new_config(model_config, tmp_path, batch):
    roles = fresh_roles(model_config)
    roles.create(POLICY, lora())
    for alpha in (4, 64):
        config = lora(lora_alpha=alpha)
        roles.create("extra", config)
        randomise(roles, "extra", seed=1)
        roles.save("extra", tmp_path / str(alpha))
        roles.detach("extra")
    roles.attach("extra", tmp_path / "4")
    weak = logits(roles, "extra", batch)
    roles.detach("extra")
    roles.attach("extra", tmp_path / "64")
    assert roles.model.peft_config["extra"].lora_alpha == 64
    assert (logits(roles, "extra", batch) - weak).abs().max() > 1e-3


def test_rejected_adapter_leaves_no_layers_in_the_base(model_config, tmp_path):
    """A layer left around lm_head would keep an adapter that targets it from being attached."""
    roles = fresh_roles(model_config)
    roles.create(POLICY, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    roles.save(POLICY, tmp_path / "policy")
    layers = {name: type(module) for name, module in roles.base.named_modules()}
    file = tmp_path / "policy" / "adapter_config.json"
    config = json.loads(file.read_text())
    targets = [*config["target_modules"], "o_proj"]
    for change in ({"modules_to_save": ["lm_head"]}, {"target_modules": targets}):
        file.write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match="do not fit this base"):
            roles.attach("extra", tmp_path / "policy")
        assert {name: type(module) for name, module in roles.base.named_modules()} == layers
    roles.create("extra", lora(modules_to_save=["lm_head"]))
    roles.detach("extra")
    roles.create("extra", LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM"))


@pytest.mark.parametrize(
    "damage", ["truncated", "nan", "float32 overflow", "float8", "missing", "pickle"]
)
def test_damaged_adapters_are_rejected(ppo_roles, sft_run, damage):
    file = sft_run / "adapter_model.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:200])
    elif damage == "nan":
        tensors = load_file(file)
        next(iter(tensors.values()))[0] = float("nan")
        save_file(tensors, file)
    elif damage.startswith("float"):
        tensors = load_file(file)
        changed = {
            name: torch.full_like(t, 1e300, dtype=torch.float64) for name, t in tensors.items()
        }
        if damage == "float8":
            changed = {name: t.to(torch.float8_e4m3fn) for name, t in tensors.items()}
        save_file(changed, file)
    elif damage == "missing":
        file.unlink()
    else:  # pickled weights are never opened
        torch.save({}, sft_run / "adapter_model.bin")
        file.unlink()
    reasons = {"truncated": "damaged", "nan": "not finite", "float32 overflow": "not finite"}
    reason = (reasons | {"float8": r"is stored as torch\.float8"}).get(damage, "is missing")
    with pytest.raises(CheckpointError, match=reason):
        ppo_roles.attach("extra", sft_run)


def test_adapter_of_another_base_is_rejected(ppo_roles, sft_run):
    stored = json.loads((sft_run / "base.json").read_text())
    stored["weights"] = "0123456789abcdef"
    (sft_run / "base.json").write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match="0123456789abcdef") as caught:
        ppo_roles.attach("extra", sft_run)
    assert ppo_roles.fingerprint["weights"] in str(caught.value)


@pytest.mark.parametrize(
    ("stored", "loaded", "advice"),
    [
        (
            "org/m@a1b2",
            "org/m@c3d4",
            "; load the adapter's own base with --model_revision a1b2",
        ),
        ("org/m@unknown", "org/m@c3d4", "; load the adapter's own base"),
        ("org/other@a1b2", "org/m@c3d4", "; load the adapter's own base"),
        ("0123456789abcdef", "org/m@c3d4", "; load the adapter's own base"),
        ("org/m@a1b2", "0123456789abcdef", "; load the adapter's own base"),
    ],
)
def test_rejected_commit_names_model_revision(tmp_path, stored, loaded, advice):
    save_fingerprint(tmp_path, {"id": "org/m", "weights": stored})
    with pytest.raises(CheckpointError) as caught:
        check_fingerprint(tmp_path, {"id": "org/m", "weights": loaded})
    assert str(caught.value).endswith(advice)


def test_bare_base_is_pristine_with_modules_to_save(model_config, batch, pristine):
    """Also with tied embeddings."""
    roles = fresh_roles(model_config)
    roles.create(POLICY, lora(modules_to_save=["lm_head"]))
    with torch.no_grad():
        for parameter in roles.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
        expected = pristine(input_ids=batch.input_ids, attention_mask=batch.attention.long()).logits
    assert torch.equal(logits(roles, None, batch), expected)


def test_trained_tokens_are_rejected(model_config, reward_run, tmp_path):
    """PEFT cannot add an adapter without them to the same base."""
    start = fresh_roles(model_config)
    start.create(POLICY, lora(trainable_token_indices=[3, 4]))
    start.save(POLICY, tmp_path / "sft")
    roles = fresh_roles(model_config)
    with pytest.raises(CheckpointError, match="`trainable_token_indices` is not supported"):
        roles.attach(POLICY, tmp_path / "sft")
    roles.attach(REWARD, reward_run, head=True)
    assert list(roles.model.peft_config) == [REWARD]


def test_heads_start_with_published_scale():
    torch.manual_seed(0)
    head = ScalarHead(4095)
    assert head.weight.std().item() == pytest.approx(1 / 64, rel=0.05)
    assert head.bias.item() == 0.0
    assert ScalarHead(8, zero=True).weight.abs().sum() == 0


def test_mixed_rows_equal_separate_passes(ppo_roles, batch):
    """With PEFT's adapter_names, which work in eval mode only."""
    ppo_roles.model.eval()
    ids, attention = batch.input_ids.repeat(2, 1), batch.attention.long().repeat(2, 1)
    with torch.no_grad():
        mixed = ppo_roles.model(
            input_ids=ids,
            attention_mask=attention,
            adapter_names=[POLICY, REWARD, "__base__", VALUE],
        ).logits
    for row, name in enumerate((POLICY, REWARD, None, VALUE)):
        expected = logits(ppo_roles, name, batch)[row % 2]
        assert torch.allclose(mixed[row], expected, atol=1e-5)
    ppo_roles.model.train()
    with pytest.raises(ValueError, match="training"):
        ppo_roles.model(input_ids=ids, attention_mask=attention, adapter_names=[POLICY] * 4)


def test_lora_with_bias_is_rejected(model_config):
    with pytest.raises(CheckpointError, match="biases of the base"):
        fresh_roles(model_config).create(POLICY, lora(bias="all"))


@pytest.mark.filterwarnings("ignore:.*lora_bias")
@pytest.mark.parametrize("option", [{"alora_invocation_tokens": [5]}, {"lora_bias": True}, {}])
def test_only_kinds_that_peft_merges_are_merged_for_sampling(model_config, option):
    roles = fresh_roles(model_config)
    roles.create(POLICY, lora(**option))
    with roles.merged(POLICY):
        layers = [m for m in roles.model.modules() if isinstance(m, LoraLayer)]
        assert any(layer.merged for layer in layers) == (not option)


def test_saved_adapter_config_has_sorted_layers(model_config, tmp_path):
    roles = fresh_roles(model_config)
    roles.create(POLICY, lora(modules_to_save=None))
    roles.save(POLICY, tmp_path)
    names = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert len(names) == 14
    assert names == sorted(names)
