"""An answer as HTML for a Chatbot: plain text, or Markdown without links, images and HTML."""

import html

from markdown_it import MarkdownIt

from toolkit.app.web.markdown_size import is_light

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
