"""Templates with thoughts: the empty thought of Qwen3's prompts, and answers with thoughts."""

import shutil

import pytest
import trl

from tests.data.helpers import load, write_rows
from tests.models.conftest import QWEN3
from tests.trainers.prepared import prepared
from toolkit.app.answering.tokens import LockedTokenizer
from toolkit.data import check_texts
from toolkit.data.encoding import encode_completion, encode_prompt
from toolkit.errors import ConfigError, DatasetError
from toolkit.models.tokenizer import load_tokenizer
from toolkit.options.arguments import DataArguments
from toolkit.trainers.supervised import DPOTrainer, SFTTrainer

USER = [{"role": "user", "content": "Where?"}]
ANSWER = [{"role": "assistant", "content": "Here."}]
TWO_TURNS = [*USER, {"role": "assistant", "content": "There."}, *USER]


@pytest.mark.parametrize("prompt", [USER, TWO_TURNS])
def test_qwen3_empty_thought_is_in_the_prompt(qwen3, capsys, prompt):
    tokenizer = load_tokenizer(str(qwen3))
    assert "prompts and not completions contain the empty <think> block" in capsys.readouterr().out
    start, answer = encode_prompt(tokenizer, prompt), encode_completion(tokenizer, prompt, ANSWER)
    assert tokenizer.decode(start).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert tokenizer.decode(start).count("<think>") == 1
    assert tokenizer.decode(answer) == "Here.<|im_end|>"
    chat = tokenizer.apply_chat_template(prompt + ANSWER, return_dict=False)
    assert chat == [*start, *answer, *tokenizer("\n")["input_ids"]]
    app = LockedTokenizer(tokenizer)
    assert (app.prompt(prompt), app.completion(prompt, "Here.")) == (start, answer)
    # Qwen's own option gives the same prompt
    own = tokenizer.apply_chat_template(
        prompt,
        chat_template=QWEN3.read_text(),
        add_generation_prompt=True,
        enable_thinking=False,
        return_dict=False,
    )
    assert start == own


@pytest.mark.parametrize("prompt", [USER, TWO_TURNS])
def test_sft_and_dpo_train_qwen3_without_empty_thought(qwen3, tmp_path, prompt):
    tokenizer = load_tokenizer(str(qwen3))
    start, answer = encode_prompt(tokenizer, prompt), encode_completion(tokenizer, prompt, ANSWER)
    row = {"prompt": prompt, "completion": ANSWER}
    sft = trained_row(SFTTrainer, trl.SFTConfig, row, tokenizer, completion_only_loss=True)
    assert sft["input_ids"] == [*start, *answer]
    assert sft["labels"] == [-100] * len(start) + answer
    worse = [{"role": "assistant", "content": "No."}]
    row = {"prompt": prompt, "chosen": ANSWER, "rejected": worse}
    dpo = trained_row(DPOTrainer, trl.DPOConfig, row, tokenizer)
    assert (dpo["prompt_ids"], dpo["chosen_ids"]) == (start, answer)
    assert tokenizer.decode(dpo["rejected_ids"]) == "No.<|im_end|>"


def trained_row(trainer, config, row, tokenizer, **attributes):
    from datasets import Dataset

    return prepared(trainer, config, Dataset.from_list([row]), tokenizer, "unused", **attributes)


THOUGHT = "<think>\nSix sevens.\n</think>\n\n"
THOUGHTFUL = [{"role": "assistant", "content": f"{THOUGHT}42."}]


def test_answers_with_thoughts_need_the_thinking_template(qwen3, tmp_path):
    rows = [{"messages": [*USER, *THOUGHTFUL]}, {"messages": [*TWO_TURNS, *THOUGHTFUL]}]
    rows[1]["messages"][1] = THOUGHTFUL[0]  # Qwen's template drops the thoughts of earlier answers
    splits = load(write_rows(tmp_path / "d.jsonl", rows))
    with pytest.raises(DatasetError, match="contains a thought: set `chat_template: thinking`"):
        check_texts(splits, load_tokenizer(str(qwen3)), DataArguments())
    tokenizer = load_tokenizer(str(qwen3), chat_template="thinking")
    assert tokenizer.chat_template == QWEN3.read_text()
    for row in check_texts(splits, tokenizer, DataArguments())["train"]:
        start = encode_prompt(tokenizer, row["prompt"])
        sft = trained_row(SFTTrainer, trl.SFTConfig, row, tokenizer, completion_only_loss=True)
        assert sft["input_ids"][: len(start)] == start  # what PPO samples from
        assert tokenizer.decode(start).endswith("<|im_start|>assistant\n")
        trained = tokenizer.decode([token for token in sft["labels"] if token != -100])
        assert trained == f"{THOUGHT}42.<|im_end|>"


