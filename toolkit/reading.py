"""Read untrusted JSON and YAML, with limits for size, depth and the length of numbers.

A few bytes can expand to gigabytes: a sparse file, an alias of an alias, or a number that takes minutes to
print. All functions read only regular files, because a pipe could block.
"""

import inspect
import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import yaml

MAX_BYTES = 1 << 20  # of a manifest, a fingerprint or an adapter's config
MAX_YAML_BYTES = 256 << 10  # PyYAML parses about 100 KiB per second
MAX_DEPTH = 40  # levels of lists and mappings
MAX_VALUES = 100_000  # in a YAML, after aliases are expanded
MAX_DIGITS = 40  # a tokenizer's `model_max_length` has 31


def read_bytes(file: Path, *, at_most: int = MAX_BYTES) -> bytes:
    """The content of a regular file.

    Raises: OSError if it cannot be read, ValueError if it is too large or not a regular file.
    """
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"{file.name} is not a regular file")
        content = stream.read(at_most + 1)
    if len(content) > at_most:
        limit = f"{at_most >> 20} MiB" if at_most >> 20 else f"{at_most >> 10} KiB"
        raise ValueError(f"{file.name} is larger than {limit}")
    return content


def read_text(file: Path, *, at_most: int = MAX_BYTES) -> str:
    """The text of a UTF-8 file without a byte order mark.

    Raises: the errors of `read_bytes`, and ValueError for other text.
    """
    try:
        return read_bytes(file, at_most=at_most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text; save the file as UTF-8") from error


def read_json(file: Path, *, at_most: int = MAX_BYTES) -> Any:
    """The value in a JSON file. Raises: OSError if it cannot be read, otherwise ValueError."""
    return parse_json(read_text(file, at_most=at_most))


def read_mapping(
    file: Path, types: Mapping[str, Any] | None = None, *, at_most: int = MAX_BYTES
) -> dict[str, Any]:
    """The mapping in a JSON file.

    Args:
        types: name -> type of some of its values, such as `list[int]`; a value may only be missing if its
            type includes None.

    Raises: OSError if the file cannot be read, otherwise ValueError.
    """
    content = read_json(file, at_most=at_most)
    if not isinstance(content, dict):
        raise ValueError(f"expected a mapping, got {_short(content)}")
    check_types({name: content.get(name) for name in types or ()}, types or {})
    return content


def check_types(content: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Raise ValueError for the first value of `content` whose type differs from `types`."""
    for name, value in content.items():
        if name in types and not _matches(value, types[name]):
            expected = inspect.formatannotation(types[name]).replace("typing.", "")
            raise ValueError(f"`{name}` must be {expected}, got {_short(value)}")


def _matches(value: Any, expected: Any) -> bool:
    """Whether a JSON value has a type; a whole number is also a float."""
    if isinstance(expected, UnionType):
        return any(_matches(value, kind) for kind in get_args(expected))
    if expected is Any:
        return True
    if expected is float:
        return type(value) in (int, float)
    if type(value) is not (get_origin(expected) or expected):
        return False
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return all(_matches(part, get_args(expected)[-1]) for part in parts)


def _short(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:59] + '…'} ({type(value).__name__})"


def parse_json(text: str | bytes) -> Any:
    """The value in a JSON text; raises ValueError for invalid JSON and above the limits."""
    try:
        value = json.loads(text, parse_int=_whole_number)
    except RecursionError as error:
        raise ValueError(_too_deep()) from error
    _check_bounds(value, _json_children, most=len(text))
    return value


def parse_yaml(text: str) -> Any:
    """The value in a YAML text; repeated keys, and tags that create Python objects, are errors.

    Raises: ValueError for invalid YAML and above the limits.
    """
    if len(text) > MAX_YAML_BYTES:
        raise ValueError(f"it is larger than {MAX_YAML_BYTES >> 10} KiB")
    try:
        loader = _UniqueKeys(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_bounds(node, _yaml_children, most=MAX_VALUES)
        return loader.construct_document(node)
    except RecursionError as error:
        raise ValueError(_too_deep()) from error
    except (yaml.YAMLError, OverflowError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from error


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, with an error for a repeated key instead of silently using the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        known: set[str] = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and key.value in known:
                raise yaml.YAMLError(f"`{key.value[:80]}` is given twice")
            known |= {key.value} if isinstance(key.value, str) else set()
        return super().construct_mapping(node, deep)


def _check_bounds(root: Any, children: Callable[[Any], Iterable[Any]], *, most: int) -> None:
    """Raise ValueError for a tree that is too deep or has more than `most` values.

    A part that several aliases share counts once per alias.
    """
    level, count = [root], 0
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            below.extend(children(value))
            if count + len(below) > most:
                raise ValueError(f"it holds more than {most} values")
        count += len(below)
        if not below:
            return
        level = below
    raise ValueError(_too_deep())


def _too_deep() -> str:
    return f"its lists and mappings are nested more than {MAX_DEPTH} levels deep"


def _json_children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _yaml_children(node: Any) -> Iterable[Any]:
    if isinstance(node, yaml.ScalarNode):
        if node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
            _check_digits(node.value)
        return ()
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value)


def _whole_number(digits: str) -> int:
    _check_digits(digits)
    return int(digits)


def _check_digits(digits: str) -> None:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits, but at most {MAX_DIGITS} are allowed")
