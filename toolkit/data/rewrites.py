"""Widespread layouts of rows, rewritten to the columns of a format.

    {"prompt", "response_a", "response_b", "winner"}  ->  {"prompt", "completions", "ranks"}
    {"prompt", "answers": [{"answer", "rank"}, …]}    ->  {"prompt", "completions", "ranks"}
    {"conversation": [{"input", "output"}, …]}        ->  {"messages"}
    {"messages": {"role": […], "content": […]}}       ->  {"messages": [{"role", "content"}, …]}

A layout is recognized only if most rows have it and its meaning is certain.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from toolkit.data.formats import LIKELY_PROMPTS, common_columns
from toolkit.data.messages import Row, get_column, is_blank
from toolkit.data.row_errors import RowError, as_json
from toolkit.data.values import as_flag, finite_number

DIALOGUES = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "chat")
ANSWER_LISTS = ("completions", "answers", "responses", "candidates", "outputs", "generations")
MAY_BE_TRANSPOSED = (*DIALOGUES, *ANSWER_LISTS, "prompt", "completion", "chosen", "rejected")
PROMPTS = (*LIKELY_PROMPTS, "history", "messages", "conversation", "conversations")
QUESTION_KEYS = {"input", "instruction", "question", "prompt", "query", "human", "user"}
ANSWER_KEYS = {"output", "response", "answer", "completion", "reply", "assistant", "gpt", "bot"}
TEXT_KEYS = {"text", "content", "output", "response", "answer", "completion", "generated_text"}
RANK_KEYS, SCORE_KEYS = {"rank"}, {"score", "rating", "reward"}
NOUN = "response|answer|output|completion|conversation|reply|generation|candidate|summary|human_ref"
ANSWER = re.compile(rf"(?P<stem>.*(?:{NOUN}))[ _-]?(?P<end>[a-d0-4])", re.IGNORECASE)
ENDS = (("a", "b"), ("0", "1"), ("1", "2"))
# A column that names the better of two answers.
WINNER = re.compile(
    r"(winner|better|safer|prefer|verdict|^labels?$|^choice$)(?!.*_unused$)", re.IGNORECASE
)
STRENGTH = re.compile("strength|score|margin", re.IGNORECASE)
SIDE = rf"(?:(?:model|assistant|option|system|{NOUN})[ _-]?)?"
NEARLY_ALL = 0.9
FLAG_WORDS = ("is", "was", "first", "second", "left", "right")
TIES = {"tie", "tied", "equal", "same", "both", "draw"}
BAD_TIES = {"neither", "none", "both bad", "tie (bothbad)", "tie (both bad)", "bothbad"}
# The sign marks the better answer: negative for the first one, as the HelpSteer datasets document.
SIGNED = ("overall_preference", "preference_strength")


@dataclass(frozen=True)
class Rewrite:
    """A change of a row's columns, and a note for the printed line."""

    apply: Callable[[Row], Row]
    note: str


def find_rewrites(rows: Sequence[Row]) -> tuple[list[Rewrite], str]:
    """The rewrites that a dataset's rows need, and why two answers stay unread; "" if none does."""
    rewrites: list[Rewrite] = []
    columns = common_columns(rows)
    for name in sorted(columns.intersection(MAY_BE_TRANSPOSED)):
        if _most(rows, name, _is_transposed):
            note = f"the lists in {name} became a list of objects"
            rewrites.append(Rewrite(partial(_transpose, name=name), note))
    rows = [apply_all(rewrites, row) for row in rows]
    rewrites += _find_dialogue(rows, columns)
    if "completion" in columns or columns >= {"chosen", "rejected"}:
        return rewrites, ""
    ranked = _find_ranked(rows, columns)
    if ranked:
        return [*rewrites, *ranked], ""
    pair, unclear = _find_pair(rows, columns)
    return [*rewrites, *pair], unclear


def renaming_hint(columns: set[str]) -> str:
    """The renaming for a dataset of one question and one answer; "" for other columns."""
    question, answers = _prompt_column(columns), sorted(columns & ANSWER_KEYS)
    if question is None or len(answers) != 1 or "completion" in columns:
        return ""
    names = {question: "prompt", answers[0]: "completion"}
    pairs = ", ".join(f"{old}: {new}" for old, new in names.items() if old != new)
    return f"If {answers[0]} is the answer to {question}, set `columns: {{{pairs}}}`."


def apply_all(rewrites: Sequence[Rewrite], row: Row) -> Row:
    """The row after all rewrites.

    Raises: RowError if the row does not fit them.
    """
    for rewrite in rewrites:
        row = rewrite.apply(row)
    return row


def _most(rows: Sequence[Row], name: str, fits: Callable[[Any], bool]) -> bool:
    """Whether most values of a column fit."""
    values = [value for row in rows if not is_blank(value := row.get(name))]
    return 2 * sum(map(fits, values)) > len(values)


