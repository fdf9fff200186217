"""Signals that stop a run or a pipeline: Ctrl-C, SIGTERM, and SIGHUP of a closed terminal."""

import contextlib
import math
import multiprocessing.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, TextIO

from toolkit.errors import Interrupted, ToolkitError

PARENT = "TOOLKIT_PARENT"  # process id of the pipeline that started this command
PARENT_CHECK_S = 1.0
REPEAT_S = 1.0  # systemd and a pipeline both signal a stage; this is not the user's second signal
Receiver = Callable[[int, FrameType | None], None]


def receive_signals(receive: Receiver) -> dict[int, Any]:
    """Call `receive` on each stop signal; return the earlier handlers for `restore_handlers`.

    A repetition of a signal within `REPEAT_S` is ignored. Processes forked by multiprocessing ignore
    the signals; see `ignore_signals`. Outside the main thread, Python cannot handle signals, so the
    call does nothing there. SIGHUP stays ignored under `nohup`.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    received: dict[int, float] = {}
    process = os.getpid()

    def receive_once(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a fork, before `ignore_signals`
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if now - received.get(number, -math.inf) > REPEAT_S:
            received[number] = now
            receive(number, frame)

    def after_fork(handler: Receiver) -> None:
        if signal.getsignal(signal.SIGTERM) is handler:
            ignore_signals()

    # the entries disappear with `receive_once`; `datasets` uses the library multiprocess
    for util in (multiprocessing.util, sys.modules.get("multiprocess.util")):
        if util is not None:
            util.register_after_fork(receive_once, after_fork)
    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # missing on Windows
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        numbers.append(hangup)
    return {number: signal.signal(number, receive_once) for number in numbers}


def ignore_signals() -> None:
    """Let a child process ignore stop signals, so that its parent can finish a step and then end it.

    A terminal, systemd or Slurm sends a signal to all processes. SIGTERM from the parent still ends the
    child, because this is how multiprocessing and DataLoader end their processes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS, Windows: the sender is unknown
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    elif signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}):
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    """End this process at a SIGTERM from the parent, or from any process if the parent has ended."""
    while True:
        sender = signal.sigwaitinfo({signal.SIGTERM}).si_pid
        if sender == parent or os.getppid() != parent:
            os._exit(0)


def restore_handlers(handlers: Mapping[int, Any]) -> None:
    """Undo `receive_signals`."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


def raise_interrupt(number: int, frame: FrameType | None) -> None:
    """A handler that raises KeyboardInterrupt with the signal's number for every stop signal."""
    raise KeyboardInterrupt(number)


def interrupt_of(error: BaseException | None) -> KeyboardInterrupt | None:
    """The KeyboardInterrupt that an error is or hides: `datasets` raises another one while it ends."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = None if isinstance(error, ToolkitError) else error.__context__
    return error


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
