"""The train and test tables of a dataset, and a test split held out by prompt."""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolkit.data.convert import COLUMNS, Kind
from toolkit.data.messages import Row
from toolkit.data.sources import one_line
from toolkit.errors import DatasetError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Origin:
    """The file or dataset that a row comes from, and the row's number there, from 1."""

    place: str
    number: int


class Splits(dict[str, "Dataset"]):
    """Tables of one kind by split ("train", perhaps "test"), with one entry of `origins` per row."""

    def __init__(
        self,
        tables: Mapping[str, "Dataset"],
        *,
        kind: Kind,
        origins: Mapping[str, Sequence[Origin]],
    ) -> None:
        super().__init__(tables)
        self.kind = kind
        self.origins = origins


def make_table(rows: Sequence[Row], *, kind: Kind, place: str) -> "Dataset":
    """Rows as a table with every column that any row has.

    A column with values of several types does not fit into a table: its name is printed and it is
    left out.

    Raises: DatasetError if such a column is one of the kind's.
    """
    from datasets import Dataset

    names = dict.fromkeys(itertools.chain.from_iterable(rows))
    columns = {name: [row.get(name) for row in rows] for name in names}
    errors = (ValueError, TypeError, OverflowError, NotImplementedError)  # Arrow's are subclasses
    try:
        return Dataset.from_dict(columns)
    except errors:
        for name, values in list(columns.items()):
            try:
                Dataset.from_dict({name: values})
            except errors as reason:
                types = ", ".join(sorted({type(v).__name__ for v in values}))
                problem = (
                    f'{place}: column "{name}" does not fit into a table: its values are {types}'
                )
                if name in COLUMNS[kind]:
                    raise DatasetError(f"{problem} ({one_line(reason)})") from reason
                print(f"{problem}; it is left out")
                del columns[name]
        return Dataset.from_dict(columns)


def hash_rows(rows: "Dataset") -> str:
    """The number of rows, and a short hash of their content."""
    digest = hashlib.sha256()
    for batch in rows.iter(1000):
        digest.update(json.dumps(batch, sort_keys=True, default=str).encode())
    return f"{len(rows)} ({digest.hexdigest()[:12]})"


def question_key(row: Row) -> str:
    """The key for holding out a test split: the prompt up to its first answer, or the text.

    All turns of a dialogue have the same key. A question has the same key as text and as a message.
    Blanks around a text and the kind of its line ends do not count.
    """
    prompt = row.get("prompt", row.get("text"))
    if isinstance(prompt, list):
        roles = [message["role"] for message in prompt]
        start = roles.index("user") if "user" in roles else len(roles)  # a greeting may come first
        end = roles.index("assistant", start) if "assistant" in roles[start:] else len(roles)
        prompt = [message | {"content": _trim(message["content"])} for message in prompt[:end]]
        prompt = prompt[0]["content"] if roles[:end] == ["user"] else prompt
    return json.dumps(_trim(prompt) if isinstance(prompt, str) else prompt, sort_keys=True)


def _trim(text: str) -> str:
    return text.replace("\r\n", "\n").strip()


def hold_out(
    rows: Sequence[Row], size: float, *, seed: int, place: str, others: Sequence[Row] = ()
) -> tuple[list[int], list[int]]:
    """Split rows into training and test rows that share no prompt and no group.

    A hash of the seed and the prompt decides which prompts are for testing. So neither the order of
    the rows nor their number per prompt matters, every recipe holds out the same prompts of a file,
    and a dataset that grows keeps most of its test prompts. Prompts are equal by `question_key`.

    Args:
        rows: rows with a "prompt" and perhaps a "group_id".
        size: a share of the prompts if below 1, otherwise a number of prompts. Because a group stays
            together, the test split may be somewhat smaller; it is never empty.
        seed: another seed chooses other prompts.
        place: the dataset, for error messages.
        others: rows of the same dataset that this recipe does not use, but other recipes do.

    Returns: indices of the training rows and of the test rows, in order.
    Raises: DatasetError if the size leaves no prompt to train on or there is only one prompt.
    """
    everything = [*rows, *others]
    families = _families(everything)
    prompts = {family: set[str]() for family in families}
    for family, row in zip(families, everything, strict=True):
        prompts[family].add(question_key(row))
    count = sum(map(len, prompts.values()))
    usable = set(families[: len(rows)])
    if len(usable) < 2:
        raise DatasetError(
            f"{place}: all rows have the same prompt or group; a test split needs another one"
        )
    valid = 0 < size < 1 or (1 <= size < count and size == int(size))
    target = round(size * count) if size < 1 else size
    if not valid or target >= count:
        raise DatasetError(
            f"{place}: `test_split_size` must be a share between 0 and 1 or a whole number less than "
            f"the {count} prompts, got {size:g}"
        )
    order = sorted(prompts, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest())
    test, held = set[str](), 0
    for family in order:
        if held + len(prompts[family]) <= max(target, 1):
            test.add(family)
            held += len(prompts[family])
    if not test & usable or usable <= test:  # only in a few prompts, or with large groups
        test = {min((f for f in order if f in usable), key=lambda family: len(prompts[family]))}
    sides: tuple[list[int], list[int]] = ([], [])
    for number, family in enumerate(families[: len(rows)]):
        sides[family in test].append(number)
    return sides


def _families(rows: Sequence[Row]) -> list[str]:
    """One key per row; rows that are connected by equal prompts or groups have the same key.

    The key is the smallest of the family's prompts, so it does not depend on the rows' order.
    """
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        while parents.setdefault(key, key) != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    keys = [question_key(row) for row in rows]
    for key, row in zip(keys, rows, strict=True):
        if row.get("group_id") is not None:
            # "group" sorts after every prompt, because those start with a quotation mark or a bracket
            smaller, larger = sorted((root(key), root(f"group {json.dumps(row['group_id'])}")))
            parents[larger] = smaller
        else:
            root(key)
    return [root(key) for key in keys]
