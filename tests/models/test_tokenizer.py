"""Chat templates: the default, the option, thinking templates, and the parent's template."""

from pathlib import Path

import pytest
import trl
from trl import ModelConfig

from tests.models.methods import call
from toolkit.app.workbench import Workbench
from toolkit.data.encoding import encode_completion, encode_prompt
from toolkit.errors import CheckpointError, ConfigError
from toolkit.models.arguments import ModelArguments
from toolkit.models.base import fingerprint, load_base
from toolkit.models.tokenizer import load_tokenizer, saved_template
from toolkit.runs.run import Run

USER = [{"role": "user", "content": "Where?"}]
ANSWER = [{"role": "assistant", "content": "Here."}]
TRL = Path(trl.__file__).parent / "chat_templates"


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


def test_first_of_several_named_templates_is_used(chatml):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chatml)
    text = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    tokenizer.chat_template = {"default": text, "tool_use": "{{ raise_exception('no tools') }}"}
    tokenizer.save_pretrained(chatml)
    loaded = load_tokenizer(str(chatml))
    assert loaded.decode(encode_prompt(loaded, USER)) == "Where?<|im_end|>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ((TRL / "smolvlm.jinja").read_text(), "content as a list of parts"),
        ((TRL / "idefics3.jinja").read_text(), "content as a list of parts"),
        ((TRL / "llava_next.jinja").read_text(), "cannot render the messages"),
        ("{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}", "or changes the"),
        ("{% for m in messages %}{{ m.content | e }}<|im_end|>{% endfor %}", "or changes the text"),
        (
            "{% for m in messages %}<|im_end|>{% endfor %}",
            "leaves out, repeats or changes the text",
        ),
        ("{% for m in messages %}{{ m.content * 2 }}<|im_end|>{% endfor %}", "repeats or changes"),
        ("{% for m in messages %}{{ m.content", "cannot render the messages"),
    ],
)
def test_template_that_changes_texts_is_rejected_at_load(chatml, tmp_path, template, message):
    (chatml / "chat_template.jinja").write_text(template)
    own = rf"chatml: the chat template .*{message}.* Choose another `chat_template`: chatml, plain"
    with pytest.raises(ConfigError, match=own):
        load_tokenizer(str(chatml))
    with pytest.raises(ConfigError, match=message):
        load_tokenizer(str(chatml), chat_template=str(chatml / "chat_template.jinja"))
    assert load_tokenizer(str(chatml), chat_template="chatml").eos_token == "<|im_end|>"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tokenizer_config.json").write_text("{}")
    (tmp_path / "run" / "chat_template.jinja").write_text(template)
    with pytest.raises(ConfigError, match=message):
        load_tokenizer(str(chatml), parent=tmp_path / "run")


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