def test_thoughts_are_passed_as_reasoning_content(qwen3, tmp_path):
    """Qwen3.8's template reads `reasoning_content` alone, and else writes an empty thought."""
    own = QWEN3.with_name("qwen3_8.jinja").read_text()
    (qwen3 / "chat_template.jinja").write_text(own)
    tokenizer = load_tokenizer(str(qwen3), chat_template="thinking")
    rows = [{"messages": [*USER, *THOUGHTFUL]}, {"messages": [*USER, *THOUGHTFUL, *USER, *ANSWER]}]
    rows[1]["messages"][-1] = THOUGHTFUL[0]
    splits = load(write_rows(tmp_path / "d.jsonl", rows))
    for row in check_texts(splits, tokenizer, DataArguments())["train"]:
        start = tokenizer.decode(encode_prompt(tokenizer, row["prompt"]))
        assert start.endswith("<|im_start|>assistant\n<think>\n")
        assert start.count("42.") == start.count("</think>") == len(row["prompt"]) // 2
        answer = encode_completion(tokenizer, row["prompt"], row["completion"])
        assert tokenizer.decode(answer) == "Six sevens.\n</think>\n\n42.<|im_end|>"


def test_thinking_template_is_kept_by_later_stages(qwen3, tmp_path):
    own = QWEN3.read_text()
    load_tokenizer(str(qwen3), chat_template="thinking").save_pretrained(tmp_path / "run")
    for option in (None, "thinking"):
        later = load_tokenizer(str(qwen3), chat_template=option, parent=tmp_path / "run")
        assert later.chat_template == own
    load_tokenizer(str(qwen3)).save_pretrained(tmp_path / "quiet")
    with pytest.raises(ConfigError, match="thinking is not the template that"):
        load_tokenizer(str(qwen3), chat_template="thinking", parent=tmp_path / "quiet")


def test_thinking_enables_thoughts_that_are_off_by_default(qwen3):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(qwen3)
    own = QWEN3.with_name("qwen3_5_nothink.jinja").read_text()
    tokenizer.chat_template = own
    tokenizer.save_pretrained(qwen3)
    assert load_tokenizer(str(qwen3)).chat_template == own
    thinks = load_tokenizer(str(qwen3), chat_template="thinking")
    assert tokenizer.decode(encode_prompt(thinks, USER)).endswith("assistant\n<think>\n")
    answer = encode_completion(thinks, USER, THOUGHTFUL)
    assert tokenizer.decode(answer) == "Six sevens.\n</think>\n\n42.<|im_end|>"


def test_thinking_needs_a_template_with_thoughts(tiny_base, bare):
    for base in (tiny_base, bare):
        with pytest.raises(ConfigError, match="whose own template has the option"):
            load_tokenizer(str(base), chat_template="thinking")


def test_run_keeps_its_thinking_template(qwen3, tmp_path, capsys):
    own, run = QWEN3.read_text(), tmp_path / "run"
    shutil.copytree(qwen3, run)
    for option in (None, str(QWEN3)):
        assert load_tokenizer(str(qwen3), chat_template=option, parent=run).chat_template == own
    assert capsys.readouterr().out == ""
    tokenizer = load_tokenizer(str(qwen3), chat_template=str(QWEN3))
    assert tokenizer.chat_template.endswith(own)
    tokenizer.save_pretrained(run)
    capsys.readouterr()
    for option in (None, str(QWEN3)):
        reloaded = load_tokenizer(str(qwen3), chat_template=option, parent=run)
        assert reloaded.chat_template == tokenizer.chat_template != own
    assert capsys.readouterr().out == ""
    thinks = tokenizer.apply_chat_template(
        USER, add_generation_prompt=True, enable_thinking=True, tokenize=False
    )
    assert thinks.endswith("<|im_start|>assistant\n")
