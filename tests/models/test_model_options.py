"""Every option of TRL's ModelConfig and ours has its effect or raises an error."""

import dataclasses
import json
import shutil

import pytest
import torch
from peft import LoraConfig
from trl import ModelConfig

from tests.models.methods import call
from toolkit.cli import run
from toolkit.errors import CheckpointError, ConfigError
from toolkit.models.arguments import METHODS, ModelArguments, reject_adapter_options
from toolkit.models.base import BASE_FILE, fingerprint, load_base
from toolkit.models.peft_methods import build_peft_config
from toolkit.models.roles import POLICY
from toolkit.recipe import find
from toolkit.runs.parents import made_with
from toolkit.runs.run import write_json
from toolkit.trainers.load_policy import load_roles

FOUR_BIT = {"load_in_4bit": True, "dtype": "bfloat16"}
LAYER = "model.layers.0.self_attn.q_proj"


def loaded(base, **options):
    return load_base(ModelArguments(str(base), **options))[0]


def layer(base, **options):
    return loaded(base, **options).get_submodule(LAYER)


def config(base, **options):
    model = ModelArguments(str(base), use_peft=True, **options)
    return build_peft_config(model, loaded(base))


def rejected(error, message, **options):
    """A probe that loading with these options raises an error."""

    def probe(base):
        with pytest.raises(error, match=message):
            loaded(base, **options)

    return probe


# option -> a check of its effect or its error, on the tiny base's folder
PROBES = {
    "model_name_or_path": lambda b: rejected(CheckpointError, "cannot load")(b / "no"),
    "model_revision": rejected(ConfigError, "is a folder", model_revision="v1"),
    "dtype": lambda b: loaded(b, dtype="bfloat16").dtype is torch.bfloat16,
    "attn_implementation": lambda b: (
        loaded(b, attn_implementation="eager").config._attn_implementation == "eager"
    ),
    "use_peft": lambda b: build_peft_config(ModelArguments(str(b)), loaded(b)) is None,
    "lora_r": lambda b: config(b, lora_r=3).r == 3,
    "lora_alpha": lambda b: config(b, lora_alpha=5).lora_alpha == 5,
    "lora_dropout": lambda b: config(b, lora_dropout=0.3).lora_dropout == 0.3,
    "lora_target_modules": lambda b: (
        config(b, lora_target_modules=["k_proj", "up_proj"]).target_modules == {"k_proj", "up_proj"}
    ),
    "lora_target_parameters": rejected(
        ValueError, "use `lora_target_modules`", lora_target_parameters=["q_proj.weight"]
    ),
    "lora_modules_to_save": lambda b: (
        config(b, lora_modules_to_save=["lm_head"]).modules_to_save == ["lm_head"]
    ),
    "lora_task_type": rejected(ValueError, "is set by the recipe", lora_task_type="SEQ_CLS"),
    "use_rslora": lambda b: config(b, use_rslora=True).use_rslora,
    "use_dora": lambda b: config(b, use_dora=True).use_dora,
    "load_in_8bit": lambda b: type(layer(b, load_in_8bit=True)).__name__ == "Linear8bitLt",
    "load_in_4bit": lambda b: type(layer(b, **FOUR_BIT)).__name__ == "Linear4bit",
    "bnb_4bit_quant_type": lambda b: (
        layer(b, **FOUR_BIT, bnb_4bit_quant_type="fp4").weight.quant_type == "fp4"
        and layer(b, **FOUR_BIT).weight.quant_type == "nf4"
    ),
    "use_bnb_nested_quant": lambda b: (
        layer(b, **FOUR_BIT, use_bnb_nested_quant=True).weight.quant_state.nested
        and not layer(b, **FOUR_BIT).weight.quant_state.nested
    ),
    "bnb_4bit_quant_storage": lambda b: (
        layer(b, **FOUR_BIT, bnb_4bit_quant_storage="bfloat16").weight.dtype is torch.bfloat16
    ),
    "peft_method": lambda b: config(b, peft_method="ia3").peft_type == "IA3",
    "num_virtual_tokens": lambda b: (
        config(b, peft_method="prompt", num_virtual_tokens=7).num_virtual_tokens == 7
    ),
    "device_map": lambda b: loaded(b, device_map="cpu").device.type == "cpu",
    "chat_template": rejected(
        ConfigError, "must be chatml, plain, thinking", chat_template="no.jinja"
    ),
}


def test_every_option_has_a_probe():
    assert set(PROBES) == {f.name for f in dataclasses.fields(ModelArguments)}
    assert {f.name for f in dataclasses.fields(ModelConfig)} < set(PROBES)


@pytest.mark.parametrize("option", PROBES)
def test_option_has_effect_or_is_rejected(option, tiny_base):
    assert PROBES[option](tiny_base) in (True, None)


