"""The check of rows against the chat template: what the model reads is what the row says."""

from pathlib import Path
from typing import Any

import pytest
import trl
from trl.scripts.utils import DatasetMixtureConfig, ScriptArguments

from tests.data.helpers import assistant, chat, load, user, write_rows
from tests.data.test_checks import DROP, dropped_rows
from toolkit.data import check_texts
from toolkit.data.auxiliary import load_demonstrations, load_split
from toolkit.data.encoding import encode_completion, encode_prompt
from toolkit.data.streaming import open_stream
from toolkit.errors import DatasetError
from toolkit.options.arguments import DataArguments

TRL = Path(trl.__file__).parent / "chat_templates"
GENERATE = "{% if add_generation_prompt %}A:{% endif %}"


def turns(content: str, *, before: str = "") -> str:
    """A template that writes each turn as Q: or A:, its content as given, and EOS."""
    return (
        f"{before}{{% for m in messages %}}{{{{ 'A:' if m.role == 'assistant' else 'Q:' }}}}"
        f"{content}{{{{ eos_token }}}}{{% endfor %}}{GENERATE}"
    )


GOOD = turns("{{ m.content }}")
NO_SYSTEM = turns(
    "{{ m.content }}",
    before="{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}",
)
IGNORES_SYSTEM = turns("{% if m.role != 'system' %}{{ m.content }}{% endif %}")
CASES = {  # a template, a row, the part of the message that names the problem
    "content as a list": (
        turns("{% for part in m.content if part.type == 'text' %}{{ part.text }}{% endfor %}"),
        chat("Sky?", "Blue."),
        'a part of "prompt" message 1, "Sky?"',
    ),
    "generation prompt that the dialogue lacks": (
        (TRL / "deepseek_r1_distill.jinja").read_text(),
        chat("Sky?", "Blue."),
        'the prompt ends with "<think>\\n" (str), the answer begins with "Blue.',
    ),
    "upper case": (turns("{{ m.content | upper }}"), chat("SKY?", "Blue."), 'of "completion"'),
    "whitespace in the answer": (
        turns("{{ m.content.split() | join(' ') }}"),
        chat("Sky?", "if x:\n    y = 1"),
        'changes whitespace inside "completion", "if x:',
    ),
    "whitespace in the prompt": (
        turns("{{ m.content.replace('\n\n', '\n') }}"),
        chat("Sky?\n\nOr sea?", "Blue."),
        'changes whitespace inside "prompt" message 1, "Sky?',
    ),
    "whitespace in the thought": (
        turns("{{ m.content.replace('\n\n', '\n') }}"),
        chat("Sky?", "<think>\nHm.\n\nHm.\n</think>\n\nBlue."),
        'changes whitespace inside "completion", "<think>',
    ),
    "thought without a template's option": (
        (TRL / "deepseek_r1_distill.jinja").read_text(),
        chat("Sky?", "<think>Hm.</think>Blue."),
        "contains a thought: choose another `chat_template`, or remove the thoughts",
    ),
    "escaped": (turns("{{ m.content | e }}"), chat("Sky?", "1 < 2"), 'a part of "completion"'),
    "question cut": (turns("{{ m.content[:9] }}"), chat("Is the sky blue?", "Yes."), '"Is the sky'),
    "answer cut": (turns("{{ m.content[:9] }}"), chat("Sky?", "Blue it is."), '"Blue it is."'),
    "system ignored": (
        IGNORES_SYSTEM,
        {"prompt": [{"role": "system", "content": "Brief."}, user("Sky?")]}
        | {"completion": [assistant("Blue.")]},
        'of "prompt" message 1, "Brief."',
    ),
    "system ignored, but a part of the question": (
        IGNORES_SYSTEM,
        {"prompt": [{"role": "system", "content": "Brief."}, user("Sky? Brief.")]}
        | {"completion": [assistant("Blue.")]},
        'of "prompt" message 1, "Brief."',
    ),
    "second question dropped": (
        turns("{{ m.content if loop.index < 3 or m.role == 'assistant' }}"),
        {"prompt": [user("Sky?"), assistant("Blue."), user("Sky?")]}
        | {"completion": [assistant("White.")]},
        'of "prompt" message 3, "Sky?"',
    ),
    "thought dropped": (
        turns("{{ m.content.split('</think>')[-1] }}"),
        chat("Sky?", "<think>Hm.</think>Blue."),
        'a part of "completion"',
    ),
    "second thought": (
        turns("{{ '<think></think>' if m.role == 'assistant' }}{{ m.content }}"),
        chat("Sky?", "<think>Hm.</think>Blue."),
        'a part of "completion"',
    ),
    "raises": (
        "{{ raise_exception('not today') }}",
        chat("Sky?", "Blue."),
        "the chat template cannot render the messages (not today)",
    ),
    "error in the template": (
        turns("{{ m.text.strip() }}"),
        chat("Sky?", "Blue."),
        "the chat template cannot render the messages (",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_template_that_changes_texts_raises_with_a_fix(
    name: str, tmp_path: Path, tokenizer: Any
) -> None:
    tokenizer.chat_template, row, message = CASES[name]
    splits = load(write_rows(tmp_path / "d.jsonl", [row] * 2))
    for data_args in (DataArguments(), DROP):
        with pytest.raises(DatasetError) as caught:
            check_texts(splits, tokenizer, data_args)
        assert f"{tmp_path / 'd.jsonl'} row 1: the chat template" in str(caught.value)
        assert message in str(caught.value)
        assert "more than half of the 2 rows, so the chat template does not suit" in str(
            caught.value
        )
        assert "another `chat_template` (chatml, plain or a Jinja file)" in str(caught.value)


@pytest.mark.parametrize("kind", ["prompt-completion", "preference", "unpaired", "prompt-only"])
def test_row_rejected_by_template_is_named_and_dropped(
    kind: str, tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer.chat_template = NO_SYSTEM
    row = {"chosen": [assistant("Blue.")], "rejected": [assistant("Red.")]}
    rows = [{"prompt": [user(f"Sky {i}?")]} | row for i in range(3)]
    rows[1]["prompt"].insert(0, {"role": "system", "content": "Be brief."})
    name = write_rows(tmp_path / "d.jsonl", rows)
    splits = load(name, kind=kind)
    with pytest.raises(DatasetError, match=r"row 2: .* cannot render the messages \(No system"):
        check_texts(splits, tokenizer, DataArguments())
    left = check_texts(splits, tokenizer, DROP, folder=tmp_path)["train"]
    assert {row["prompt"][0]["content"] for row in left} == {"Sky 0?", "Sky 2?"}
    assert {(row["number"], row["check"]) for row in dropped_rows(tmp_path)} == {
        (2, "chat template")
    }
    assert "chat template (2" in capsys.readouterr().out


def test_templates_that_keep_all_texts_pass(tmp_path: Path, tokenizer: Any) -> None:
    system = {"role": "system", "content": "Brief."}
    history = [user("Sky:\n\n  x?"), assistant("<think>\nHm.\n</think>\n\nBlue."), user("Sky?")]
    rows = [
        {"prompt": [system, *history], "completion": [assistant(" White.\n\n  Or grey.")]},
        {"prompt": [user(" Sky?\n")], "completion": [assistant("1 < 2")]},
    ]
    splits = load(write_rows(tmp_path / "d.jsonl", rows))
    names = ["llama3", "gemma3", "phi3", "qwen2_5", "qwen3", "lfm2", "cohere", "gptoss", "glm4moe"]
    for template in [GOOD, turns("{{ m.content | trim }}"), *names]:
        file = TRL / f"{template}.jinja"
        tokenizer.chat_template = file.read_text() if template in names else template
        assert len(check_texts(splits, tokenizer, DataArguments())["train"]) == 2


def test_answers_that_render_alike_are_rejected(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = (TRL / "qwen3.jinja").read_text()
    thoughts = "<think>Hm.</think>", "<think>\nHm.\n</think>\n\n"
    chosen, rejected = ([assistant(f"{thought}Blue.")] for thought in thoughts)
    row = {"chosen": chosen, "rejected": rejected}
    rows = [{"prompt": [user("Sky?")]} | row]
    splits = load(write_rows(tmp_path / "d.jsonl", rows), kind="preference")
    with pytest.raises(DatasetError, match='"chosen" and "rejected" are the same text for the mod'):
        check_texts(splits, tokenizer, DataArguments())


def test_plain_completions_contain_text_and_no_bos_or_eos(tmp_path: Path, tokenizer: Any) -> None:
    good = {"prompt": "q1", "chosen": "a<|end|>", "rejected": "b"}
    rows = [
        good,
        good | {"chosen": "a<|end|> and more"},
        good | {"rejected": "a<|end|>\n<|pad|>"},
        good | {"rejected": "<|end|>"},
        good | {"rejected": "<|start|>b"},
    ]
    splits = load(write_rows(tmp_path / "d.jsonl", rows), kind="preference")
    message = r'row 2: "chosen" must not contain the end token "<\|end\|>" \(str\) before its end'
    with pytest.raises(DatasetError, match=message):
        check_texts(splits, tokenizer, DataArguments())
    assert check_texts(splits, tokenizer, DROP, folder=tmp_path)["train"].to_list() == [good]
    assert [(row["number"], row["check"]) for row in dropped_rows(tmp_path)] == [
        (2, "end token"),
        (3, "chat template"),
        (4, "empty text"),
        (5, "start token"),
    ]


def test_streamed_row_that_the_template_rejects_is_dropped(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = NO_SYSTEM
    rows = [chat(f"Sky {i}?", "Blue.") for i in range(1003)]
    rows[1001]["prompt"].insert(0, {"role": "system", "content": "Brief."})
    script = ScriptArguments(dataset_name=write_rows(tmp_path / "d.jsonl", rows))
    script.dataset_streaming = True
    for data_args in (DataArguments(), DROP):
        options = (script, DatasetMixtureConfig(), data_args)
        splits = load(script.dataset_name, script={"dataset_streaming": True})
        stream = open_stream(*options, splits, tokenizer, folder=tmp_path)
        if data_args is not DROP:
            with pytest.raises(DatasetError, match=r"row 1002: .*\(No system role\)"):
                list(stream.rows())
    assert len(list(stream.rows())) == 1002
    assert [row["number"] for row in dropped_rows(tmp_path)] == [1002]


def test_demonstrations_and_prompts_of_other_recipes_are_checked(
    tmp_path: Path, tokenizer: Any
) -> None:
    tokenizer.chat_template = NO_SYSTEM
    rows = [chat(f"Sky {i}?", "Blue.") for i in range(3)]
    rows[2]["prompt"].insert(0, {"role": "system", "content": "Brief."})
    write_rows(tmp_path / "train.jsonl", rows)
    options: dict[str, Any] = {"seed": 0, "tokenizer": tokenizer}
    with pytest.raises(DatasetError, match="row 3: the chat template cannot render"):
        load_demonstrations(str(tmp_path), DataArguments(), **options)
    assert len(load_demonstrations(str(tmp_path), DROP, **options)) == 2
    options |= {"option": "prompts_split", "drop_bad_rows": False}
    with pytest.raises(DatasetError, match="row 3: the chat template cannot render"):
        load_split(str(tmp_path), "train", **options)


THOUGHT = "<think>\nSix sevens are forty-two.\n</think>\n\n"


def test_reasoning_content_becomes_a_part_of_the_answer(tmp_path: Path, tokenizer: Any) -> None:
    keys = ("reasoning_content", "reasoning", "thinking")
    answers = [assistant("42.") | {key: "Six sevens are forty-two.\n"} for key in keys]
    answers += [assistant(f"{THOUGHT}42."), assistant("42.") | {"reasoning_content": None}]
    answers += [assistant("42.") | {"reasoning_content": 7}]
    rows = [{"messages": [user(f"Seven times six? {i}"), a]} for i, a in enumerate(answers)]
    splits = load(write_rows(tmp_path / "d.jsonl", rows), drop_bad_rows=True, folder=tmp_path)
    table = check_texts(splits, tokenizer, DataArguments())["train"]
    assert [row[0]["content"] for row in table["completion"]] == [f"{THOUGHT}42."] * 4 + ["42."]
    (dropped,) = dropped_rows(tmp_path)
    assert (dropped["number"], dropped["check"]) == (6, "not text")
    row = table[0]
    ids = encode_prompt(tokenizer, row["prompt"])
    ids += encode_completion(tokenizer, row["prompt"], row["completion"])
    assert tokenizer.decode(ids).endswith(f"<|assistant|>{THOUGHT}42.<|end|>")


def test_prompt_ids_reject_a_dropped_system_message(tokenizer: Any) -> None:
    """The route of PPO from Python, of evaluation and of the app, which check no rows."""
    tokenizer.chat_template = IGNORES_SYSTEM
    assert encode_prompt(tokenizer, [user("Sky?")])
    with pytest.raises(DatasetError, match="leaves out or changes a part of"):
        encode_prompt(tokenizer, [{"role": "system", "content": "Brief."}, user("Sky?")])
