"""Chat templates for tokenizers without one: chosen or asked for, saved, and found by later stages."""

import shutil
from pathlib import Path

import pytest
import trl
from trl import ModelConfig

from tests.models.methods import call
from toolkit.app.answering.tokens import Tokens
from toolkit.app.workbench import Workbench
from toolkit.errors import CheckpointError, ConfigError
from toolkit.models.arguments import ModelArguments
from toolkit.models.base import fingerprint, load_base
from toolkit.models.tokenizer import load_tokenizer, saved_template
from toolkit.runs.run import Run
from toolkit.sampling.generation import encode_completion, encode_prompt

USER = [{"role": "user", "content": "Where?"}]
SAID = [{"role": "assistant", "content": "Here."}]


@pytest.fixture
def bare(tiny_base, tmp_path):
    """The tiny base, its tokenizer without a chat template."""
    folder = tmp_path / "bare"
    shutil.copytree(tiny_base, folder)
    (folder / "chat_template.jinja").unlink()
    return folder


@pytest.fixture
def chatml(tiny_base, tmp_path):
    """The same with ChatML's tokens in its vocabulary, as base models of Qwen have them."""
    from transformers import AutoTokenizer

    folder = tmp_path / "chatml"
    shutil.copytree(tiny_base, folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = None
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    return folder


def test_plain_is_chosen_where_chatml_has_no_tokens_and_that_is_said(bare, capsys):
    tokenizer = load_tokenizer(str(bare))
    assert "no chat template; messages are rendered with the built-in `plain`" in (
        capsys.readouterr().out
    )
    text = tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, *USER, *SAID, *USER],
        tokenize=False,
        add_generation_prompt=True,
    )
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    assert text == (
        f"{bos}System:\nBe brief.\n\nUser:\nWhere?\n\nAssistant:\nHere.{eos}\n\n"
        "User:\nWhere?\n\nAssistant:\n"
    )


def test_chatml_is_chosen_where_its_tokens_are_and_ends_answers(chatml):
    tokenizer = load_tokenizer(str(chatml))
    text = tokenizer.apply_chat_template(USER + SAID, tokenize=False)
    assert text == ("<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\nHere.<|im_end|>\n")
    assert tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize("kind", ["bare", "chatml"])
def test_an_answer_ends_with_eos_and_is_what_trl_trains_on(kind, request):
    tokenizer = load_tokenizer(str(request.getfixturevalue(kind)))
    ids = encode_completion(tokenizer, USER, SAID)
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:-1]) == "Here."
    marked = tokenizer.apply_chat_template(
        USER + SAID, return_dict=True, return_assistant_tokens_mask=True
    )
    trained = [
        i for i, on in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if on
    ]
    assert trained == ids
    assert marked["input_ids"][: len(encode_prompt(tokenizer, USER))] == encode_prompt(
        tokenizer, USER
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "must be chatml, plain or a Jinja file"),
        ("{{ messages[0]['content'] }", "cannot be rendered"),
        (
            "{% for m in messages %}{{ m['content'] }}\n{% endfor %}",
            r"writes '\\n' after an answer",
        ),
        (
            "{% if add_generation_prompt %}{{ 'Say: ' }}{% endif %}"
            "{% for m in messages %}{{ m['content'] ~ eos_token }}{% endfor %}",
            "does not render the prompt as the start",
        ),
    ],
)
def test_a_template_that_cannot_work_is_refused(bare, tmp_path, text, message):
    file = tmp_path / "own.jinja"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_tokenizer(str(bare), chat_template=str(file))


def test_chatml_without_its_tokens_is_refused(bare):
    with pytest.raises(ConfigError, match=r"needs the token <\|im_end\|>.*Choose plain"):
        load_tokenizer(str(bare), chat_template="chatml")