ADAPTER = {
    "peft_method": "dora",
    "num_virtual_tokens": 3,
    "lora_r": 3,
    "lora_alpha": 5,
    "lora_dropout": 0.3,
    "lora_target_modules": ["k_proj", "q_proj"],
    "lora_modules_to_save": ["lm_head"],
    "use_rslora": True,
    "use_dora": True,
}
WITH = {"num_virtual_tokens": {"peft_method": "prefix"}}


@pytest.mark.parametrize("option", ADAPTER)
def test_shape_options_are_rejected_with_parent(option):
    model = ModelArguments(**{option: ADAPTER[option]}, **WITH.get(option, {}))
    with pytest.raises(ConfigError, match=rf"`{option}`.*would have no effect: the parent"):
        reject_adapter_options(model, because="the parent decides")
    reject_adapter_options(ModelArguments(use_peft=True), because="the parent decides")


@pytest.mark.parametrize("option", ADAPTER)
def test_shape_options_equal_to_parents_are_accepted(option):
    options = {option: ADAPTER[option]} | WITH.get(option, {})
    model, because = ModelArguments(**options), "the parent decides"
    reject_adapter_options(model, because=because, made_with=[vars(ModelArguments(**options))])
    for others in ([vars(ModelArguments())], [{}], [options, {}], [{"lora_r": "many"}]):
        with pytest.raises(ConfigError, match=f"`{option}`"):
            reject_adapter_options(model, because=because, made_with=others)


def test_equivalent_shape_options_are_accepted():
    model = ModelArguments(lora_target_modules=["v_proj", "q_proj"], peft_method="lora")
    made = [{"lora_target_modules": ["q_proj", "v_proj"], "peft_method": None}]
    reject_adapter_options(model, because="the parent decides", made_with=made)
    dora = ModelArguments(use_dora=True)
    reject_adapter_options(dora, because="the parent decides", made_with=[{"peft_method": "dora"}])


def test_made_with_returns_first_ancestors_options(tmp_path):
    for name, parents, r in (
        ("sft", {}, 8),
        ("dpo", {"adapter": "sft"}, 16),
        ("lost", {"adapter": "no"}, 4),
    ):
        (tmp_path / name).mkdir()
        parents = {k: str(tmp_path / v) for k, v in parents.items()}
        write_json(
            tmp_path / name / "run.json",
            {"schema": 1, "recipe": "sft", "parents": parents, "config": {"lora_r": r}},
        )
    assert made_with(tmp_path / "dpo") == made_with(tmp_path / "sft") == {"lora_r": 8}
    (tmp_path / "dpo" / "checkpoint-4").mkdir()
    assert made_with(tmp_path / "dpo" / "checkpoint-4") == {"lora_r": 8}
    assert made_with(tmp_path / "lost") == made_with(tmp_path / "elsewhere") == {}


@pytest.mark.parametrize("recipe", ["dpo", "reward", "ppo", "evaluate", "label"])
def test_recipes_with_parent_reject_shape_options(recipe, tmp_path, capsys):
    for folder in ("sft", "reward"):
        (tmp_path / folder).mkdir()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (tmp_path / folder / file).write_text("{}")
        (tmp_path / folder / "run.json").write_text(
            f'{{"schema": 1, "recipe": "{folder}", "state": "finished"}}'
        )
    options = {
        "dpo": ["--parent", "sft", "--dataset_name", "world:comparisons"],
        "reward": ["--parent", "sft", "--dataset_name", "world:comparisons"],
        "ppo": ["--parent", "sft", "--reward_model", "reward", "--dataset_name", "world:prompts"],
        "evaluate": ["--runs", "sft"],
        "label": ["--parent", "sft"],
    }[recipe]
    words = [str(tmp_path / word) if word in ("sft", "reward") else word for word in options]
    words += ["--lora_r", "8", "--output_dir", str(tmp_path / "out")]
    assert run(find(recipe), words) == 2
    assert "`lora_r` would have no effect" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peft_method": "lorra"}, "must be one of lora, rslora"),
        ({"peft_method": "prefix", "lora_r": 4}, "prefix has no lora_r"),
        ({"peft_method": "ia3", "lora_dropout": 0.1}, "ia3 has no lora_dropout"),
        ({"peft_method": "adalora", "use_dora": True}, "adalora has no use_dora"),
        ({"num_virtual_tokens": 4}, "lora has no num_virtual_tokens"),
        ({"use_bnb_nested_quant": True}, "is for 4 bit only"),
        ({"load_in_8bit": True, "bnb_4bit_quant_type": "fp4"}, "is for 4 bit only"),
        ({"lora_r": 0}, "must be at least 1, got 0"),
        ({"lora_dropout": 1.0}, r"must be in \[0, 1\)"),
    ],
)
def test_conflicting_options_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        ModelArguments(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_target_modules": ["q_proj", "qproj"]}, "this base has no layer qproj; .* q_proj"),
        ({"device_map": "gpu"}, "must be a device"),
        ({"device_map": "cuda:9"}, "cuda:9 is not available: this machine has"),
    ],
)
def test_options_unfit_for_base_are_rejected(options, message, tiny_base):
    with pytest.raises(ConfigError, match=message):
        config(tiny_base, **({} if "device_map" in options else options)) and loaded(
            tiny_base, **options
        )


