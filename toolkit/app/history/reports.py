"""A run's report as safe Markdown. All of it is untrusted: text cannot link, pictures are decoded."""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path

from toolkit.app.web.answer_html import is_light
from toolkit.errors import ToolkitError
from toolkit.evaluation.render import PLOTS, to_text
from toolkit.evaluation.report import validate
from toolkit.reading import parse_json
from toolkit.runs.integrity import read_inside

MAX_TEXT, MAX_PICTURE = 1 << 20, 8 << 20  # bytes
MAX_PIXELS = 16 << 20
MAX_LINE = 1000  # characters
PLAIN = (
    "report.md is shown as plain text: its tables, lists or paragraphs are too large to lay out."
)
# The first characters of a tag, an image or a link, and entities that show them as text.
# `<br>` stays a line break, which the cells of a table need.
INERT = {"![": "!&#91;", "](": "]&#40;", "]:": "]&#58;", "][": "]&#91;", "://": "&#58;//"} | {
    "<": "&lt;",
    "&lt;br>": "<br>",
    "www.": "www&#46;",
    "@": "&#64;",
    "mermaid": "mermai&#100;",  # a code block of this language would be drawn as a diagram
}


@dataclass(frozen=True)
class ReportShown:
    """`markdown` with its pictures, and a `summary`: plain text that `markdown` does not contain."""

    markdown: str = ""
    summary: str = ""

    @property
    def empty(self) -> bool:
        """Whether the run has no report."""
        return not (self.summary or self.markdown)


def read_report(folder: Path, root: Path) -> ReportShown:
    """Read report.md and the pictures of a run, and report.json or reward_report.json.

    A missing part is left out; a damaged part is replaced by the reason.
    """
    text = _text(folder / "report.md", root)
    pictures = {f"![{caption}]({name})": name for name, caption in PLOTS.items()}
    light = is_light(text)
    lines = text.split("\n") if light else []
    lines += [image for image in pictures if image not in lines]
    shown = [_picture(folder, root, pictures[x]) if x in pictures else inert(x) for x in lines]
    summary, damaged = _summary(folder, root)
    if not light:
        summary = f"{PLAIN}\n\n{text}"
    elif text and not damaged:
        summary = ""
    return ReportShown("\n".join(shown).strip(), _folded(summary))


def inert(line: str) -> str:
    """A line of Markdown in which nothing is a tag, an image or a link."""
    for start, entity in INERT.items():
        line = line.replace(start, entity)
    return line


def _folded(text: str) -> str:
    """Text without very long lines: one line of a megabyte stops a browser."""
    starts = ((line, range(0, max(1, len(line)), MAX_LINE)) for line in text.split("\n"))
    return "\n".join(line[i : i + MAX_LINE] for line, places in starts for i in places)


def _summary(folder: Path, root: Path) -> tuple[str, bool]:
    """The text of a JSON report, and whether it must be shown beside report.md."""
    for name in ("report.json", "reward_report.json"):
        text = _text(folder / name, root)
        if not text:
            continue
        try:
            content = parse_json(text)
            if name == "reward_report.json":
                return json.dumps(content, indent=2, ensure_ascii=False), True
            validate(content)
            return to_text(content), False
        except (ToolkitError, ValueError, TypeError, KeyError) as error:
            return f"{name} is damaged: {str(error)[:300]}", True
    return "", False


def _text(file: Path, root: Path) -> str:
    """A text file's content, or why it is not shown; "" if it is missing."""
    try:
        content = read_inside(file, root, at_most=MAX_TEXT)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{file.name} is not shown: {error}"
    return content.decode("utf-8", "replace")


def _picture(folder: Path, root: Path, name: str) -> str:
    """A PNG file as Markdown with its caption; it is decoded, so that only pixels reach the page."""
    from PIL import Image

    try:
        content = read_inside(folder / name, root, at_most=MAX_PICTURE)
        picture: Image.Image = Image.open(io.BytesIO(content), formats=["PNG"])
        if picture.width * picture.height > MAX_PIXELS:
            return ""
        pixels = io.BytesIO()
        picture.convert("RGB").save(pixels, "PNG")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""  # missing or damaged: the text is enough
    encoded = base64.b64encode(pixels.getvalue()).decode()
    return f"\n![{PLOTS[name]}](data:image/png;base64,{encoded})\n"
