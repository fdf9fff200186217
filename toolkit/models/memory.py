"""Giving freed memory back between phases that need it in different pieces."""

import ctypes
import sys

import torch


def release() -> None:
    """Return what the C allocator holds of freed memory to the system; a few milliseconds.

    A rollout's caches and an update's activations have different sizes, so glibc keeps the one's
    memory while it asks for the other's. On a GPU the caching allocator reuses it, and elsewhere
    than on glibc nothing is done.
    """
    if sys.platform == "linux" and not torch.cuda.is_available():
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
