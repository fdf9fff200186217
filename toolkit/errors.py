"""The errors that a user can cause; each message has the place, expected, actual and fix."""

from collections.abc import Iterator
from contextlib import contextmanager


class ToolkitError(Exception):
    """Base class of all errors that the input causes, not a bug."""

    exit_code = 2  # of a command that ends with this error


class ConfigError(ToolkitError):
    """A YAML file or a command line cannot be used as it is."""


class DatasetError(ToolkitError):
    """A dataset or one of its rows cannot be used as it is."""


class CheckpointError(ToolkitError):
    """An adapter, head, checkpoint or run directory cannot be used as it is."""


class Interrupted(ToolkitError):
    """A signal stopped a run or a pipeline.

    Args:
        signal: the number of the signal.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
        self.exit_code = 128 + signal


class RewardError(ToolkitError):
    """A reward function or reward model returned a value that training cannot use."""


class JudgeError(ToolkitError):
    """A judge gives no replies that can be used."""


class DivergedError(ToolkitError):
    """A loss, weight or hidden state is no longer finite."""


class BusyError(ToolkitError):
    """The app's queue is full; a later question can succeed."""


@contextmanager
def exit_is_error(place: str, kind: type[ToolkitError] = ConfigError) -> Iterator[None]:
    """Turn `sys.exit` in a user's code into an error inside the block, for any exit code.

    Otherwise a run that a user's code stops could end with exit code 0.
    """
    try:
        yield
    except SystemExit as error:
        raise kind(f"{place} called sys.exit: {error.code}; raise an exception instead") from error
