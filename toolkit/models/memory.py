"""Giving freed memory back between phases that need it in different pieces."""

import ctypes
import sys

import torch


def release() -> None:
    """Return what an allocator holds of freed memory to the system; a few milliseconds.

    A rollout's caches and an update's activations have different sizes, so glibc, and on a card
    PyTorch's allocator, keep the one's memory in pieces that do not fit while they ask for the
    other's. Elsewhere nothing is done.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
