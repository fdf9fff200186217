"""Runs a function in its own process, so that a crash does not stop the caller."""

import math
import multiprocessing
import os
import pickle
import signal
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar
from unittest.mock import patch

import torch

from toolkit.errors import ConfigError

LIMIT_S = 300.0
IMPORTS_S = 60.0  # a fresh process may need for its imports
T = TypeVar("T")


def run_isolated(
    work: Callable[[], T], *, limit_s: float = LIMIT_S, fresh: bool | None = None
) -> T:
    """The result of `work`, computed in another process.

    Code that builds models on fake tensors may change settings of libraries, keep memory, or crash the
    process. In its own process, it cannot affect the caller.

    Args:
        work: returns a value that can be pickled; a fresh process also requires that `work` can be pickled.
        limit_s: seconds after which the process is killed; a fresh process gets `IMPORTS_S` more.
        fresh: start a new process without a GPU instead of a fork, which would be faster. Default: fork,
            unless this process uses a GPU (a forked process cannot) or the system has no fork.

    Raises: ConfigError if `work` raises an error, the process crashes or takes too long, or `work` or its
        result cannot be pickled.
    """
    if fresh is None:
        can_fork = "fork" in multiprocessing.get_all_start_methods()
        fresh = not can_fork or torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    context: Any = multiprocessing.get_context("spawn" if fresh else "fork")
    limit_s += IMPORTS_S if fresh else 0.0
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(work, send, limit_s), daemon=True)
    variables = {"TOKENIZERS_PARALLELISM": "false"}
    variables |= {"CUDA_VISIBLE_DEVICES": ""} if fresh else {}
    try:
        with patch.dict(os.environ, variables), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a fork of a process with threads
            child.start()
    except (pickle.PicklingError, AttributeError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"the process could not be started ({reason})") from error
    send.close()
    try:
        if not receive.poll(limit_s):
            raise ConfigError(f"given up after {limit_s:.0f} s")
        succeeded, result = receive.recv()
    except (EOFError, OSError) as error:
        raise ConfigError("the process crashed") from error
    except (pickle.UnpicklingError, AttributeError, ImportError) as error:
        raise ConfigError(f"the result cannot be read ({error})") from error
    finally:
        child.kill()
        child.join()
    if not succeeded:
        raise ConfigError(result)
    value: T = result
    return value


def _work(work: Callable[[], object], send: Connection, limit_s: float) -> None:
    if hasattr(signal, "SIGALRM"):  # ends also if the parent process is gone
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(math.ceil(limit_s) + 1)
    torch.set_num_threads(1)  # a fork has no other threads
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    devnull = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(devnull, stream)
    try:
        send.send((True, work()))
    except BaseException as error:  # the parent process raises it
        send.send((False, f"{type(error).__name__}: {' '.join(str(error).split())}"))
    send.close()
    os._exit(0)  # no exit handlers: they belong to the parent process
