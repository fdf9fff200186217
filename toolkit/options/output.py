"""Standard output that neither its reader, its encoding nor a full disk can turn into a failed run."""

import io
import sys
from typing import Any


def keep_going() -> None:
    """Let a command finish when its output cannot be written; what cannot be written is lost.

    Without it `toolkit sft | head` would end the training at the first line that `head` does not
    read. A character that the encoding lacks, such as `…` in ASCII, is written as an escape.
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
    """A file that drops what the system refuses: a closed pipe or terminal, a full disk."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)
