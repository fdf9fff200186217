"""Checks that need a tokenizer: marks of the chat template in the texts, and rows that are too long."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.data.messages import Row, shown
from toolkit.data.row_errors import Failure, describe, keep_dropped, numbers, tally
from toolkit.data.rows import is_plain
from toolkit.data.tables import Splits
from toolkit.errors import DatasetError
from toolkit.options.arguments import DataArguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWERS = ("completion", "chosen", "rejected")
MOST_MEASURED = 5000  # rows whose tokens are counted; more would cost minutes
LOST_BYTES = "\ufffd"  # what decoders write in the place of bytes that are not UTF-8


def check_texts(
    splits: Splits,
    tokenizer: "PreTrainedTokenizerBase",
    data_args: DataArguments,
    *,
    max_length: int | None = None,
    cut: bool = True,
    folder: Path | None = None,
) -> Splits:
    """The splits without rows whose messages hold marks of the chat template.

    A special token inside a message would be read as what it stands for: the end of the turn, or
    the beginning of another speaker's. In plain text, which no template surrounds, it may be
    meant, and is only said.

    Args:
        splits: what `load_splits` returned.
        tokenizer: the base's.
        data_args: `drop_bad_rows`.
        max_length: tokens that the trainer takes.
        cut: whether it cuts longer rows, which is said; else it leaves them out, and says so.
        folder: the run's directory, where rows that are dropped are written.

    Raises: DatasetError for rows with marks unless `drop_bad_rows` is set; if no row is left; and
        if no prompt leaves room for an answer.
    """
    marks = template_marks(tokenizer)
    bad: list[Failure] = []
    tables, origins = dict(splits), dict(splits.origins)
    for split, table in splits.items():
        found = _marked(splits, split, marks)
        plain = is_plain(table[0])
        if plain and found:
            print(f"{split}: {tally(found.values())}: read as the tokens that they name")
        if found and not plain:
            bad += found.values()
            kept = [i for i in range(len(table)) if i not in found]
            tables[split] = table.select(kept)
            origins[split] = [splits.origins[split][i] for i in kept]
    if bad and not data_args.drop_bad_rows:
        raise DatasetError(describe(_by_place(bad)))
    if bad:
        print(f"dropped {len(bad)} rows: {tally(bad)}")
        keep_dropped(bad, folder, more=True)
    for split, table in tables.items():
        if not len(table):
            raise DatasetError(f"no row of the {split} split is left.\n{describe(_by_place(bad))}")
    checked = Splits(tables, kind=splits.kind, origins=origins)
    _say_lost_bytes(checked)
    if max_length is not None:
        _say_too_long(checked, tokenizer, max_length, cut=cut)
    return checked


def _by_place(bad: list[Failure]) -> list[Failure]:
    """The failures of the first one's file, each row once: a ranking's pairs share their row."""
    rows = {(f.place, f.number): f for f in reversed(bad) if f.place == bad[0].place}
    return sorted(rows.values(), key=lambda f: f.number)


@dataclass(frozen=True)
class Marks:
    """What a template or tokenizer writes between texts, as a pattern; None where nothing is."""

    pattern: re.Pattern[str] | None

    def find(self, text: str) -> str | None:
        """The first mark in a text."""
        found = self.pattern.search(text) if self.pattern is not None else None
        return found.group() if found else None


def template_marks(tokenizer: "PreTrainedTokenizerBase") -> Marks:
    """What the tokenizer and its template write between texts."""
    special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    special |= {str(token) for token in tokenizer.all_special_tokens}
    words = [word for word in special | _turn_marks(tokenizer) if word]
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    pattern = "|".join(map(re.escape, longest_first))
    return Marks(re.compile(pattern) if words else None)


def _turn_marks(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    """What the template writes from one turn to the next, where that is words and not tokens."""
    if tokenizer.chat_template is None:
        return set()
    from jinja2 import TemplateError

    said = ["first question", "first answer", "second question", "second answer"]
    turns = [
        {"role": "assistant" if i % 2 else "user", "content": words} for i, words in enumerate(said)
    ]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except TemplateError:  # a template for a single turn
        return set()
    between = re.fullmatch(".*" + "(.*)".join(map(re.escape, said)) + ".*", text, re.DOTALL)
    if between is None:
        return set()
    # a blank line, or a mere "A:", stands in many texts that mean nothing by it
    return {mark for mark in between.groups() if len("".join(mark.split())) >= 4}


def _marked(splits: Splits, split: str, marks: Marks) -> dict[int, Failure]:
    """The rows of a split that hold a mark, by index."""
    found = {}
    for i, row in enumerate(splits[split]):
        message = template_mark(row, marks)
        if message is not None:
            origin = splits.origins[split][i]
            found[i] = Failure(origin.place, origin.number, "special token", message, row)
    return found


def template_mark(row: Row, marks: Marks) -> str | None:
    """Which mark a row holds and where, as an error says it; None where it holds none."""
    for name, text in _texts(row):
        mark = marks.find(text)
        if mark is not None:
            at = text.index(mark)
            around = text[max(0, at - 20) : at + len(mark) + 20]
            message = f"{name} must not hold the chat template's {shown(mark)}"
            return f"{message}; it stands in {shown(around)}"
    return None


def _texts(row: Row) -> Iterator[tuple[str, str]]:
    """The texts of a row that the model reads, and what errors call them."""
    for name in ("prompt", "text", *ANSWERS):
        value = row.get(name)
        if isinstance(value, str):
            yield f'"{name}"', value
        elif value is not None:
            for i, message in enumerate(value, start=1):
                yield f'"{name}" message {i}', message["content"]


def _say_lost_bytes(splits: Splits) -> None:
    for split, table in splits.items():
        found = [
            Failure(origin.place, origin.number, "", "", None)
            for origin, row in zip(splits.origins[split], table, strict=True)
            if any(LOST_BYTES in text for _, text in _texts(row))
        ]
        if found:
            rows = f"{len(found)} of {len(table)} rows hold U+FFFD ({numbers(found)})"
            print(f"{split}: {rows}: what is left of bytes that were not UTF-8")


def _say_too_long(
    splits: Splits, tokenizer: "PreTrainedTokenizerBase", most: int, *, cut: bool
) -> None:
    """Print how many rows will be cut, and how many prompts leave no room for an answer.

    Raises: DatasetError where none does.
    """
    for split, table in splits.items():
        step = -(-len(table) // MOST_MEASURED)
        measured = [_lengths(tokenizer, row) for row in table.select(range(0, len(table), step))]
        long = sum(whole > most for _, whole in measured)
        full = sum(prompt >= most for prompt, _ in measured)
        if full == len(measured):
            shortest = min(prompt for prompt, _ in measured)
            raise DatasetError(
                f"{split}: no prompt leaves room for an answer: the shortest has {shortest} tokens "
                f"and `max_length` is {most}; raise it"
            )
        if long and cut:
            of = f"{len(measured)} rows" + (f" (every {step}th was measured)" if step > 1 else "")
            line = f"{split}: {long} of {of}, {long / len(measured):.1%}, are longer than "
            line += f"`max_length` {most} tokens and will be cut"
            line += (
                f"; {full} of them have a prompt that fills it, and are left out" if full else ""
            )
            print(line)


def _lengths(tokenizer: "PreTrainedTokenizerBase", row: Row) -> tuple[int, int]:
    """Tokens of a row's prompt, and of the prompt with its longest answer."""
    if "text" in row:
        return 0, _count(tokenizer, row["text"]) + 1
    prompt = row["prompt"]
    answers = [row[name] for name in ANSWERS if name in row]
    if isinstance(prompt, str):
        whole = max((_count(tokenizer, prompt + a) + 1 for a in answers), default=0)
        return _count(tokenizer, prompt), whole
    asked = _render(tokenizer, prompt, add_generation_prompt=True)
    whole = max((_render(tokenizer, prompt + a) for a in answers), default=0)
    return asked, whole


def _count(tokenizer: "PreTrainedTokenizerBase", text: str) -> int:
    return len(tokenizer(text)["input_ids"])


def _render(tokenizer: "PreTrainedTokenizerBase", messages: Any, **options: Any) -> int:
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return len(tokenizer(rendered, add_special_tokens=False)["input_ids"])
