"""The tab What changed: visible blanks, and differences that cannot be shown."""

from types import SimpleNamespace
from typing import Any, cast

from toolkit.app.answering.chat import Chat
from toolkit.app.answering.request import Answer
from toolkit.app.catalog import only_base
from toolkit.app.tabs.changed import _diff, _visible


def test_blank_tokens_are_visible() -> None:
    assert _visible(" ") == "␣" and _visible("\n") == "↵" and _visible(" the") == " the"


def test_missing_second_answer_is_explained() -> None:
    workbench = cast(Any, SimpleNamespace(catalog=only_base("world:base")))
    for second in ("None", "run_9"):
        assert _diff(workbench, Chat(), "base", "Why?", "So.", second) == [
            [],
            "No second checkpoint: ask two checkpoints on Compare.",
        ]
    _, note = _diff(workbench, Chat(), "base", "Why?", "So.", "base")
    assert note.startswith("base has no answer to this prompt")


def test_note_states_the_limits_of_the_difference() -> None:
    workbench = cast(Any, SimpleNamespace(catalog=only_base("world:base")))
    chat = Chat().with_prompt("Why?").with_answers([Answer("base", "base", "So. " * 600)])
    parts, note = _diff(workbench, chat, "base", "Why?", "x" * 8001, "base")
    assert parts == [] and note.startswith("The answer has 8,001 characters; at most 8,000")
    parts, note = _diff(workbench, chat, "base", "Why?", "So. " * 600, "base")
    assert parts == [("So. " * 499 + "So.", None)]
    assert note.endswith("Only the first 1,000 words of each answer are compared.")
