"""Make standard output harmless: a closed pipe, a missing character or a full disk stops no run."""

import io
import sys
from typing import Any


def keep_going() -> None:
    """Let a command finish even if its output cannot be written; that output is then lost.

    Without this, `toolkit sft | head` would stop training when `head` closes the pipe. A character
    that the encoding lacks, such as `…` in ASCII, is written as an escape.
    """
    for name, original in (("stdout", sys.__stdout__), ("stderr", sys.__stderr__)):
        stream = getattr(sys, name)
        if stream is not original or not isinstance(stream, io.TextIOWrapper):
            continue  # None without a console; replaced in tests and notebooks
        stream.flush()
        setattr(sys, name, _lossy(stream))


def _lossy(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(_LossyFile(stream.fileno(), "wb", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
    )


class _LossyFile(io.FileIO):
    """A file that ignores failed writes (closed pipe or terminal, full disk)."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)