def test_double_quantization_changes_fingerprint(tiny_base):
    quantizations = []
    for nested in (False, True):
        model = ModelArguments(str(tiny_base), **FOUR_BIT, use_bnb_nested_quant=nested)
        quantizations.append(fingerprint(model, load_base(model)[1])["quantization"])
    assert quantizations == ["4bit-nf4", "4bit-nf4-double"]


def test_single_target_is_not_a_pattern(tiny_base):
    assert config(tiny_base, lora_target_modules=["q_proj"]).target_modules == {"q_proj"}
    assert config(tiny_base, lora_target_modules=["all-linear"]).target_modules == "all-linear"
    with pytest.raises(ConfigError, match="this base has no layer nothing"):
        config(tiny_base, lora_target_modules=["nothing"])


def test_ia3_scales_feedforward_targets_at_input(tiny_base):
    ia3 = config(tiny_base, peft_method="ia3", lora_target_modules=["v_proj", "down_proj"])
    assert (ia3.target_modules, ia3.feedforward_modules) == (
        {"v_proj", "down_proj"},
        {"down_proj"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [4, 8])
def test_every_method_trains_on_quantized_base(method, bits, tiny_base, tmp_path):
    options = {"peft_method": method, f"load_in_{bits}bit": True, "dtype": "bfloat16"}
    unsupported = method == "dora" and bits == 8 and not torch.cuda.is_available()
    assert call("sft", tmp_path, tiny_base, max_steps=2, bf16=True, **options) == 2 * unsupported


CODE = """
import pathlib
pathlib.Path(__file__).with_name("ran").touch()
from transformers import LlamaConfig
class OwnConfig(LlamaConfig):
    model_type = "own_llama"
"""
MODEL = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(tiny_base, tmp_path, monkeypatch):
    """The tiny base as a model with Python code in its folder."""
    folder = tmp_path / "own_model"
    shutil.copytree(tiny_base, folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["model_type"] = "own_llama"
    settings["auto_map"] = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnModel",
    }
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "configuration_own.py").write_text(CODE)
    (folder / "modeling_own.py").write_text(MODEL)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    return folder


def test_model_code_runs_only_with_option(own_code, tmp_path):
    model = ModelArguments(str(own_code), dtype="float32")
    with pytest.raises(CheckpointError, match="add --trust_remote_code true to a recipe"):
        load_base(model)
    assert not list(tmp_path.rglob("ran"))
    base, _ = load_base(model, trust_remote_code=True)
    assert type(base).__name__ == "OwnModel"
    assert list(tmp_path.rglob("ran"))


def test_dora_on_8bit_cpu_base_names_fix(tiny_base, tmp_path):
    """PEFT would raise an AttributeError; such a run may be made in 4 bit or on a GPU."""
    roles, _ = load_roles(ModelArguments(str(tiny_base), dtype="float32", use_peft=True))
    roles.create(POLICY, LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))
    roles.save(POLICY, tmp_path)
    write_json(tmp_path / BASE_FILE, roles.fingerprint | {"quantization": "8bit"})
    options = ModelArguments(str(tiny_base), dtype="float32", load_in_8bit=True)
    roles, _ = load_roles(options)
    with pytest.raises(ConfigError, match=r"peft_method dora: .* load the base in 4 bit"):
        roles.attach(POLICY, tmp_path)
    assert roles.model is None


def test_base_of_run_is_the_default():
    config = {"model_name_or_path": "some/base", "dtype": "bfloat16", "load_in_4bit": True}
    config |= {"lora_r": 64, "use_bnb_nested_quant": True}
    model = ModelArguments().with_base_of(config)
    assert (model.model_name_or_path, model.dtype, model.load_in_4bit) == (
        "some/base",
        "bfloat16",
        True,
    )
    assert model.use_bnb_nested_quant and model.lora_r == ModelArguments().lora_r
    assert ModelArguments(model_name_or_path="mine").with_base_of(config).dtype == "float32"
    assert ModelArguments().with_base_of({}) == ModelArguments()
