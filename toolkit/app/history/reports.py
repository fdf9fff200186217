"""A run's report as text and pictures. Both are untrusted: text is never rendered, pictures are decoded."""

import html
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import ToolkitError
from toolkit.evaluation.render import PLOTS, to_text
from toolkit.evaluation.report import validate
from toolkit.reading import parse_json
from toolkit.runs.integrity import read_inside

if TYPE_CHECKING:
    from PIL import Image

MAX_TEXT, MAX_PICTURE = 1 << 20, 8 << 20  # bytes
MAX_PIXELS = 16 << 20


@dataclass(frozen=True)
class ReportShown:
    """A summary for a fixed-width font, the text of report.md, and pictures with captions."""

    summary: str = ""
    text: str = ""
    pictures: "tuple[tuple[Image.Image, str], ...]" = ()

    @property
    def empty(self) -> bool:
        """Whether the run has no report."""
        return not (self.summary or self.text or self.pictures)


def read_report(folder: Path, root: Path) -> ReportShown:
    """Read report.json or reward_report.json, report.md and the pictures of a run.

    A missing part is left out; for a damaged part, the text is the reason.
    """
    # report.md escapes markup as entities; as plain text it must be unescaped
    text = html.unescape(_text(folder / "report.md", root))
    return ReportShown(_summary(folder, root), text, tuple(_pictures(folder, root)))


def _summary(folder: Path, root: Path) -> str:
    for name in ("report.json", "reward_report.json"):
        text = _text(folder / name, root)
        if not text:
            continue
        try:
            content = parse_json(text)
            if name == "reward_report.json":
                return json.dumps(content, indent=2, ensure_ascii=False)
            validate(content)
            return to_text(content)
        except (ToolkitError, ValueError, TypeError, KeyError) as error:
            return f"{name} is damaged: {str(error)[:300]}"
    return ""


def _text(file: Path, root: Path) -> str:
    """A text file's content, or why it is not shown; "" if it is missing."""
    try:
        content = read_inside(file, root, at_most=MAX_TEXT)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{file.name} is not shown: {error}"
    return content.decode("utf-8", "replace")


def _pictures(folder: Path, root: Path) -> "list[tuple[Image.Image, str]]":
    """The report's PNG files, decoded here so that only pixels reach the page."""
    from PIL import Image, ImageOps

    pictures = []
    for name, caption in PLOTS.items():
        try:
            content = read_inside(folder / name, root, at_most=MAX_PICTURE)
            picture = Image.open(io.BytesIO(content), formats=["PNG"])
            if picture.width * picture.height > MAX_PIXELS:
                continue
            margin = (0, picture.width // 11, 0, 0)  # the page writes the caption over the corner
            pictures.append(
                (ImageOps.expand(picture.convert("RGB"), margin, fill="white"), caption)
            )
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue  # missing or damaged: the text is enough
    return pictures
