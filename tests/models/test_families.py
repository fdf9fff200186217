"""Model families with special logits, caches or randomness, compared with the models themselves."""

import shutil

import pytest
import torch
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteMoeHybridConfig,
    HyperCLOVAXConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MiniMaxConfig,
    MixtralConfig,
    ModernBertDecoderConfig,
    MptConfig,
    OPTConfig,
    Qwen3_5TextConfig,
    RecurrentGemmaConfig,
)

from tests.models.methods import call
from toolkit.app.workbench import Workbench
from toolkit.errors import CheckpointError, ConfigError
from toolkit.models.arguments import ModelArguments
from toolkit.models.passes import collate, completion_logprobs
from toolkit.models.roles import POLICY, Roles
from toolkit.models.runtime import disable_dropout
from toolkit.ppo.roles import load_ppo_roles
from toolkit.runs.run import Run
from toolkit.sampling.compatibility import check_supported
from toolkit.sampling.decoding import decode
from toolkit.sampling.row_batch import Row, RowBatch
from toolkit.sampling.settings import Drawing
from toolkit.trainers.load_policy import load_roles

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
OLD = {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}
ALIBI = {"num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True}
OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64}
LINEAR = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
HYBRIDS = {  # some layers keep other states than keys and values
    "qwen3.5": Qwen3_5TextConfig(**SHAPE | {"num_hidden_layers": 4}, **LINEAR, head_dim=8),
    "lfm2": Lfm2Config(**SHAPE, full_attn_idxs=[1], block_auto_adjust_ff_dim=False),
    "falcon-h1": FalconH1Config(
        **SHAPE, **MAMBA, mamba_chunk_size=8, mamba_n_groups=1, lm_head_multiplier=0.3
    ),
}
CONFIGS = HYBRIDS | {
    "llama": LlamaConfig(**SHAPE),
    "gemma2": Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=3.0),
    "granite": GraniteConfig(**SHAPE, logits_scaling=3.0),
    "hyperclovax": HyperCLOVAXConfig(**SHAPE, logits_scaling=0.3),
    "cohere": CohereConfig(**SHAPE, logit_scale=0.3),
    "gemma3": Gemma3TextConfig(**SHAPE, head_dim=8),
    "mpt": MptConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4, logit_scale=0.3),
    "bloom": BloomConfig(**OLD),
    "falcon-alibi": FalconConfig(vocab_size=64, hidden_size=32, **ALIBI),
}


def random_model(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(3)  # so that logits are far from equal
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_head_and_sampling_match_the_model(name):
    check_supported(random_model(CONFIGS[name]))


@pytest.mark.parametrize("name", HYBRIDS)
def test_finished_rows_do_not_change_other_rows(name):
    """As the app decodes several checkpoints; states of linear attention leave with their row."""
    prompts, roles = ([5, 6, 7], [8, 9], [10, 11, 12, 13]), Roles(random_model(CONFIGS[name]), {})

    def sample(numbers):
        rows = [
            Row(prompts[i], None, Drawing(max_new_tokens=2 if i == 0 else 6, temperature=0.0))
            for i in numbers
        ]
        batch = RowBatch(roles, stop=[], pad_id=0)
        batch.join(rows)
        while batch.rows:
            batch.step()
        return [row.ids for row in rows]

    assert sample([0, 1, 2]) == [*sample([0]), *sample([1]), *sample([2])]


def test_check_supported_keeps_training_modes():
    model = random_model(LlamaConfig(**SHAPE | {"vocab_size": 5}))
    model.train()
    model.lm_head.eval()
    check_supported(model)
    assert model.training
    assert not model.lm_head.training


def test_unknown_logit_computation_is_rejected():
    model = random_model(ModernBertDecoderConfig(**SHAPE, sep_token_id=1, cls_token_id=1))
    with pytest.raises(ConfigError, match="ModernBertDecoderForCausalLM computes its logits in an"):
        check_supported(model)


BART = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (BartConfig(vocab_size=64, **BART), "gives different log-probabilities when rows"),
        (
            RecurrentGemmaConfig(**SHAPE | {"num_hidden_layers": 3}, head_dim=8),
            "gives different log-probabilities when rows",
        ),
        (
            MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2),
            "gives different log-probabilities when rows",
        ),
        (
            MiniMaxConfig(**SHAPE, num_local_experts=4),
            "fails when completions are scored or sampled",
        ),
    ],
    ids=lambda x: getattr(x, "model_type", ""),
)
def test_model_without_batched_sampling_is_rejected(config, what):
    """Its state includes left padding, it ignores positions, or its cache is of another kind."""
    model = random_model(config)
    model.train()
    with pytest.raises(ConfigError, match=f"{type(model).__name__} {what}"):
        check_supported(model)
    assert model.training


