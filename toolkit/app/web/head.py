"""The page's own scripts: keys, dragging, bubbles and tooltips."""

from toolkit.app.web.bubbles import BUBBLES_JS
from toolkit.app.web.dragging import DRAGGING_JS
from toolkit.app.web.hints import HINTS_JS
from toolkit.app.web.shortcuts import SHORTCUTS_JS

# for launch(head=…); Gradio's `js=` compiles strings, which the page's CSP forbids
SCRIPTS = (SHORTCUTS_JS, DRAGGING_JS, BUBBLES_JS, HINTS_JS)
HEAD = "".join(f"<script>{script}</script>" for script in SCRIPTS)
