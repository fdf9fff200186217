"""Make standard output harmless: it stops no run, and text from files cannot control the terminal."""

import io
import os
import re
import sys
from typing import Any

# C0 and C1 control characters except \t, \n and \r; sequences for colours stay, for libraries
CONTROL = re.compile(r"\x1b(?!\[[0-9;]*m)|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]")
UP = re.compile(r"(\x1b\[A)+")  # tqdm moves to the bar above


def keep_going() -> None:
    """Let a command finish even if its output cannot be written; that output is then lost.

    Without this, `toolkit sft | head` would stop training when `head` closes the pipe. A character
    that the encoding lacks, such as `…` in ASCII, and a control character are written as escapes. A stream
    that is closed at the start becomes the null device: otherwise the next opened file gets its number, and
    its messages.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for name, original in (("stdout", sys.__stdout__), ("stderr", sys.__stderr__)):
        stream = getattr(sys, name)
        if stream is not original or not isinstance(stream, io.TextIOWrapper):
            continue  # replaced in tests and notebooks
        stream.flush()
        setattr(sys, name, _lossy(stream))


def _lossy(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    return _PlainText(
        io.BufferedWriter(_LossyFile(stream.fileno(), "wb", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
    )


class _PlainText(io.TextIOWrapper):
    """A text stream that escapes control characters."""

    def write(self, text: str, /) -> int:
        if not UP.fullmatch(text):
            text = CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
        return super().write(text)


class _LossyFile(io.FileIO):
    """A file that ignores failed writes (closed pipe or terminal, full disk)."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)
