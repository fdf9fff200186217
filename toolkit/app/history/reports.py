"""A run's report as text and pictures; both come from the disk and are trusted with nothing."""

import html
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import ToolkitError
from toolkit.evaluation.render import PLOTS, to_text
from toolkit.evaluation.report import validate
from toolkit.runs.integrity import read_inside

if TYPE_CHECKING:
    from PIL import Image

MOST_TEXT, MOST_PICTURE = 1 << 20, 8 << 20  # bytes
MOST_PIXELS = 16 << 20


@dataclass(frozen=True)
class ReportShown:
    """A summary for a fixed-width font, the whole report's text, and pictures with captions."""

    summary: str = ""
    text: str = ""
    pictures: "tuple[tuple[Image.Image, str], ...]" = ()

    @property
    def empty(self) -> bool:
        """Whether the run has no report."""
        return not (self.summary or self.text or self.pictures)


def read_report(folder: Path, root: Path) -> ReportShown:
    """What a run's folder has of report.json, reward_report.json, report.md and their pictures.

    A part that is missing is left out; one that is damaged is said to be.
    """
    # in report.md what could be markup stands as entities; shown as text they are what they mean
    text = html.unescape(_text(folder / "report.md", root))
    return ReportShown(_summary(folder, root), text, tuple(_pictures(folder, root)))


def _summary(folder: Path, root: Path) -> str:
    for name in ("report.json", "reward_report.json"):
        text = _text(folder / name, root)
        if not text:
            continue
        try:
            content = json.loads(text)
            if name == "reward_report.json":
                return json.dumps(content, indent=2, ensure_ascii=False)
            validate(content)
            return to_text(content)
        except (ToolkitError, ValueError, RecursionError, TypeError, KeyError) as error:
            return f"{name} is damaged: {str(error)[:300]}"
    return ""


def _text(file: Path, root: Path) -> str:
    """A text file's content, or why it is not shown; nothing where there is none."""
    try:
        content = read_inside(file, root, at_most=MOST_TEXT)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{file.name} is not shown: {error}"
    return content.decode("utf-8", "replace")


def _pictures(folder: Path, root: Path) -> "list[tuple[Image.Image, str]]":
    """The PNG files that a report draws, decoded here so that nothing else can be in them."""
    from PIL import Image, ImageOps

    found = []
    for name, caption in PLOTS.items():
        try:
            content = read_inside(folder / name, root, at_most=MOST_PICTURE)
            picture = Image.open(io.BytesIO(content), formats=["PNG"])
            if picture.width * picture.height > MOST_PIXELS:
                continue
            above = (0, picture.width // 11, 0, 0)  # the page writes the caption over the corner
            found.append((ImageOps.expand(picture.convert("RGB"), above, fill="white"), caption))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue  # missing or damaged: the report's text is what counts
    return found