def _is_transposed(value: Any) -> bool:
    """Whether a value is one object of equally long lists, although a list of objects is expected."""
    if not isinstance(value, dict) or not all(isinstance(v, list) for v in value.values()):
        return False
    known = {"role", "from"} | QUESTION_KEYS | TEXT_KEYS
    return bool(value.keys() & known) and len({len(v) for v in value.values()}) == 1


def _transpose(row: Row, *, name: str) -> Row:
    value: Any = row.get(name)
    if not _is_transposed(value):
        return row
    items = zip(*value.values(), strict=True)
    return row | {name: [dict(zip(value, item, strict=True)) for item in items]}


def _find_dialogue(rows: Sequence[Row], columns: set[str]) -> list[Rewrite]:
    """Turns of a question and its answer, or messages in a column of another name."""
    names = [name for name in DIALOGUES if name in columns]
    if len(names) != 1 or columns & {"prompt", "instruction"}:
        return []
    (name,) = names
    target = name if name in DIALOGUES[:2] else DIALOGUES["chosen" in columns]
    if _most(rows, name, _has_turns):
        note = f"questions and answers in {name} became messages"
        return [Rewrite(partial(_split_turns, name=name, target=target), note)]
    if name != target and _most(rows, name, _has_messages):
        return [Rewrite(partial(_rename, name=name, target=target), f"{name} has the messages")]
    return []


def _has_messages(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict) and bool(item.keys() & {"role", "from"}) for item in value
    )


def _has_turns(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict)
        and len(item.keys() & QUESTION_KEYS) == len(item.keys() & ANSWER_KEYS) == 1
        for item in value
    )


def _rename(row: Row, *, name: str, target: str) -> Row:
    return {(target if key == name else key): value for key, value in row.items()}


def _split_turns(row: Row, *, name: str, target: str) -> Row:
    """A question and its answer as two messages; the answer keeps the turn's other keys."""
    turns: Any = row.get(name)
    if not _has_turns(turns):
        expected = f'"{name}" must be a list of questions with their answers'
        raise RowError("not a dialogue", expected, turns)
    messages = []
    for turn in turns:
        (question,), (answer,) = turn.keys() & QUESTION_KEYS, turn.keys() & ANSWER_KEYS
        others = {key: value for key, value in turn.items() if key not in (question, answer)}
        messages.append({"role": "user", "content": turn[question]})
        messages.append({**others, "role": "assistant", "content": turn[answer]})
    return _rename(row, name=name, target=target) | {target: messages}


def _find_ranked(rows: Sequence[Row], columns: set[str]) -> list[Rewrite]:
    """A list of answers, each an object with its text and its rank or score."""
    names = [n for n in ANSWER_LISTS if n in columns and _most(rows, n, _has_ranks)]
    prompt = _prompt_column(columns - set(names))
    if len(names) != 1 or prompt is None:
        return []
    note = f"the objects in {names[0]} became completions with ranks or scores"
    return [Rewrite(partial(_split_ranked, name=names[0], prompt=prompt), note)]


def _has_ranks(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict)
        and len(item.keys() & TEXT_KEYS) == 1
        and len(item.keys() & RANK_KEYS) + len(item.keys() & SCORE_KEYS) > 0
        and len(item.keys() & SCORE_KEYS) < 2
        for item in value
    )


def _split_ranked(row: Row, *, name: str, prompt: str) -> Row:
    items = get_column(row, name)
    if not _has_ranks(items):
        expected = f'"{name}" must be a list of objects with a text and a rank or score'
        raise RowError("not a list of completions", expected, items)
    new = {"completions": [item[key] for item in items for key in item.keys() & TEXT_KEYS]}
    for target, keys in (("ranks", RANK_KEYS), ("scores", SCORE_KEYS)):
        values = [item[key] for item in items for key in item.keys() & keys]
        new |= {target: values} if values else {}
    rest = {key: value for key, value in row.items() if key not in (name, prompt)}
    return {"prompt": get_column(row, prompt)} | rest | new


def _prompt_column(columns: set[str]) -> str | None:
    """The column of the prompt; None if no column, or more than one, may be it."""
    names = [name for name in PROMPTS if name in columns]
    if "prompt" in columns:
        return "prompt"
    return names[0] if len(names) == 1 else None


