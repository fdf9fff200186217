"""Signals that stop a run or a pipeline: Ctrl-C, SIGTERM, and SIGHUP of a closed terminal."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, TextIO

from toolkit.errors import Interrupted

PARENT = "TOOLKIT_PARENT"  # process id of the pipeline that started this command
PARENT_CHECK_S = 1.0
Receiver = Callable[[int, FrameType | None], None]


def receive_signals(receive: Receiver) -> dict[int, Any]:
    """Call `receive` on each stop signal; return the earlier handlers for `restore_handlers`.

    Outside the main thread, Python cannot handle signals, so the call does nothing there. SIGHUP stays
    ignored under `nohup`.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # missing on Windows
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        numbers.append(hangup)
    return {number: signal.signal(number, receive) for number in numbers}


def restore_handlers(handlers: Mapping[int, Any]) -> None:
    """Undo `receive_signals`."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


def raise_interrupt(number: int, frame: FrameType | None) -> None:
    """A handler that raises KeyboardInterrupt with the signal's number for every stop signal."""
    raise KeyboardInterrupt(number)


def signal_of(error: KeyboardInterrupt) -> signal.Signals:
    """The signal that caused a KeyboardInterrupt."""
    return signal.Signals(error.args[0]) if error.args else signal.SIGINT


def run_child(words: Sequence[str], output: TextIO, variables: dict[str, str]) -> tuple[int, int]:
    """Run a command with additional environment variables, and pass stop signals on to it.

    The command is in its own process group, so that it receives each signal once: Ctrl-C in a terminal
    reaches a whole group. The third signal kills the command. If this process is killed, the command
    receives SIGTERM; see `stop_with_parent`.

    Returns: the command's exit code and its peak memory in MB.
    Raises: Interrupted if a signal arrived and the command ended early.
    """
    received: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        forward()

    def forward() -> None:
        if process is not None:
            number = received[-1] if len(received) < 3 else signal.SIGKILL
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(process.pid, number)

    handlers = receive_signals(receive)
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {PARENT: str(os.getpid())} | variables,
            process_group=0,
        )
        if received:  # while the process was being started
            forward()
        _, status, usage = os.wait4(process.pid, 0)
        code = process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        restore_handlers(handlers)
    if received and code != 0:
        name = signal.Signals(received[0]).name
        raise Interrupted(
            f"{name}: the stage was stopped (exit code {code}); run the same command again to continue",
            received[0],
        )
    return code, usage.ru_maxrss // 1024


def stop_with_parent() -> None:
    """If a pipeline started this command, send SIGTERM to this process when the pipeline ends.

    A killed pipeline cannot stop its stage, which would otherwise continue to train.
    """
    parent = os.environ.pop(PARENT, "")  # not for the processes that this one starts
    if not parent.isdigit():
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(PARENT_CHECK_S)
        print("the pipeline has ended, so this stage stops, too", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
