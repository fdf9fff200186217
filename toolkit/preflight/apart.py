"""A prediction in a process of its own: whatever becomes of it, the run goes on."""

import math
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import TypeVar

import torch

from toolkit.errors import ConfigError

LIMIT_S = 300.0
TOKENIZERS = "TOKENIZERS_PARALLELISM"
T = TypeVar("T")


def apart(work: Callable[[], T], *, limit_s: float = LIMIT_S) -> T:
    """What `work` returns, worked out in a copy of this process, which is gone afterwards.

    Models on tensors without data are built by code that was made for others: it may leave settings
    of libraries changed, keep memory, or bring its process down. None of that reaches this one.

    Args:
        work: returns what can be pickled.
        limit_s: seconds after which it is given up.

    Raises: ConfigError where it fails, dies, takes too long, or cannot have a process: a GPU that
        is in use does not survive the copy.
    """
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise ConfigError("this process uses the GPU; recipes/check.py predicts it beforehand")
    if "fork" not in multiprocessing.get_all_start_methods():
        raise ConfigError("this system cannot copy a process")
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(work, send, limit_s), daemon=True)
    with _quiet_fork():
        child.start()
    send.close()
    try:
        if not receive.poll(limit_s):
            raise ConfigError(f"given up after {limit_s:.0f} s")
        done, found = receive.recv()
    except (EOFError, OSError) as error:
        raise ConfigError("its process died") from error
    finally:
        child.kill()
        child.join()
    if not done:
        raise ConfigError(found)
    result: T = found
    return result


def _work(work: Callable[[], object], send: Connection, limit_s: float) -> None:
    if hasattr(signal, "SIGALRM"):  # it ends also where nobody is left to end it
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(math.ceil(limit_s) + 1)
    torch.set_num_threads(1)  # the threads of the original are not here
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    try:
        send.send((True, work()))
    except BaseException as error:  # told to who asked
        send.send((False, f"{type(error).__name__}: {' '.join(str(error).split())}"))
    send.close()
    os._exit(0)  # nothing of the original's shall be put away twice


@contextmanager
def _quiet_fork() -> Iterator[None]:
    """No warnings that a process with threads is copied: the copy uses none of them."""
    before = os.environ.get(TOKENIZERS)
    os.environ.setdefault(TOKENIZERS, "false")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        if before is None:
            del os.environ[TOKENIZERS]
