"""How a dataset writes its rows, besides their format, and how the rows are brought into one form.

Lists may be stored as text (CSV), answers may repeat their prompt, and a column may contain the system
message. This can only be detected from all rows together, or from the first rows of a stream.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toolkit.data.formats import FORMATS, common_columns, detect_format, unclear_labels
from toolkit.data.messages import Message, Row, as_text, assistant, is_blank, user
from toolkit.data.rewrites import NEARLY_ALL, Rewrite, apply_all, find_rewrites, renaming_hint
from toolkit.data.row_errors import RowError
from toolkit.data.stored_lists import parse_list, stored_columns
from toolkit.errors import DatasetError

SYSTEM_COLUMNS = ("system", "system_prompt", "system_message", "system_instruction")
LABEL_COLUMNS = ("label", "kto_tag")
SAMPLE = 1000  # rows from which a layout is found
MOST = 0.5
# The end of a prompt that its answer would not begin with: a sentence's or a template mark's, such as
# `[/INST]`. After one word only a question or a colon is such an end: "Inc." may be part of a name.
END = re.compile(r"""[.?!:…。？！：>\]]["'”’»*_]*\Z""")
END_OF_WORD = re.compile(r"""[?:。？：>\]]["'”’»*_]*\Z""")
NEXT_LINE = re.compile(r"[ \t]*[\r\n<\[#|]")  # or a template mark
TITLE = 4  # words of a prompt that may be the title above its answer


@dataclass(frozen=True)
class Layout:
    """The common properties of all rows of a dataset.

    Args:
        stored: columns whose lists are stored as text.
        is_chat: whether texts become messages, because some rows have a system message.
        repeats: whether the answers start with a copy of their prompt, which is then cut.
        kept: how many answers start with their prompt if it is not cut; "" for few.
        rewrites: changes of widespread layouts to the columns of a format.
        hint: why columns of two answers, or a label, are not read, for error messages.
    """

    stored: tuple[str, ...] = ()
    is_chat: bool = False
    repeats: bool = False
    kept: str = ""
    rewrites: tuple[Rewrite, ...] = ()
    hint: str = ""

    @property
    def notes(self) -> list[str]:
        """The changes of the rows, for the printed line."""
        notes = [rewrite.note for rewrite in self.rewrites]
        if self.stored:
            notes.append(f"lists stored as text in {', '.join(self.stored)} were read")
        if self.is_chat:
            notes.append("texts became messages, because rows have a system message")
        if self.repeats:
            notes.append("the prompt was cut from the beginning of the answers")
        if self.kept:
            notes.append(f"{self.kept}, which stays: it may be part of the answer")
        return notes

    def parse(self, row: Row) -> Row:
        """The row with its stored lists and rewrites, and `label` in place of LLaMA-Factory's `kto_tag`.

        Raises: RowError for text that is not a list, and for a row that does not fit the rewrites.
        """
        new = {name: parse_list(row[name], name) for name in self.stored if name in row}
        row = row | new if new else row
        if "kto_tag" in row and is_blank(row.get("label")):
            row = {("label" if name == "kto_tag" else name): v for name, v in row.items()}
        return apply_all(self.rewrites, row)

    def try_parse(self, rows: Iterable[Any]) -> list[Row]:
        """The parsed rows; malformed rows, which are reported later, are left out."""
        parsed = (_try(self.parse, row) for row in rows if isinstance(row, dict))
        return [row for row in parsed if row is not None]

    def arrange(self, parts: Row, row: Row) -> Row:
        """Add the row's system message to its parts, and cut the prompt from its answers.

        Raises: RowError for a second system message, or for an answer that consists of the prompt.
        """
        system = system_message(row)
        if system is not None and _mentions(parts, system):
            system = None
        if "prompt" in parts and isinstance(parts["prompt"], str) and (system or self.is_chat):
            parts = _map_answers(parts, lambda answer: [assistant(answer)])
            parts |= {"prompt": [user(parts["prompt"])]}
        if self.repeats and "prompt" in parts:
            prompt = _content(parts["prompt"])
            parts = _map_answers(parts, lambda answer: _cut(answer, prompt))
        if self.repeats and "messages" in parts:
            parts = parts | {"messages": _cut_dialogue(parts["messages"])}
        if system is None:
            return parts
        if "text" in parts:
            problem = 'the system message is not in "text"; add it, or rename its column'
            raise RowError("unread system message", problem, system)
        name = "messages" if "messages" in parts else "prompt"
        if parts[name][0]["role"] == "system":
            expected = "a row must have one system message; remove one, or rename its column"
            raise RowError("two system messages", expected, system, parts[name][0]["content"])
        more: Row = {"learned": [False, *parts["learned"]]} if "learned" in parts else {}
        return parts | {name: [{"role": "system", "content": system}, *parts[name]]} | more


PLAIN = Layout()


