"""Fixtures: a tiny random base with a tokenizer, and adapters on it, made once per session."""

import functools
import gc
import itertools
import os
import pickle
import shutil
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CI", "true")

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, set_seed
from trl import ModelConfig

from toolkit.models.base import fingerprint, load_base
from toolkit.models.heads import ScalarHead
from toolkit.models.roles import POLICY, REFERENCE, REWARD, VALUE, Roles
from toolkit.world import datasets
from toolkit.world.corpus import documents
from toolkit.world.tokenizer import train_tokenizer

torch.set_num_threads(1)  # tests run in parallel, one core each
ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


def pytest_collection_finish() -> None:
    """Every training collects garbage: leave out the modules, which stay, to save 0.3 s each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _world_made_once():
    """Make each dataset of the embedded world once, and give every caller its own copy."""
    once = functools.cache(functools.partial(_pickled, datasets.load))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load", lambda name: pickle.loads(once(name)))
        yield


def _pickled(load, name: str) -> bytes:
    return pickle.dumps(load(name))


def lora(r: int = 4, **kwargs) -> LoraConfig:
    """A LoRA config on all linear layers."""
    return LoraConfig(r=r, target_modules="all-linear", task_type="CAUSAL_LM", **kwargs)


def trainable_names(roles: Roles) -> list[str]:
    """Names of all trainable parameters."""
    module = roles.model or roles.base
    return [n for n, p in module.named_parameters() if p.requires_grad]


def randomise(roles: Roles, name: str, *, seed: int, scale: float = 0.05) -> None:
    """Give an adapter weights that do something; LoRA's B starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in roles.model.named_parameters():
            if f".{name}." in parameter_name and "lora_" in parameter_name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """A two-layer Llama, wide enough for 4-bit blocks, with random weights."""
    folder = tmp_path_factory.mktemp("tiny-base")
    texts = (
        d if isinstance(d, str) else " ".join(m["content"] for m in d)
        for d in itertools.islice(documents(0), 400)
    )
    tokenizer = train_tokenizer(texts, vocab_size=512)
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def model_config(tiny_base) -> ModelConfig:
    """TRL's ModelConfig of the tiny base in float32."""
    return ModelConfig(model_name_or_path=str(tiny_base), dtype="float32")


@pytest.fixture
def tokenizer(tiny_base):
    """The tiny base's tokenizer."""
    from toolkit.models.tokenizer import load_tokenizer

    return load_tokenizer(str(tiny_base))


@pytest.fixture
def pristine(tiny_base):
    """The same base again, loaded without any of our code."""
    return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def adapter_runs(tiny_base, tmp_path_factory) -> Path:
    """`sft` and `reward`: directories with an SFT-like and a reward-like adapter; do not change."""
    folder = tmp_path_factory.mktemp("adapters")
    config = ModelConfig(model_name_or_path=str(tiny_base), dtype="float32")
    sft, reward = fresh_roles(config), fresh_roles(config)
    sft.create(POLICY, lora())
    randomise(sft, POLICY, seed=1)
    sft.save(POLICY, folder / "sft")
    reward.create(REWARD, lora())
    randomise(reward, REWARD, seed=2)
    set_seed(3)
    reward.heads[REWARD] = ScalarHead(64)
    reward.save(REWARD, folder / "reward")
    return folder


@pytest.fixture
def sft_run(tmp_path, adapter_runs) -> Path:
    """A directory with an SFT-like adapter."""
    return shutil.copytree(adapter_runs / "sft", tmp_path / "sft")


@pytest.fixture
def reward_run(tmp_path, adapter_runs) -> Path:
    """A directory with a reward-like adapter and its head."""
    set_seed(3)  # for the test that uses it
    return shutil.copytree(adapter_runs / "reward", tmp_path / "reward")


@pytest.fixture(scope="session")
def build_ppo_roles(tiny_base, adapter_runs):
    """Make policy, reference, value and reward on one tiny base, as PPO needs them."""
    config = ModelConfig(model_name_or_path=str(tiny_base), dtype="float32")

    def build() -> Roles:
        roles = fresh_roles(config)
        roles.attach(POLICY, adapter_runs / "sft", trainable=True)
        roles.attach(REFERENCE, adapter_runs / "sft")
        roles.attach(REWARD, adapter_runs / "reward", head=True)
        roles.attach(VALUE, adapter_runs / "reward", head=True, trainable=True)
        return roles

    return build


@pytest.fixture
def make_ppo_roles(build_ppo_roles):
    """The same, from a fixed random state."""
    set_seed(3)
    return build_ppo_roles


@pytest.fixture
def ppo_roles(make_ppo_roles) -> Roles:
    """One set of PPO's roles."""
    return make_ppo_roles()


def fresh_roles(model_config: ModelConfig) -> Roles:
    """A newly loaded base without adapters."""
    base, tokenizer = load_base(model_config)
    return Roles(base.eval(), fingerprint(model_config, tokenizer))
