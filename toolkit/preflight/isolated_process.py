"""A prediction in a process of its own: whatever becomes of it, the run goes on."""

import math
import multiprocessing
import os
import pickle
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from toolkit.errors import ConfigError

LIMIT_S = 300.0
IMPORTS_S = 60.0  # that a fresh process may take to import the libraries
TOKENIZERS = "TOKENIZERS_PARALLELISM"
T = TypeVar("T")


def apart(work: Callable[[], T], *, limit_s: float = LIMIT_S, fresh: bool | None = None) -> T:
    """What `work` returns, worked out in a process of its own, which is gone afterwards.

    Models on tensors without data are built by code that was made for others: it may leave settings
    of libraries changed, keep memory, or bring its process down. None of that reaches this one.

    Args:
        work: returns what can be pickled; pickled itself, for a fresh process.
        limit_s: seconds after which it is given up; a fresh process has `IMPORTS_S` more.
        fresh: a new process that sees no GPU, instead of a copy of this one, which is there at
            once. Default: where it must be, because this one uses a GPU, which does not survive a
            copy, or the system has no copies.

    Raises: ConfigError where it fails, dies, takes too long, or cannot be handed over.
    """
    if fresh is None:
        copies = "fork" in multiprocessing.get_all_start_methods()
        fresh = not copies or torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    context: Any = multiprocessing.get_context("spawn" if fresh else "fork")
    limit_s += IMPORTS_S if fresh else 0.0
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(work, send, limit_s), daemon=True)
    try:
        with _environment({TOKENIZERS: "false"} | ({"CUDA_VISIBLE_DEVICES": ""} if fresh else {})):
            child.start()
    except (pickle.PicklingError, AttributeError, TypeError, OSError) as error:
        raise ConfigError(f"its process does not start ({' '.join(str(error).split())})") from error
    send.close()
    try:
        if not receive.poll(limit_s):
            raise ConfigError(f"given up after {limit_s:.0f} s")
        done, found = receive.recv()
    except (EOFError, OSError) as error:
        raise ConfigError("its process died") from error
    except (pickle.UnpicklingError, AttributeError, ImportError) as error:
        raise ConfigError(f"its answer cannot be read ({error})") from error
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
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    """The environment that a child starts with, and no warnings that a process with threads is
    copied: the copy uses none of them.
    """
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
