"""What the tab "What changed" writes where there is little to see."""

from types import SimpleNamespace
from typing import Any, cast

from toolkit.app.answering.chat import Chat
from toolkit.app.catalog import only_base
from toolkit.app.tabs.changed import _diff, _visible


def test_a_token_of_blanks_alone_is_shown() -> None:
    assert _visible(" ") == "␣" and _visible("\n") == "↵" and _visible(" the") == " the"


def test_where_there_is_nobody_to_compare_with_the_page_says_what_to_do() -> None:
    bench = cast(Any, SimpleNamespace(catalog=only_base("world:base")))
    for second in ("None", "run_9"):
        assert _diff(bench, Chat(), "base", "Why?", "So.", second) == [
            [],
            "No second checkpoint: ask two checkpoints on Compare.",
        ]
    _, said = _diff(bench, Chat(), "base", "Why?", "So.", "base")
    assert said.startswith("base has no answer to this prompt")
