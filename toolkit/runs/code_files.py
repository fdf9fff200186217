"""The code of a reward function: its file and the modules beside it, to detect a changed reward."""

import ast
import functools
import hashlib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any


def files_of(name: str) -> list[Path]:
    """The files of a reward function's code, found without running them.

    Args:
        name: `FILE.py:FUNCTION` or `package.module:FUNCTION`.

    Returns: an empty list if the module cannot be found.
    """
    module = name.rpartition(":")[0]
    if module.endswith(".py"):
        return with_imports(Path(module))
    try:
        spec = importlib.util.find_spec(module)  # imports the packages that contain the module
    except (Exception, SystemExit):  # a package may raise anything during its import
        return []
    return [] if spec is None or not spec.has_location else with_imports(Path(str(spec.origin)))


def code_of(function: Callable[..., Any]) -> str | None:
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


def with_imports(file: Path) -> list[Path]:
    """A file, and the modules in its folder that it imports, directly or through each other."""
    files, unread = [file], [file]
    while unread:
        for name in sorted(_imported(unread.pop(0))):
            found = file.with_name(f"{name}.py")
            if found not in files and found.is_file():
                files.append(found)
                unread.append(found)
    return [file, *sorted(files[1:])]


def _imported(file: Path) -> set[str]:
    """The modules that a file's import statements may name, without their packages."""
    names: set[str] = set()
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (OSError, SyntaxError, ValueError):
        return names
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.name.rpartition(".")[2] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names.add((node.module or "__init__").rpartition(".")[2])
    return names
