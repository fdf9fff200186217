"""The prompt field after an error, and the warning about a conversation that is not stored."""

from pathlib import Path
from typing import Any, cast

import gradio as gr
import pytest

from toolkit.app.answering.chat import Chat
from toolkit.app.conversations.store import Conversations
from toolkit.app.tabs.compare_events import CompareEvents, unsent


@pytest.mark.parametrize(
    ("sent", "typed", "field"),
    [
        ("Why?", "", "Why?"),  # cleared when it was sent
        ("Why?", "And?", "Why?\nAnd?"),  # typed since
        ("Why?", "Why? And", "Why? And"),  # not cleared, because answers stream
        ("", "And?", "And?"),
    ],
)
def test_unsent_prompt_comes_back_before_new_text(sent: str, typed: str, field: str) -> None:
    assert unsent(sent, typed) == field


def test_warning_about_the_store_hides_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conversations.sqlite").write_text("damaged" * 500)
    warnings: list[str] = []
    monkeypatch.setattr(gr, "Warning", warnings.append)
    events = CompareEvents(cast(Any, None), Conversations(tmp_path / "conversations.sqlite"))
    chat = Chat().with_prompt("Why?")
    assert events.saved("owner", chat, warn=True) == chat
    (warning,) = warnings
    assert "move a damaged file away" in warning and str(tmp_path) not in warning