def find_layout(
    rows: Sequence[Any], *, place: str, format: str | None = None
) -> tuple[str, Layout]:
    """The format and the layout of a dataset's rows.

    Args:
        rows: all rows, or the first ones of a stream.
        place: the file or dataset, for error messages.
        format: the format that the user set.

    Raises: DatasetError if `detect_format` raises it, or if only some answers start with their prompt.
    """
    objects = [row for row in rows if isinstance(row, dict)]
    step = max(1, len(rows) // SAMPLE)
    layout = Layout(stored_columns(objects[::step]))
    parsed = layout.try_parse(objects[::step])
    rewrites, hint = find_rewrites(parsed)
    hint = hint or unclear_labels(parsed) or renaming_hint(common_columns(parsed))
    layout = replace(layout, rewrites=tuple(rewrites), hint=hint)
    if layout.stored or rewrites or any("kto_tag" in row for row in objects):
        rows = layout.try_parse(objects[::step]) or rows
    format = format or detect_format(rows, place=place, hint=hint)
    if format not in FORMATS:
        return format, layout

    def read(row: Row) -> Row:
        return FORMATS[format].read(layout.parse(row))

    with_system = [row for row in objects if any(not is_blank(row.get(n)) for n in SYSTEM_COLUMNS)]
    is_chat = any(_needs_chat(_try(read, row) or {}, row) for row in with_system[:SAMPLE])
    repeats, kept = _find_repeats([_try(read, row) or {} for row in objects[::step]], place)
    return format, replace(layout, is_chat=is_chat, repeats=repeats, kept=kept)


def _needs_chat(parts: Row, row: Row) -> bool:
    """Whether a row of plain text has a system message that its prompt does not contain."""
    system = _try(system_message, row)
    return isinstance(parts.get("prompt"), str) and bool(system) and not _mentions(parts, system)


def system_message(row: Row) -> str | None:
    """A row's system message from its own column; None if the column is blank or missing.

    Raises: RowError if it is not text, or if two such columns differ.
    """
    found = {name: row[name] for name in SYSTEM_COLUMNS if not is_blank(row.get(name))}
    texts = [as_text(value, f'"{name}"') for name, value in found.items()]
    if len(set(texts)) > 1:
        raise RowError("two system messages", f"{' and '.join(found)} must be the same", *texts)
    return texts[0] if texts else None


def _mentions(parts: Row, system: str) -> bool:
    """Whether a row's prompt contains its system message already."""
    value = parts.get("messages") or parts.get("prompt") or parts.get("text")
    if isinstance(value, str):
        return system.strip() in value
    return any(
        m["role"] == "system" and m["content"].strip() == system.strip() for m in value or []
    )


def _try(function: Any, row: Row) -> Any:
    """The function's result; None for a malformed row, which is reported later."""
    try:
        return function(row)
    except RowError:
        return None


def _find_repeats(parts: Sequence[Row], place: str) -> tuple[bool, str]:
    """Whether (nearly) all answers start with a copy of their prompt; else, how many start with it.

    "Osmosis" -> "Osmosis is …" is no copy: the answer may begin with its subject.

    Raises: DatasetError if most answers start with a copy, but not nearly all: cutting would be a guess.
    """
    exchanges = [exchange for one in parts for exchange in _exchanges(one)]
    ends = [(p, answer[end:]) for p, answer in exchanges if (end := _cut_at(answer, p)) is not None]
    starts = [(prompt, rest) for prompt, rest in ends if not is_blank(rest)]
    if len(starts) < MOST * len(exchanges) or not starts:
        return False, ""
    count = f"{len(starts)} of {len(exchanges)} answers start with their prompt"
    if sum(itertools.starmap(_is_copy, starts)) < MOST * len(exchanges):
        return False, count
    if len(starts) < NEARLY_ALL * len(exchanges):
        raise DatasetError(
            f"{place}: {count}, the others do not; cut the prompt from these answers, since the "
            "model would learn to repeat it"
        )
    return True, ""


def _is_copy(prompt: str, rest: str) -> bool:
    """Whether a prompt at the beginning of an answer is certainly a copy, not the answer's subject."""
    words = prompt.split()
    if (END if len(words) > 1 else END_OF_WORD).search(prompt.strip()):
        return True
    return len(words) > TITLE and bool(NEXT_LINE.match(rest) or prompt.endswith(("\r", "\n")))


def _exchanges(parts: Row) -> list[tuple[str, str]]:
    """Each answer of a row, with the prompt or message before it."""
    if "messages" in parts:
        texts = [message["content"] for message in parts["messages"]]
        roles = [message["role"] for message in parts["messages"]]
        return [
            (texts[i - 1], texts[i])
            for i in range(1, len(texts))
            if roles[i - 1 : i + 1] == ["user", "assistant"]
        ]
    if "prompt" not in parts:
        return []
    single = [parts[name] for name in ("completion", "chosen", "rejected") if name in parts]
    answers = [*single, *parts.get("completions", [])]
    return [(_content(parts["prompt"]), _content(answer)) for answer in answers]


def _map_answers(parts: Row, function: Any) -> Row:
    names = ("completion", "chosen", "rejected")
    new = {name: function(parts[name]) for name in names if name in parts}
    if "completions" in parts:
        new["completions"] = [function(answer) for answer in parts["completions"]]
    return parts | new


def _content(value: str | list[Message]) -> str:
    return value if isinstance(value, str) else value[-1]["content"]


def _cut_at(answer: str, prompt: str) -> int | None:
    """Where the text after the prompt begins; None if the answer does not start with it.

    "cats" does not start with "cat": after a word, a blank or a template mark must follow.
    """
    blanks = len(answer) - len(answer.lstrip())
    for begin, start in ((0, prompt), (blanks, prompt.strip())):
        end = begin + len(start)
        if answer.startswith(start, begin):
            is_inside = start[-1:].isalnum() and not re.match(r"[\s<\[#|]|\Z", answer[end:])
            return None if is_inside else end
    return None


def _cut(answer: Any, prompt: str) -> Any:
    """The answer without the prompt at its beginning, if it is there."""
    end = _cut_at(_content(answer), prompt)
    if end is None:
        return answer
    rest = as_text(_content(answer)[end:], "the answer after its prompt")
    return rest if isinstance(answer, str) else [assistant(rest.lstrip())]


def _cut_dialogue(messages: list[Message]) -> list[Message]:
    """The messages, with the preceding question cut from each answer."""
    cut = messages[:1]
    for before, message in itertools.pairwise(messages):
        is_answer = message["role"] == "assistant" and before["role"] == "user"
        cut += _cut([message], before["content"]) if is_answer else [message]
    return cut
