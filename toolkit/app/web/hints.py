"""What each button, tab and section is for, as its tooltip: Gradio has explanations for fields only.

A hint belongs to the words on the control, without numbers and what stands in brackets.
"""

import json
import re
from collections.abc import Mapping

from toolkit.app.web.bubbles import QUESTION

HINTS: Mapping[str, str] = {
    # tabs
    "Compare": "Ask several checkpoints the same thing and read their answers side by side.",
    "What changed": "One answer token by token: what training made likelier or less likely.",
    "Arena": "Two answers without names: say which is better.",
    "Rank": "Put several answers without names in order.",
    "Leaderboard": "Which checkpoints people prefer, from all judgements.",
    "Runs": "Every training run: its state, curves, settings and report.",
    "Data": "Turn the judgements into files that the recipes train on.",
    # Compare
    "Ask": "Begin a new conversation with this prompt.",
    "Follow up": "Go on with the conversation: each checkpoint sees its own earlier answers.",
    "Stop all": "End all answers where they are; what was said stays.",
    "Stop this one": "End this checkpoint's answer where it is; the others go on.",
    "Regenerate": "Answer the last prompt again, with the next seed.",
    "Edit last": "Take the last prompt back into the box and its answers off the page.",
    "Clear": "Forget the conversation and empty the page.",
    "Reload runs": "Read the runs folder again to find new runs.",
    "Sampling": "Open or close the settings that decide how answers are drawn.",
    "What the numbers mean": "Open or close the explanation of the numbers.",
    "Runs that cannot be used": "Open or close the list of broken runs, each with the reason.",
    # What changed
    "Analyze": "Compute this answer's log-probabilities with the checkpoint and its reference.",
    "Difference between two checkpoints' answers": "Open or close the comparison of two texts.",
    "only in this answer": "Words that the other answer does not contain.",
    "only in the other answer": "Words that this answer does not contain.",
    # Arena
    "Draw a prompt": "Put one of the prepared prompts into the box.",
    "Start a battle": "Have two checkpoints answer; which ones is told after the verdict.",
    "Stop": "Give up the answers that are being made.",
    "A is better": "Store that the left answer is better, and tell who gave it.",
    "B is better": "Store that the right answer is better, and tell who gave it.",
    "Tie": "Store that both answers are equally good.",
    "Both bad": "Store that neither answer is any good.",
    "Skip": "Give no verdict on these two answers.",
    # Rank
    "Get answers": "Have the checkpoints answer; who gave which is told at the end.",
    "Next best is": "Put this answer behind those that are in the order already.",
    "Quality and flags": "Open or close a grade and flags for this answer.",
    "The next one ties": "The answer placed next shares the place of the last one.",
    "Clear the order": "Take all answers out of the order.",
    "Save the order": "Store the order, and tell who gave which answer.",
    # Leaderboard, Runs and Data
    "Update ratings": "Compute the ratings again, including new judgements.",
    "How ratings are computed": "Open or close the explanation of ratings and intervals.",
    "Settings of these runs": "Open or close the settings of the runs chosen above.",
    "Export": "Write the judgements to files and offer them for download.",
    "What the files contain": "Open or close the description of each file.",
}


QUESTION_HINT = "Put this question into the box."


def key(words: str) -> str:
    """What a hint is found by: words without numbers and brackets."""
    return " ".join(re.sub(r"\([^)]*\)|[0-9]+|[▼▲◀]", "", words).split())


_SCRIPT = """
(() => {
  const hints = %s;
  const key = (words) => words.replace(/\\([^)]*\\)|[0-9]+|[▼▲◀]/g, "").replace(/\\s+/g, " ").trim();
  const give = () => {
    for (const button of document.querySelectorAll("button:not([title])")) {
      const question = button.classList.contains("%s");
      const hint = question ? "%s" : hints[key(button.textContent)];
      if (hint) button.title = hint;
    }
  };
  let waiting = false;
  const later = () => {
    if (waiting) return;
    waiting = true;
    setTimeout(() => { waiting = false; give(); }, 200);
  };
  new MutationObserver(later).observe(document, { childList: true, subtree: true });
})();
"""

HINTS_JS = _SCRIPT % (json.dumps(dict(HINTS), ensure_ascii=False), QUESTION, QUESTION_HINT)
