"""A hash of a reward function's code, so that a resumed run detects a changed reward."""

import functools
import hashlib
import inspect
from pathlib import Path
from typing import Any

from toolkit.reward.functions import RewardFunction
from toolkit.runs.code_files import with_imports


def code_of(function: RewardFunction) -> str | None:
    """A hash of the file that defines a function and of the modules in its folder that the file imports.

    If the file is the script that was started, only the function's own lines are hashed, because the script
    also holds the settings of the run. None if the source is not available, as in some notebooks. Data that
    the function reads, attributes of a callable object and modules of other folders are not covered.
    """
    inner = inspect.unwrap(function)
    while isinstance(inner, functools.partial):
        inner = inspect.unwrap(inner.func)
    if inspect.ismethod(inner):
        inner = inner.__func__
    source: Any = inner if inspect.isfunction(inner) else type(inner)
    try:
        if source.__module__ == "__main__":
            code = inspect.getsource(source).encode()
        else:
            file = Path(inspect.getfile(source)).resolve()
            code = b"".join(f.read_bytes() for f in with_imports(file))
    except (OSError, TypeError):
        return None
    return hashlib.sha256(code).hexdigest()[:12]
