"""The page's style and script, and the script's settings: element ids, shortcuts and tooltips."""

import json
from collections.abc import Mapping
from pathlib import Path


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


# elem_ids on the tabs Compare and Rank; QUESTION is a class of buttons
PROMPT, QUESTION = "compare-prompt", "question"
PANEL, PANEL_BUTTON = "compare-panel", "compare-panel-button"
CONVERSATION, NEW_CHAT = "chat", "new"  # of the address, such as ?chat=new
BOARD, ORDER, ANSWER, PLACE_BUTTON = "rank-board", "rank-order", "rank-answer-", "rank-place-"
BATCH_FILE, BATCH_PROMPTS = "batch-file", "batch-prompts"
MAX_FILE = 4 << 20  # bytes that the button "Open a file" puts into the box

# key -> elem_id of the button that it clicks
ARENA_KEYS: Mapping[str, str] = {
    "1": "arena-a",
    "2": "arena-b",
    "t": "arena-tie",
    "b": "arena-both-bad",
    "s": "arena-skip",
    "n": "arena-next",
    "u": "arena-undo",
    "Control+Enter": "arena-start",
    "Escape": "arena-stop",
}
RANK_KEYS: Mapping[str, str] = {str(n): f"{PLACE_BUTTON}{n}" for n in range(1, 10)} | {
    "t": "rank-tie",
    "Control+Enter": "rank-save",
    "Escape": "rank-clear",
}

# Tooltips by the label of a button or tab without numbers, brackets and arrows (`hintKey` in page.js).
# Gradio itself explains only fields.
HINTS: Mapping[str, str] = {
    key: hint for hints in json.loads(_file("hints.json")).values() for key, hint in hints.items()
}


_SETTINGS = {
    "prompt": PROMPT,
    "question": QUESTION,
    "panel": PANEL,
    "panelButton": PANEL_BUTTON,
    "conversation": CONVERSATION,
    "newChat": NEW_CHAT,
    "questionHint": "Put this question into the box.",
    "batchFile": BATCH_FILE,
    "batchPrompts": BATCH_PROMPTS,
    "maxFile": MAX_FILE,
    "board": BOARD,
    "order": ORDER,
    "answer": ANSWER,
    "placeButton": PLACE_BUTTON,
    "keys": [dict(ARENA_KEYS), dict(RANK_KEYS)],
    "hints": dict(HINTS),
}
# for launch(css=…, head=…)
CSS = _file("page.css") + _file("compare.css")
HEAD = (
    f"<script>const TOOLKIT = {json.dumps(_SETTINGS, ensure_ascii=False)};\n"
    f"{_file('page.js')}{_file('compare.js')}</script>"
)
