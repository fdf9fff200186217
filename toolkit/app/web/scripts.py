"""The page's script, `page.js`, with its settings: element ids, keyboard shortcuts and tooltips."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

# elem_ids on the tabs Compare and Rank; QUESTION is a class of buttons
PROMPT, QUESTION = "compare-prompt", "question"
BOARD, ORDER, ANSWER, PLACE_BUTTON = "rank-board", "rank-order", "rank-answer-", "rank-place-"

# key -> elem_id of the button that it clicks
ARENA_KEYS: Mapping[str, str] = {
    "1": "arena-a",
    "2": "arena-b",
    "t": "arena-tie",
    "b": "arena-both-bad",
    "s": "arena-skip",
    "Control+Enter": "arena-start",
    "Escape": "arena-stop",
}
RANK_KEYS: Mapping[str, str] = {str(n): f"{PLACE_BUTTON}{n}" for n in range(1, 10)} | {
    "t": "rank-tie",
    "Control+Enter": "rank-save",
    "Escape": "rank-clear",
}

# Tooltips by the `hint_key` of a button or tab: Gradio itself explains only fields.
HINTS: Mapping[str, str] = {
    # tabs
    "Compare": "Ask several checkpoints the same question and read the answers side by side.",
    "What changed": "One answer token by token: what training made more or less likely.",
    "Arena": "Two answers without names: choose the better one.",
    "Rank": "Put several answers without names in order.",
    "Leaderboard": "Which checkpoints people prefer, from all judgements.",
    "Runs": "Every training run: its state, curves, settings and report.",
    "Data": "Turn the judgements into files that the recipes train on.",
    # Compare
    "Ask": "Start a new conversation with this prompt.",
    "Follow up": "Continue the conversation: each checkpoint sees its own earlier answers.",
    "Stop all": "Stop all answers and keep the text so far.",
    "Stop this one": "Stop this checkpoint's answer; the others continue.",
    "Regenerate": "Answer the last prompt again, with the next seed.",
    "Edit last": "Put the last prompt back into the box and remove its answers.",
    "Clear": "Delete the conversation and empty the page.",
    "Reload runs": "Scan the runs folder again for new runs.",
    "Sampling": "Show or hide the sampling settings.",
    "What the numbers mean": "Show or hide the explanation of the numbers.",
    "Runs that cannot be used": "Show or hide the broken runs, each with the reason.",
    # What changed
    "Analyze": "Compute the numbers of this answer with the checkpoint and its reference.",
    "Difference between two checkpoints' answers": "Show or hide the comparison of two answers.",
    "only in this answer": "Words that the other answer does not contain.",
    "only in the other answer": "Words that this answer does not contain.",
    # Arena
    "Draw a prompt": "Put a random prompt from the list into the box.",
    "Start a battle": "Let two checkpoints answer; their names appear after the verdict.",
    "Stop": "Cancel the answers in progress.",
    "A is better": "Store that the left answer is better, and show the names.",
    "B is better": "Store that the right answer is better, and show the names.",
    "Tie": "Store that both answers are equally good.",
    "Both bad": "Store that both answers are bad.",
    "Skip": "Give no verdict on these two answers.",
    # Rank
    "Get answers": "Let the checkpoints answer; their names appear after the order is saved.",
    "Next best is": "Place this answer after those already in the order.",
    "Quality and flags": "Show or hide a grade and flags for this answer.",
    "The next one ties": "The next answer shares the place of the last one.",
    "Clear the order": "Remove all answers from the order.",
    "Save the order": "Store the order, and show the names.",
    # Leaderboard, Runs and Data
    "Update ratings": "Compute the ratings again, including new judgements.",
    "How ratings are computed": "Show or hide how ratings and intervals are computed.",
    "Settings of these runs": "Show or hide the settings of the runs chosen above.",
    "Export": "Write the judgements to files and offer them for download.",
    "What the files contain": "Show or hide the description of each file.",
}


def hint_key(label: str) -> str:
    """A label without numbers, brackets and arrows: its key in `HINTS`."""
    return " ".join(re.sub(r"\([^)]*\)|[0-9]+|[▼▲◀]", "", label).split())


_SETTINGS = {
    "prompt": PROMPT,
    "question": QUESTION,
    "questionHint": "Put this question into the box.",
    "board": BOARD,
    "order": ORDER,
    "answer": ANSWER,
    "placeButton": PLACE_BUTTON,
    "keys": [dict(ARENA_KEYS), dict(RANK_KEYS)],
    "hints": dict(HINTS),
}
_SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
# for launch(head=…)
HEAD = f"<script>const TOOLKIT = {json.dumps(_SETTINGS, ensure_ascii=False)};\n{_SCRIPT}</script>"
