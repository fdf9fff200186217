"""Answers as HTML: white space stays, and no Markdown or HTML of a model loads, links or runs."""

import html
import re
import time

import pytest

from toolkit.app.web.answer_html import markdown_html, plain_html

ATTACKS = (
    "<img src=x onerror=alert(1)>",
    "![a](http://attacker.invalid/a.png)",
    "![a][r]\n\n[r]: http://attacker.invalid/a.png",
    "[click](javascript:alert(1))",
    "[click](http://attacker.invalid)",
    "<http://attacker.invalid>",
    "http://attacker.invalid",
    '```html onload=alert(1)"><img src=x>\n<script>alert(1)</script>\n```',
    "`<svg onload=alert(1)>`",
    "<details open ontoggle=alert(1)>",
    "| <b>a</b> |\n|--|\n| ![](http://attacker.invalid) |",
    "&lt;script&gt;",
    "$$\\href{javascript:alert(1)}{x}$$",
)


@pytest.mark.parametrize("text", ATTACKS)
def test_markdown_has_only_harmless_tags(text: str) -> None:
    tags = re.findall(r"<[^>]*>", markdown_html(text))
    harmless = r'</?(div|p|pre|code|table|thead|tbody|tr|th|td|br)( class="[\w-]+")? ?/?>'
    assert [tag for tag in tags if not re.fullmatch(harmless, tag)] == []


def test_links_and_images_stay_text() -> None:
    text = "![a](http://x/a.png) [b](http://y)\n\n[r]: http://z"
    shown = html.unescape(re.sub(r"<[^>]*>", "", markdown_html(text)))
    assert shown.split() == text.split()


def test_code_blocks_keep_their_indentation() -> None:
    rendered = markdown_html("Look:\n\n```python\ndef f(x):\n    return x < 1\n```\n\n- a\n- b")
    assert '<pre><code class="language-python">def f(x):\n    return x &lt; 1\n</code>' in rendered
    assert "<li>a</li>" in rendered


def test_plain_text_is_unchanged() -> None:
    for text in (*ATTACKS, "def f():\n    return 1\n\tx  y"):
        assert html.unescape(plain_html(text)) == text
        assert "<" not in plain_html(text)


def test_markdown_too_large_to_lay_out_stays_plain_text() -> None:
    table = "|a" * 300 + "|\n" + "|-" * 300 + "|\n" + "x\n" * 100
    assert markdown_html(table) == table
    assert "<td>x</td>" in markdown_html("|a|b|\n|-|-|\n|x|y|")


@pytest.mark.parametrize("text", ["[" * 8000, ">" * 8000, "*a_" * 3000, "`" * 8000, "- " * 4000])
def test_deep_markdown_takes_no_time(text: str) -> None:
    start = time.process_time()
    markdown_html(text)
    assert time.process_time() - start < 2
