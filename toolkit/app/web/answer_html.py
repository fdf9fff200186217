"""An answer as HTML for a Chatbot: plain text, or Markdown without links, images and HTML."""

import html
import re

from markdown_it import MarkdownIt

# A few kilobytes of Markdown can make a browser work for minutes.
MAX_CHARACTERS, MAX_LINE = 1 << 18, 20_000
MAX_NODES = 10_000  # lines, cells of tables, items of lists, emphasis
MAX_DEPTH = 20  # of lists and quotes
MAX_MARKERS = 400  # of one block: emphasis takes time with the square of their number

_MARKER = re.compile(r"[*_~`\[\]$]")
_START = re.compile(r"(?:[ \t]|>|[-*+](?=[ \t])|\d{1,9}[.)](?=[ \t]))*")  # indents and nests a line
# HTML, images and links stay plain text, because they could load or open something.
_MARKDOWN = MarkdownIt("js-default", {"html": False, "linkify": False, "breaks": True}).disable(
    ["image", "link", "autolink", "reference"]
)


def plain_html(text: str) -> str:
    """Text that HTML shows unchanged; the style of the page keeps its white space."""
    return html.escape(text, quote=False)


def markdown_html(text: str) -> str:
    """Markdown as HTML with code blocks, lists and tables; it has no links or scripts and loads nothing.

    Markdown that is too large to lay out stays plain text.
    """
    if not is_light(text):
        return plain_html(text)
    return f'<div class="markdown">{_MARKDOWN.render(text).strip()}</div>'


def numbers_html(line: str, details: str) -> str:
    """A line of numbers; a click on it shows the details."""
    summary = f"<summary>{plain_html(line)}</summary>"
    return f'<details class="numbers">{summary}{plain_html(details)}</details>'


def is_light(text: str) -> bool:
    """Whether a parser and a page handle this Markdown in a moment.

    A parser fills up each row of a table to the width of its first row, and closes each list that a line
    opens. So a block counts as its number of lines times the widest and the deepest of them.
    """
    if len(text) > MAX_CHARACTERS:
        return False
    nodes = 0
    for block in re.split(r"\n[ \t]*(?=\n)", text.replace("\r", "\n")):
        lines = block.expandtabs(4).split("\n")
        columns = max(line.count("|") for line in lines)
        depth = max(len(_START.match(line)[0]) for line in lines) // 2  # type: ignore[index]
        markers = len(_MARKER.findall(block))
        nodes += len(lines) * (1 + columns + depth) + markers
        longest = max(map(len, lines))
        if depth > MAX_DEPTH or markers > MAX_MARKERS or longest > MAX_LINE:
            return False
    return nodes <= MAX_NODES
