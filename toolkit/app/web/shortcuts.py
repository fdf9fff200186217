"""Keys for the tabs Arena and Rank, and the buttons that make an order, as one script for the page.

A key presses the button that carries it, so that nothing can be done by key alone. Keys are ignored
while somebody types, with Ctrl, Alt or Meta held (but for Ctrl+Enter), and where the tab is not open.
The order of a ranking is a text such as "3 > 1 = 2"; its buttons add to it without asking the
server. Gradio's own way to do so, `js=`, compiles a string, which the page's CSP forbids.
"""

import json
from collections.abc import Mapping

# key -> elem_id of the buttons that it presses; the one that can be seen and pressed is meant
ARENA_KEYS: Mapping[str, str] = {
    "1": "arena-a",
    "2": "arena-b",
    "t": "arena-tie",
    "b": "arena-both-bad",
    "s": "arena-skip",
    "Control+Enter": "arena-start",
    "Escape": "arena-stop",
}
RANK_KEYS: Mapping[str, str] = {str(n): f"rank-place-{n}" for n in range(1, 10)} | {
    "t": "rank-tie",
    "Control+Enter": "rank-save",
    "Escape": "rank-clear",
}

_SCRIPT = """
(() => {
  const tabs = %s;
  const seen = (element) => element && element.getClientRects().length > 0;
  const typing = (element) =>
    element &&
    (element.isContentEditable ||
      element.tagName === "TEXTAREA" ||
      element.tagName === "SELECT" ||
      (element.tagName === "INPUT" && !["checkbox", "radio", "range"].includes(element.type)));
  const ordered = (said, id) => {
    const place = /^rank-place-([1-9])$/.exec(id);
    if (id === "rank-clear") return "";
    if (id === "rank-tie") return /[0-9]$/.test(said) ? said + " =" : said;
    if (!place || said.split(/[>=]/).some((word) => word.trim() === place[1])) return said;
    return !said ? place[1] : said + (/[>=]$/.test(said) ? " " : " > ") + place[1];
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[id^='rank-']");
    const field = document.querySelector("#rank-order textarea, #rank-order input");
    if (!button || !field) return;
    const said = field.value.trim(), then = ordered(said, button.id);
    if (then !== said) {
      field.value = then;
      field.dispatchEvent(new Event("input", { bubbles: true }));
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.repeat || event.isComposing) return;
    if (event.altKey || event.metaKey || typing(event.target)) return;
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const key = event.ctrlKey ? "Control+" + name : name;
    for (const keys of tabs) {
      const id = Object.hasOwn(keys, key) ? keys[key] : null;
      const button = id && document.getElementById(id);
      if (seen(button) && !button.disabled) {
        event.preventDefault();
        button.click();
        return;
      }
    }
  });
})();
"""

SHORTCUTS_JS = _SCRIPT % json.dumps([dict(ARENA_KEYS), dict(RANK_KEYS)])
