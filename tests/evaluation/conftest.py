"""A handwritten report, and a tiny random model with adapters, for the tests of the evaluation."""

from itertools import islice
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM

from toolkit.models.heads import ScalarHead
from toolkit.models.roles import Roles
from toolkit.world.corpus import documents
from toolkit.world.tokenizer import CHAT_TEMPLATE, train_tokenizer


def interval(mean: float, reach: float = 0.05) -> dict[str, Any]:
    return {"mean": mean, "ci95": [max(0.0, mean - reach), mean + reach]}


def entry(recipe: str, **changes: Any) -> dict[str, Any]:
    under = {
        "gold": interval(0.4),
        "proxy": interval(0.1),
        "win_rate_vs_sft": {"gold": interval(0.5), "proxy": interval(0.5)},
        "length": 10.0,
        "ended": 0.99,
        "rates": {
            "correct": 0.7,
            "hallucinated": 0.2,
            "honest": 0.7,
            "harmful_compliance": 0.1,
            "refused_harm": 0.9,
            "over_refusal": 0.02,
            "polite": 0.5,
        },
    }
    numbers = {"recipe": recipe, **under, "kl_to_sft": 1.0, "lm_loss": 0.55}
    return numbers | {"other_sampling": {"1.0": dict(under), "0": dict(under)}} | changes


@pytest.fixture
def report() -> dict[str, Any]:
    """A valid report of four checkpoints without warnings."""
    return {
        "schema": 1,
        "prompts": 400,
        "seed": 0,
        "sampling": {"max_new_tokens": 64, "temperature": 0.7, "top_p": 1.0, "top_k": 0},
        "sft": "sft",
        "checkpoints": {name: entry(name) for name in ("base", "sft", "ppo", "dpo")},
        "reward_model": {
            "pairs": 900,
            "pairwise_accuracy": 0.67,
            "pairwise_accuracy_ci95": [0.64, 0.7],
            "clear_gold_accuracy": 0.88,
            "ceiling": 0.78,
            "labeler_agreement": 0.74,
            "demonstration_mean": 0.0,
            "length_correlation": 0.2,
            "length_accuracy": 0.52,
        },
        "timings_s": {"sft": 20.0, "ppo": 101.5},
    }


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    docs = [d if isinstance(d, str) else "".join(m["content"] for m in d) for d in corpus(300)]
    tokenizer = train_tokenizer(docs, vocab_size=400)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    return tokenizer


def corpus(n: int) -> list[Any]:
    return list(islice(documents(seed=5), n))


def tiny_base(vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def roles(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Roles:
    """From disk: `sft`, a second `twin` from the same files, `other`, `reward` with its head."""
    tmp_path = tmp_path_factory.mktemp("roles")
    saved = Roles(tiny_base(len(tokenizer)), {})
    for number, name in enumerate(("sft", "other", "reward")):
        saved.create(name, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.5))
        generator = torch.Generator().manual_seed(number)
        for key, parameter in saved.model.named_parameters():
            if f".{name}." in key:
                parameter.data.normal_(0.0, 0.3, generator=generator)
        saved.save(name, tmp_path / name)
    ScalarHead(32).save(tmp_path / "reward")
    loaded = Roles(tiny_base(len(tokenizer)), {})
    for role, folder in (("sft", "sft"), ("twin", "sft"), ("other", "other")):
        loaded.attach(role, tmp_path / folder)
    loaded.attach("reward", tmp_path / "reward", head=True)
    return loaded