def test_a_file_is_taken_in_the_place_of_the_own_template(tiny_base, tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text(
        "{% for m in messages %}{{ m['role'][0] ~ m['content'] ~ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'a' }}{% endif %}"
    )
    tokenizer = load_tokenizer(str(tiny_base), chat_template=str(file))
    eos = tokenizer.eos_token
    assert tokenizer.apply_chat_template(USER + SAID, tokenize=False) == (
        f"uWhere?{eos}aHere.{eos}"
    )


QWEN3 = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
TWO_TURNS = [*USER, {"role": "assistant", "content": "There."}, *USER]


@pytest.fixture
def qwen3(chatml):
    """The tiny base with Qwen3's template and the tokens that it writes."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chatml)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = QWEN3.read_text()
    tokenizer.save_pretrained(chatml)
    return chatml


@pytest.mark.parametrize("prompt", [USER, TWO_TURNS])
def test_qwen3s_empty_thought_is_in_the_prompt_and_not_in_the_answer(qwen3, capsys, prompt):
    tokenizer = load_tokenizer(str(qwen3))
    assert "the empty <think> block is a part of the prompts" in capsys.readouterr().out
    asked, said = encode_prompt(tokenizer, prompt), encode_completion(tokenizer, prompt, SAID)
    assert tokenizer.decode(asked).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert tokenizer.decode(asked).count("<think>") == 1
    assert tokenizer.decode(said) == "Here.<|im_end|>"
    whole = tokenizer.apply_chat_template(prompt + SAID, return_dict=False)
    assert whole == [*asked, *said, *tokenizer("\n")["input_ids"]]
    app = Tokens(tokenizer)
    assert (app.prompt(prompt), app.completion(prompt, "Here.")) == (asked, said)
    # Qwen's own way to ask for what the template now does by itself
    own = tokenizer.apply_chat_template(
        prompt,
        chat_template=QWEN3.read_text(),
        add_generation_prompt=True,
        enable_thinking=False,
        return_dict=False,
    )
    assert asked == own


def test_trl_trains_on_qwen3s_answers_without_an_empty_thought(qwen3, tmp_path):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(str(qwen3))
    asked = [encode_prompt(tokenizer, prompt) for prompt in (USER, TWO_TURNS)]
    said = [encode_completion(tokenizer, prompt, SAID) for prompt in (USER, TWO_TURNS)]
    line_break = tokenizer("\n")["input_ids"]
    prompts = {"prompt": [USER, TWO_TURNS]}
    options = {"output_dir": str(tmp_path), "report_to": [], "use_cpu": True, "bf16": False}
    sft = trl.SFTTrainer(
        AutoModelForCausalLM.from_pretrained(qwen3),
        trl.SFTConfig(**options),
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict(prompts | {"completion": [SAID] * 2}),
    )
    for row, start, end in zip(sft.train_dataset, asked, said, strict=True):
        assert row["input_ids"] == [*start, *end, *line_break]
        assert row["labels"] == [-100] * len(start) + end + line_break
    worse = [{"role": "assistant", "content": "No."}]
    dpo = trl.DPOTrainer(
        AutoModelForCausalLM.from_pretrained(qwen3),
        args=trl.DPOConfig(**options),
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict(prompts | {"chosen": [SAID] * 2, "rejected": [worse] * 2}),
    )
    for row, start, end in zip(dpo.train_dataset, asked, said, strict=True):
        assert (row["prompt_ids"], row["chosen_ids"]) == (start, [*end, *line_break])
        assert tokenizer.decode(row["rejected_ids"]) == "No.<|im_end|>\n"


def test_a_run_keeps_the_thinking_template_that_it_was_trained_with(qwen3, tmp_path, capsys):
    own, run = QWEN3.read_text(), tmp_path / "run"
    shutil.copytree(qwen3, run)
    for asked in (None, str(QWEN3)):
        assert load_tokenizer(str(qwen3), chat_template=asked, parent=run).chat_template == own
    assert capsys.readouterr().out == ""
    tokenizer = load_tokenizer(str(qwen3), chat_template=str(QWEN3))
    assert tokenizer.chat_template.endswith(own)
    tokenizer.save_pretrained(run)
    capsys.readouterr()
    for asked in (None, str(QWEN3)):
        found = load_tokenizer(str(qwen3), chat_template=asked, parent=run)
        assert found.chat_template == tokenizer.chat_template != own
    assert capsys.readouterr().out == ""
    thinks = tokenizer.apply_chat_template(
        USER, add_generation_prompt=True, enable_thinking=True, tokenize=False
    )
    assert thinks.endswith("<|im_start|>assistant\n")


@pytest.mark.slow
def test_later_stages_and_the_app_find_the_template_of_sft(bare, tiny_base, tmp_path, capsys):
    file = tmp_path / "own.jinja"
    file.write_text(
        "{% for m in messages %}{{ m['role'] ~ ': ' ~ m['content'] ~ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    runs = tmp_path / "runs"
    sft, dpo, reward, ppo = (runs / name for name in ("sft", "dpo", "reward", "ppo"))
    assert call("sft", sft, bare, chat_template=file) == 0
    assert saved_template(sft) == file.read_text()
    assert call("dpo", dpo, bare, parent=sft) == 0
    assert call("reward", reward, bare, parent=sft) == 0
    assert call("ppo", ppo, bare, parent=sft, reward_model=reward) == 0
    assert "no chat template" not in capsys.readouterr().out
    assert {Run.load(r).base["chat_template"] for r in (sft, dpo, reward, ppo)} == {
        fingerprint(ModelConfig(str(bare)), load_tokenizer(str(bare), parent=sft))["chat_template"]
    }
    assert all(saved_template(run) == file.read_text() for run in (dpo, reward, ppo))
    bench = Workbench.open(str(bare), runs)
    assert bench.tokenizer.chat_template == file.read_text()
    assert not bench.catalog.broken
    assert len(bench.catalog.checkpoints) == 4  # the base, SFT, DPO, PPO


def test_another_template_than_the_parents_is_refused(bare, tmp_path):
    tokenizer = load_tokenizer(str(bare), chat_template="plain")
    tokenizer.save_pretrained(tmp_path / "run")
    model = ModelArguments(str(bare), chat_template="plain")
    assert load_base(model, parent=tmp_path / "run")[1].chat_template == tokenizer.chat_template
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}{{ m['content'] ~ eos_token }}{% endfor %}"
    )
    with pytest.raises(ConfigError, match=r"is not the template that .*run was trained with"):
        load_tokenizer(
            str(bare), chat_template=str(tmp_path / "own.jinja"), parent=tmp_path / "run"
        )


def test_an_adapter_without_a_tokenizer_leaves_the_own_template(tiny_base, sft_run):
    assert load_tokenizer(str(tiny_base), parent=sft_run).chat_template == (
        load_tokenizer(str(tiny_base)).chat_template
    )


def test_damaged_tokenizer_files_are_an_error_of_ours(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("[1, 2")
    with pytest.raises(CheckpointError, match="damaged tokenizer files"):
        saved_template(tmp_path)
