"""A row has the same numbers alone, beside longer rows, and behind another row in a packed row."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from packaging.version import Version
from peft import PrefixTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    BertConfig,
    BloomConfig,
    FalconConfig,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GraniteMoeHybridConfig,
    LlamaConfig,
    Mamba2Config,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
    RecurrentGemmaConfig,
)
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from toolkit.errors import ConfigError
from toolkit.models.independence import (
    check_packed_rows,
    check_padded_rows,
    context_of,
    independent_length,
)
from toolkit.sampling.compatibility import check_supported
from toolkit.trainers.row_checks import check_rows

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
PLAIN = {name: value for name, value in SHAPE.items() if "key_value" not in name}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
LINEAR = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "head_dim": 8,
}
LIMIT = 32  # tokens of the original context


def rope(kind, **parameters):
    return {"rope_type": kind, "rope_theta": 10_000.0, **parameters}


DYNAMIC = LlamaConfig(
    **SHAPE | {"max_position_embeddings": LIMIT}, rope_parameters=rope("dynamic", factor=4.0)
)
LONG_ROPE = LlamaConfig(
    **SHAPE,
    rope_parameters=rope(
        "longrope",
        factor=4.0,
        short_factor=[1.0] * 8,
        long_factor=[4.0] * 8,
        original_max_position_embeddings=LIMIT,
    ),
)
YARN = LlamaConfig(
    **SHAPE, rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=LIMIT)
)


def random_model(config, dtype=torch.float32):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(3)  # so that logits are far from equal
    return model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [DYNAMIC, LONG_ROPE], ids=["dynamic", "longrope"])
def test_rope_that_switches_is_rejected_beyond_its_limit(config, dtype):
    model = random_model(config, dtype)
    check_supported(model, shortest=9, longest=LIMIT)
    for shortest in (1, 9, LIMIT):
        message = rf"a row of 33 tokens changes .*inv_freq.* with `x` to at most {LIMIT} tokens"
        with pytest.raises(ConfigError, match=message):
            check_supported(model, shortest=shortest, longest=LIMIT + 1, shorten="`x`")
        with pytest.raises(ConfigError, match=message):
            check_padded_rows(model, shortest, LIMIT + 1, shorten="`x`")


def test_rows_in_separate_batches_may_be_long():
    """But a dynamic rope keeps the frequencies of the longest row until a row within the limit comes."""
    alone = {"shorten": "`max_length`", "one_per_batch": True}
    for config in (DYNAMIC, LONG_ROPE):
        check_padded_rows(random_model(config), 9, 60, **alone)
    check_padded_rows(random_model(LONG_ROPE), 40, 60, **alone)
    with pytest.raises(ConfigError, match="a row of 60 tokens changes"):
        check_padded_rows(random_model(DYNAMIC), 40, 60, **alone)


@pytest.mark.parametrize(
    "config",
    [
        YARN,
        MistralConfig(**SHAPE, sliding_window=8),
        Gemma3TextConfig(**SHAPE, head_dim=16, sliding_window=8),
        Qwen3_5TextConfig(**SHAPE | {"num_hidden_layers": 4}, **LINEAR),
        BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=2),
        GPTNeoXConfig(**PLAIN),
    ],
    ids=lambda config: config.model_type,
)
def test_long_rows_do_not_change_other_models(config):
    check_supported(random_model(config), shortest=9, longest=SHAPE["max_position_embeddings"])


@pytest.mark.parametrize("one_per_batch", [True, False])
def test_model_that_reads_later_tokens_is_rejected(one_per_batch):
    model = random_model(BertConfig(**PLAIN))
    with pytest.raises(
        ConfigError, match=r"BertLMHeadModel: .* for a token depends on later tokens"
    ):
        check_padded_rows(model, 9, 60, shorten="`x`", one_per_batch=one_per_batch)
    model = random_model(BertConfig(**PLAIN, is_decoder=True))
    check_padded_rows(model, 9, 60, shorten="`x`", one_per_batch=one_per_batch)


def test_model_with_nan_is_rejected():
    model = random_model(LlamaConfig(**SHAPE))
    model.lm_head.weight[0] = model.model.norm.weight[0] = float("nan")
    with pytest.raises(ConfigError, match="computes values that are not finite for a row of 9 tok"):
        check_padded_rows(model, 9, 60, shorten="`x`")


def test_context_is_the_longest_independent_length():
    """By types of layers, too, as Gemma 3 has them; ALiBi has no limit."""
    assert [independent_length(c) for c in (DYNAMIC, LONG_ROPE, YARN)] == [LIMIT, LIMIT, None]
    assert [context_of(c) for c in (DYNAMIC, LONG_ROPE, YARN)] == [LIMIT, LIMIT, 128]
    layers = {"full_attention": rope("dynamic", factor=2.0), "sliding_attention": rope("default")}
    config = Gemma3TextConfig(**SHAPE, head_dim=16, rope_parameters=layers)
    assert independent_length(config) == 128
    assert context_of(BloomConfig()) is None


def check_packed(config, dtype=torch.float32, first=60, second=20):
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    check_packed_rows(random_model(config, dtype), collator, first, second)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SHAPE),
        LlamaConfig(**SHAPE, attn_implementation="eager"),
        Qwen2Config(**SHAPE),
        Qwen3Config(**SHAPE, head_dim=16),
        Gemma3TextConfig(**SHAPE, head_dim=16, sliding_window=8),
        MistralConfig(**SHAPE, sliding_window=8),
        GPTNeoXConfig(**PLAIN),
    ],
    ids=lambda config: f"{config.model_type}-{config._attn_implementation}",
)
def test_models_that_keep_packed_rows_apart_may_pack(config):
    check_packed(config)
    check_packed(config, torch.bfloat16, second=1)


FALCON = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
FALCONS = [FalconConfig(**FALCON), FalconConfig(**FALCON, alibi=True)]
if Version(transformers.__version__) >= Version("5.24"):  # keeps Falcon's rows apart
    FALCONS = []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config",
    [
        OPTConfig(**PLAIN | {"hidden_size": 64}, ffn_dim=64, word_embed_proj_dim=64),
        BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=2),
        *FALCONS,
        Mamba2Config(
            vocab_size=64, hidden_size=32, num_hidden_layers=2, head_dim=16, num_heads=4, n_groups=1
        ),
        RecurrentGemmaConfig(**SHAPE | {"num_hidden_layers": 3}, head_dim=16),
    ],
    ids=lambda config: getattr(config, "model_type", str(config)),
)
def test_model_that_mixes_packed_rows_is_rejected(config, dtype):
    """Attention that ignores positions, and states that no boundary resets."""
    with pytest.raises(ConfigError, match=r"does not keep packed rows apart.*`packing: false`"):
        check_packed(config, dtype)


@pytest.mark.parametrize(
    "config",
    [
        Qwen3_5TextConfig(**SHAPE | {"num_hidden_layers": 4}, **LINEAR),
        BambaConfig(**SHAPE, **MAMBA, attn_layer_indices=[1]),
        GraniteMoeHybridConfig(
            **SHAPE, **MAMBA, layer_types=["mamba", "attention"], num_local_experts=2
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_model_that_fails_on_packed_rows_is_rejected(config):
    """Without `causal_conv1d`, which keeps the rows of a convolution apart: newer versions of transformers
    raise an error, older ones mix the rows.
    """
    with pytest.raises(
        ConfigError, match=r"(cannot train on|not keep) packed rows.*`packing: false`"
    ):
        check_packed(config)


def test_packing_with_virtual_tokens_is_rejected():
    prefix = PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    model = get_peft_model(random_model(LlamaConfig(**SHAPE)), prefix)
    with pytest.raises(ConfigError, match="PEFT drops the positions"):
        check_rows(SimpleNamespace(model=model, padding_free=True), [3, 5])
