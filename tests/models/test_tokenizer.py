"""Chat templates: the default, the option, thinking templates, and the parent's template."""

import shutil
from pathlib import Path

import pytest
import trl
from trl import ModelConfig

from tests.models.methods import call
from toolkit.app.answering.tokens import LockedTokenizer
from toolkit.app.workbench import Workbench
from toolkit.data.encoding import encode_completion, encode_prompt
from toolkit.errors import CheckpointError, ConfigError
from toolkit.models.arguments import ModelArguments
from toolkit.models.base import fingerprint, load_base
from toolkit.models.tokenizer import load_tokenizer, saved_template
from toolkit.runs.run import Run

USER = [{"role": "user", "content": "Where?"}]
ANSWER = [{"role": "assistant", "content": "Here."}]


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
    return folder


def test_plain_is_default_without_chatml_tokens(bare, capsys):
    tokenizer = load_tokenizer(str(bare))
    assert "no chat template; messages are rendered with the built-in `plain`" in (
        capsys.readouterr().out
    )
    text = tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, *USER, *ANSWER, *USER],
        tokenize=False,
        add_generation_prompt=True,
    )
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    assert text == (
        f"{bos}System:\nBe brief.\n\nUser:\nWhere?\n\nAssistant:\nHere.{eos}\n\n"
        "User:\nWhere?\n\nAssistant:\n"
    )


def test_chatml_is_default_with_its_tokens(chatml):
    tokenizer = load_tokenizer(str(chatml))
    text = tokenizer.apply_chat_template(USER + ANSWER, tokenize=False)
    assert text == ("<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\nHere.<|im_end|>\n")
    assert tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize("kind", ["bare", "chatml"])
def test_completion_ends_with_eos_as_trl_trains(kind, request):
    tokenizer = load_tokenizer(str(request.getfixturevalue(kind)))
    ids = encode_completion(tokenizer, USER, ANSWER)
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:-1]) == "Here."
    marked = tokenizer.apply_chat_template(
        USER + ANSWER, return_dict=True, return_assistant_tokens_mask=True
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
        (None, "must be chatml, plain, thinking or a Jinja file"),
        ("{{ messages[0]['content'] }", "cannot render the messages"),
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
def test_unusable_template_is_rejected(bare, tmp_path, text, message):
    file = tmp_path / "own.jinja"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_tokenizer(str(bare), chat_template=str(file))


def test_chatml_without_its_tokens_is_rejected(bare):
    with pytest.raises(ConfigError, match=r"needs the token <\|im_end\|>.*Choose plain"):
        load_tokenizer(str(bare), chat_template="chatml")


def test_template_file_replaces_own_template(tiny_base, tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text(
        "{% for m in messages %}{{ m['role'][0] ~ m['content'] ~ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'a' }}{% endif %}"
    )
    tokenizer = load_tokenizer(str(tiny_base), chat_template=str(file))
    eos = tokenizer.eos_token
    assert tokenizer.apply_chat_template(USER + ANSWER, tokenize=False) == (
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
def test_qwen3_empty_thought_is_in_the_prompt(qwen3, capsys, prompt):
    tokenizer = load_tokenizer(str(qwen3))
    assert "the empty <think> block is a part of the prompts" in capsys.readouterr().out
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


def test_trl_trains_qwen3_without_empty_thought(qwen3, tmp_path):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(str(qwen3))
    starts = [encode_prompt(tokenizer, prompt) for prompt in (USER, TWO_TURNS)]
    answers = [encode_completion(tokenizer, prompt, ANSWER) for prompt in (USER, TWO_TURNS)]
    line_break = tokenizer("\n")["input_ids"]
    prompts = {"prompt": [USER, TWO_TURNS]}
    options = {"output_dir": str(tmp_path), "report_to": [], "use_cpu": True, "bf16": False}
    sft = trl.SFTTrainer(
        AutoModelForCausalLM.from_pretrained(qwen3),
        trl.SFTConfig(**options),
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict(prompts | {"completion": [ANSWER] * 2}),
    )
    for row, start, end in zip(sft.train_dataset, starts, answers, strict=True):
        assert row["input_ids"] == [*start, *end, *line_break]
        assert row["labels"] == [-100] * len(start) + end + line_break
    worse = [{"role": "assistant", "content": "No."}]
    dpo = trl.DPOTrainer(
        AutoModelForCausalLM.from_pretrained(qwen3),
        args=trl.DPOConfig(**options),
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict(
            prompts | {"chosen": [ANSWER] * 2, "rejected": [worse] * 2}
        ),
    )
    for row, start, end in zip(dpo.train_dataset, starts, answers, strict=True):
        assert (row["prompt_ids"], row["chosen_ids"]) == (start, [*end, *line_break])
        assert tokenizer.decode(row["rejected_ids"]) == "No.<|im_end|>\n"


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


@pytest.mark.slow
def test_later_stages_and_app_use_sft_template(bare, tiny_base, tmp_path, capsys):
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


def test_template_other_than_parents_is_rejected(bare, tmp_path):
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


def test_parent_without_tokenizer_keeps_own_template(tiny_base, sft_run):
    assert load_tokenizer(str(tiny_base), parent=sft_run).chat_template == (
        load_tokenizer(str(tiny_base)).chat_template
    )


def test_damaged_tokenizer_files_are_rejected(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("[1, 2")
    with pytest.raises(CheckpointError, match="damaged tokenizer files"):
        saved_template(tmp_path)
