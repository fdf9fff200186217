"""The tiny base with other tokenizers: no chat template, ChatML's tokens, Qwen3's template."""

import json
import shutil
from pathlib import Path

import pytest
import trl

QWEN3 = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"


@pytest.fixture
def bare(tiny_base, tmp_path):
    """The tiny base, its tokenizer without a chat template."""
    folder = tmp_path / "bare"
    shutil.copytree(tiny_base, folder)
    (folder / "chat_template.jinja").unlink()
    return folder


@pytest.fixture
def chatml(tiny_base, tmp_path):
    """The same with ChatML's tokens in its vocabulary, as in Qwen's base models."""
    from transformers import AutoTokenizer

    folder = tmp_path / "chatml"
    shutil.copytree(tiny_base, folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = None
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] += 4  # for the tokens that fixtures add; no test loads these weights
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def qwen3(chatml):
    """The tiny base with Qwen3's template and the tokens that it writes."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chatml)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = QWEN3.read_text()
    tokenizer.save_pretrained(chatml)
    return chatml
