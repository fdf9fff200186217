"""A hash of a reward function's code, so that a resumed run notices a changed reward."""

import ast
import functools
import hashlib
import inspect
import sys
from pathlib import Path
from typing import Any

from toolkit.reward.functions import RewardFunction


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
            package = getattr(sys.modules.get(source.__module__), "__package__", None) or ""
            code = b"".join(f.read_bytes() for f in _with_imports(file, package))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    return hashlib.sha256(code).hexdigest()[:12]


def _with_imports(file: Path, package: str) -> list[Path]:
    """A file, and the loaded modules beside it that it imports, directly or through each other."""
    files, unread = [file], [(file, package)]
    while unread:
        path, package = unread.pop(0)
        for name in _imported(path, package):
            module = sys.modules.get(name)
            found = Path(getattr(module, "__file__", None) or "/").resolve()
            if found.suffix == ".py" and found.parent == file.parent and found not in files:
                files.append(found)
                unread.append((found, getattr(module, "__package__", None) or ""))
    return [file, *sorted(files[1:])]


def _imported(file: Path, package: str) -> list[str]:
    """The modules that a file's import statements may name, in order."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join(
                [*(parents if node.level else ()), *([node.module] if node.module else ())]
            )
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names