@dataclass(frozen=True)
class Pair:
    """Two columns of answers, and the column that names the better one."""

    names: tuple[str, str]
    ends: tuple[str, str]
    winner: str = ""

    def side(self, value: Any) -> int | None:
        """1 or 2 for the better answer, 0 for a tie; None if it is not certain."""
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            return None
        number = finite_number(value)
        if self.winner.lower() in SIGNED:
            return None if number is None else int(number > 0) * 2 or int(number < 0)
        word = str(int(number)) if number is not None and number == int(number) else str(value)
        word = word.strip(" []").lower()
        if word in TIES:
            return 0
        for side, (name, end) in enumerate(zip(self.names, self.ends, strict=True), start=1):
            if word == name.lower() or re.fullmatch(SIDE + end, word):
                return side
        return None

    @property
    def is_flag(self) -> bool:
        """Whether the column's name is about one answer (`is_answer_0_better`): its 1 may mean "yes"."""
        words = set(re.split(r"[^a-z0-9]+|(?<=[a-z])(?=[0-9])", self.winner.lower()))
        return bool(words & {*self.ends, *FLAG_WORDS})

    def is_clear(self, values: Sequence[Any]) -> bool:
        """Whether nearly all values name an answer, and numbers name both: 1 may mean "yes"."""
        sides = [self.side(v) for v in values if str(v).lower() not in BAD_TIES]
        numbers = [number for v in values if (number := finite_number(v)) is not None]
        if self.winner.lower() in SIGNED:
            return min(numbers, default=0) < 0 and len(numbers) >= NEARLY_ALL * len(values)
        if 2 * len(numbers) > len(values) and (
            self.is_flag
            or self.winner.lower().startswith("label")
            or set(map(self.side, numbers)) != {1, 2}
        ):
            return False
        return sides.count(None) <= (1 - NEARLY_ALL) * len(sides) and bool({1, 2} & set(sides))


def _find_pair(rows: Sequence[Row], columns: set[str]) -> tuple[list[Rewrite], str]:
    """Two columns of answers with a column that names the better one; or why it is not certain."""
    pair = answer_columns(rows, columns)
    if pair is None:
        return [], ""
    clear, doubtful = [], []
    for name in sorted(n for n in columns if WINNER.search(n) or n == "chosen"):
        values = [row[name] for row in rows if not is_blank(row.get(name))]
        one = Pair(pair.names, pair.ends, name)
        if one.is_clear(values):
            clear.append(one)
        elif all(isinstance(value, int | float) for value in values):
            doubtful.append(f'"{name}" has {as_json(sorted(set(values)))}')
    both = f'"{pair.names[0]}" and "{pair.names[1]}"'
    fix = "Write the better one as `chosen` and the other as `rejected`"
    if not clear:
        reason = "; ".join(doubtful) or "no column names it"
        return [], f"It is not certain which of {both} is better: {reason}. {fix}."
    sides = [[one.side(row.get(one.winner)) for row in rows] for one in clear]
    if any(other != sides[0] for other in sides):
        names, last = " and ".join(one.winner for one in clear), clear[-1].winner
        example = f"`columns: {{{last}: {last}_unused}}`"
        return [], f"{names} name different better answers of {both}; keep one, such as {example}."
    prompt = _prompt_column(columns - {*pair.names})
    has_dialogues = all(_most(rows, name, _has_messages) for name in pair.names)
    if prompt is None and not has_dialogues:
        return [], f"{both} need a `prompt`; name its column, such as `columns: {{post: prompt}}`."
    note = f"{both.replace(chr(34), '')} are the answers, {clear[0].winner} names the better one"
    return [Rewrite(partial(_rank_pair, pair=clear[0], prompt=prompt), note)], ""


def answer_columns(rows: Sequence[Row], columns: set[str]) -> Pair | None:
    """The only two numbered or lettered columns with answers."""
    groups: dict[str, dict[str, str]] = {}
    for name in columns:
        match = ANSWER.fullmatch(name)
        if match and _most(rows, name, lambda value: isinstance(value, str | list)):
            groups.setdefault(match["stem"].lower(), {})[match["end"].lower()] = name
    pairs = [
        Pair((group[a], group[b]), (a, b))
        for group in groups.values()
        for a, b in ENDS
        if sorted(group) == [a, b]
    ]
    return pairs[0] if len(pairs) == 1 else None


def names_second(name: str, values: Collection[Any]) -> bool:
    """Whether a column's values name one of two answers, and not always the first."""
    flags = {value: as_flag(value) for value in values}
    numbers = {finite_number(v) if flag is None else float(flag) for v, flag in flags.items()}
    if numbers == {1, 2}:
        return not STRENGTH.search(name)
    if numbers <= {0, 1, -1}:
        return len(numbers) > 1
    for ends in ENDS:
        sides = {Pair(("chosen", "rejected"), ends).side(value) for value in values}
        if 2 in sides and None not in sides:
            return True
    return False


def _rank_pair(row: Row, *, pair: Pair, prompt: str | None) -> Row:
    """The two answers as completions with ranks; a tie has equal ranks."""
    answers = [get_column(row, name) for name in pair.names]
    value = get_column(row, pair.winner)
    side = pair.side(value)
    if side is None:
        expected = f'"{pair.winner}" must name "{pair.names[0]}", "{pair.names[1]}" or a tie'
        raise RowError("no winner", expected, value)
    shared: Mapping[str, Any] = {"prompt": answers[0][:-1]} if prompt is None else {}
    used = {*pair.names, pair.winner, prompt}
    rest = {key: value for key, value in row.items() if key not in used}
    question = shared or {"prompt": get_column(row, str(prompt))}
    ranks = {0: [1, 1], 1: [1, 2], 2: [2, 1]}[side]
    return {**question, **rest, "completions": answers, "ranks": ranks}
