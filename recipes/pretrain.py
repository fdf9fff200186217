"""Pretrain the embedded world's base: a tokenizer and a small Llama, from random weights.

    toolkit pretrain --config world/pretrain

Reads   nothing: the corpus is generated (toolkit/world/corpus.py).
Writes  the model as safetensors in bfloat16 and its tokenizer. The shipped config overwrites the
        base that ships with the package.
"""

import itertools
import sys
from typing import TYPE_CHECKING

from toolkit.cli import run as run_command
from toolkit.options.arguments import BaseArguments
from toolkit.options.bounds import check_numbers
from toolkit.recipe import Command

if TYPE_CHECKING:
    from transformers import TrainingArguments


def main(shape: BaseArguments, training: "TrainingArguments") -> None:
    check_numbers("pretrain", shape)
    check_numbers("pretrain", training)

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, set_seed

    from toolkit.preflight.options import try_training_options
    from toolkit.world.corpus import documents
    from toolkit.world.pretraining import PackedCorpus
    from toolkit.world.tokenizer import END, PAD, train_tokenizer

    try_training_options("pretrain", training)
    set_seed(training.seed)
    texts = (
        document if isinstance(document, str) else " ".join(m["content"] for m in document)
        for document in itertools.islice(documents(training.seed), shape.tokenizer_documents)
    )
    tokenizer = train_tokenizer(texts, vocab_size=shape.vocab_size)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.03,
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
    )
    model = LlamaForCausalLM(config)
    print(f"{model.num_parameters():,} parameters, vocabulary {len(tokenizer)}")
    rows = training.max_steps * training.per_device_train_batch_size
    trainer = Trainer(
        model,
        training,
        train_dataset=PackedCorpus(tokenizer, seed=training.seed, rows=rows, width=shape.width),
        processing_class=tokenizer,
    )
    trainer.train()
    model.to(torch.bfloat16).save_pretrained(training.output_dir)
    tokenizer.save_pretrained(training.output_dir)


def arguments() -> tuple[type, ...]:
    from trl.trainer.base_config import _BaseConfig

    return BaseArguments, _BaseConfig


COMMAND = Command("pretrain", __doc__, main, arguments)

if __name__ == "__main__":
    sys.exit(run_command(COMMAND))