def test_recipes_and_app_reject_unsupported_base(tiny_base, tmp_path):
    """Through every function that loads a base for sampling."""
    model = random_model(MambaConfig(vocab_size=512, hidden_size=32, num_hidden_layers=2))
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path)
    options = ModelArguments(model_name_or_path=str(tmp_path), dtype="float32")
    for load in (
        lambda: load_roles(options),
        lambda: load_ppo_roles(options),
        lambda: Workbench.open(str(tmp_path), tmp_path / "runs"),
    ):
        with pytest.raises(ConfigError, match="MambaForCausalLM gives different log-probabilities"):
            load()


@pytest.mark.parametrize("options", [{"lora_dropout": 0.1}, {"use_dora": True}])
def test_rejected_experts_name_other_targets(options):
    model = random_model(MixtralConfig(**SHAPE, num_local_experts=4))
    with pytest.raises(
        CheckpointError, match=r"role 'default': .* target only the attention's layers"
    ):
        Roles(model, {}).create(POLICY, LoraConfig(r=2, target_modules="all-linear", **options))
    Roles(model, {}).create(POLICY, LoraConfig(r=2, target_modules=["q_proj"], **options))


@pytest.mark.parametrize("name", ["bloom", "falcon-alibi", "hyperclovax", "mpt"])
def test_batched_logprobs_equal_single_rows(name):
    model = random_model(CONFIGS[name])
    rows = [([5, 6, 7], [8, 9]), ([11], [12, 13, 14, 15])]
    batch = collate(*zip(*rows, strict=True), 0)
    batched, _ = completion_logprobs(model, batch, temperature=1.0)
    for (prompt, completion), logprobs in zip(rows, batched, strict=True):
        ids = torch.tensor([prompt + completion])
        alone = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        expected = alone[len(prompt) - 1 : -1].gather(-1, torch.tensor(completion)[:, None])[:, 0]
        torch.testing.assert_close(logprobs[: len(completion)], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", HYBRIDS)
def test_linear_attention_states_follow_their_rows(name):
    model = random_model(CONFIGS[name])
    rows = [[5, 6, 7, 8], [11, 12, 13, 14], [5, 6, 7, 8], [20, 21, 22, 23]]
    settings = {"max_new_tokens": 12, "temperature": 0, "pad_id": 0}
    alone = [decode(model, [row], stop=[], **settings).completions[0] for row in rows]
    stop = [alone[1][3]]  # one row ends early
    expected = [ids[: ids.index(stop[0]) + 1] if stop[0] in ids else ids for ids in alone]
    assert len({*map(len, expected)}) > 1
    assert decode(model, rows, stop=stop, **settings).completions == expected


@pytest.mark.parametrize(
    "config",
    [
        FalconConfig(
            vocab_size=64, hidden_size=32, hidden_dropout=0.5, attention_dropout=0.5, **ALIBI
        ),
        OPTConfig(**{k: v for k, v in SHAPE.items() if "key" not in k}, **OPT, layerdrop=0.5),
        MixtralConfig(**SHAPE, num_local_experts=4, router_jitter_noise=0.5),
    ],
    ids=["falcon", "opt", "mixtral"],
)
def test_disabled_dropout_makes_training_deterministic(config):
    model = random_model(config)
    ids = torch.randint(1, 64, (4, 12))
    logits = model(input_ids=ids, use_cache=False).logits
    model.train()
    disable_dropout(model)
    for _ in range(3):
        torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, logits)


def test_adapter_on_experts_cannot_mix():
    """PEFT does not support mixed rows for such adapters."""
    roles = Roles(random_model(MixtralConfig(**SHAPE, num_local_experts=4)), {})
    experts = ["mlp.experts.gate_up_proj"]
    roles.create(POLICY, LoraConfig(r=2, target_modules=["q_proj"], target_parameters=experts))
    roles.create("attention", LoraConfig(r=2, target_modules=["q_proj"]))
    assert not roles.can_mix(POLICY)
    assert roles.can_mix("attention") and roles.can_mix(None)


@pytest.mark.slow
@pytest.mark.parametrize("experts", [0, 2])
def test_granite_hybrid_trains_with_and_without_experts(experts, tiny_base, tmp_path):
    """TRL's load-balancing loss reads `num_experts`, which this family does not have."""
    base = shutil.copytree(tiny_base, tmp_path / "base")
    config = GraniteMoeHybridConfig(
        **SHAPE | {"vocab_size": 512, "num_local_experts": experts},
        layer_types=["mamba", "attention"],
        shared_intermediate_size=32,
        mamba_n_heads=4,
        mamba_d_state=8,
        mamba_n_groups=1,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    options = {"lora_target_modules": "all-linear", "max_steps": 1, "max_rows": 8}
    assert call("sft", tmp_path / "run", base, **options) == 0
    assert Run.load(tmp_path / "run").results["steps"] == 1
