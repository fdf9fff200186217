"""The files of a Python function's code: its module, and the modules in the same folder that it imports."""

import ast
import importlib.util
from pathlib import Path


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
