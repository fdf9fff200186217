"""Shared by the recording and its test: shapes, settings, and a tokenizer of forty words."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj"]
SETTINGS = {
    "temperature": 0.9,
    "kl_coef": 0.07,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 0.3,
    "gamma": 0.98,
    "lam": 0.93,
}
EPOCHS = {"num_ppo_epochs": 2, "whiten_rewards": True, "missing_eos_penalty": 1.0}
EPOCHS |= {"cliprange_value": 0.02}  # so small that some values reach it
LEARNING_RATE, EPOCHS_LEARNING_RATE = 0.5, 0.05
STOP = 7  # a stop token that is not the tokenizer's EOS


def tokenizer() -> PreTrainedTokenizerFast:
    """`<pad>` 0, `<s>` 1, `</s>` 2, and w0 … w36."""
    words = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(37))]
    tokens = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
    )
