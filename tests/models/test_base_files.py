"""A base's weights are safetensors, and its embeddings cover the tokenizer."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig

from toolkit.errors import CheckpointError, ConfigError
from toolkit.models.base import fingerprint, load_base
from toolkit.preflight.fake_model import fake_base, new_fake_mode


def loaded(folder):
    return load_base(ModelConfig(model_name_or_path=str(folder), dtype="float32"))


@pytest.fixture
def base(tiny_base, tmp_path):
    return shutil.copytree(tiny_base, tmp_path / "base")


def test_pickled_weights_are_rejected_with_conversion(base, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(base)
    (base / "model.safetensors").unlink()
    torch.save(model.state_dict(), base / "pytorch_model.bin")
    config = ModelConfig(model_name_or_path=str(base))
    for act in (lambda: loaded(base), lambda: fingerprint(config, tokenizer)):
        with pytest.raises(
            CheckpointError, match=r"pytorch_model\.bin\), which are never"
        ) as error:
            act()
        assert f"from_pretrained('{base}', use_safetensors=False)" in str(error.value)
    line = str(error.value).split("in Python: ")[1].split(", the same")[0]
    eval(line, {"AutoModelForCausalLM": AutoModelForCausalLM})  # the advice works
    AutoTokenizer.from_pretrained(base).save_pretrained(f"{base}-safetensors")
    converted, _ = loaded(f"{base}-safetensors")
    assert torch.equal(converted.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("added", ["token", "pad", "template"])
def test_tokenizer_larger_than_embeddings_is_rejected(base, added):
    tokenizer = AutoTokenizer.from_pretrained(base)
    if added == "token":
        tokenizer.add_tokens(["<new>"])
    elif added == "pad":
        tokenizer.add_special_tokens({"pad_token": "<new>"})
    else:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<new>"]})
        tokenizer.chat_template = "<new>" + (tokenizer.chat_template or "{{ messages }}")
    tokenizer.save_pretrained(base)
    message = "tokenizer has 513 tokens, but the base has 512 embeddings, none for '<new>'"
    with pytest.raises(CheckpointError, match=message):
        loaded(base)


def test_unused_special_token_without_embedding_is_accepted(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(base)
    _, tokenizer = loaded(base)
    assert len(tokenizer) == 513


def _cut(base):
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def test_unused_weights_are_reported(base, capsys):
    file = base / "model.safetensors"
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}
    save_file(load_file(file) | bias, file, metadata={"format": "pt"})
    loaded(base)
    line = "1 weights in its files are not used, the first is model.layers.0.self_attn.q_proj.bias"
    assert line in capsys.readouterr().out


def _change_config(**options):
    def change(base):
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | options))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "SafetensorError: .*incomplete"),
        (_change_config(hidden_size=32), "cannot load the base model .RuntimeError"),
        (_change_config(num_hidden_layers=3), "9 weights of the model are not in its files"),
        (_change_config(tie_word_embeddings=False), r"the first is lm_head\.weight"),
        (lambda base: (base / "tokenizer.json").write_text("{}"), "KeyError: 'added_tokens'"),
        (lambda base: (base / "tokenizer_config.json").write_text("[]"), "AttributeError: 'list'"),
        (lambda base: (base / "adapter_config.json").write_text("{}"), "an adapter, expected"),
        (
            lambda base: (base / "model.safetensors").write_text("version https://git-lfs.x\n"),
            r"model\.safetensors: a pointer of Git LFS",
        ),
    ],
)
def test_damaged_base_is_one_error(base, damage, message):
    damage(base)
    with pytest.raises(CheckpointError, match=message):
        loaded(base)


BITNET = {"quant_method": "bitnet", "linear_class": "bitlinear", "quantization_mode": "offline"}
EIGHT_BIT = {"quant_method": "bitsandbytes", "load_in_8bit": True}


@pytest.mark.parametrize(
    ("stored", "option", "message"),
    [
        ({"quant_method": "superquant"}, None, "superquant, which transformers does not support"),
        ({"bits": 4}, None, "an unnamed method, which transformers does not support"),
        (BITNET, None, "bitnet, whose layers pass no gradients to adapters.*bitsandbytes, gptq"),
        (EIGHT_BIT, "load_in_4bit", "already stored quantized with bitsandbytes in 8bit; remove"),
        ({"quant_method": "gptq", "bits": 4}, "load_in_8bit", "already .* with gptq; remove"),
    ],
)
def test_base_stored_in_unsuitable_quantization_is_rejected(base, stored, option, message):
    _change_config(quantization_config=stored)(base)
    options = {} if option is None else {option: True}
    model = ModelConfig(model_name_or_path=str(base), **options)
    for load in (load_base, lambda model: fake_base(model, new_fake_mode(), scalar=False)):
        with pytest.raises((CheckpointError, ConfigError), match=message):
            load(model)


@pytest.mark.parametrize("declared", ["</s>", [2, None], {}])
def test_invalid_stop_tokens_are_rejected(base, declared):
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": declared}))
    with pytest.raises(CheckpointError, match="`eos_token_id` of its generation config must"):
        loaded(base)
