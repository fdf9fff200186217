"""Answers a list of prompts with several checkpoints: one row per answer, for a table and for files."""

import csv
import io
import json
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from toolkit.app.answering.request import MAX_PROMPT_CHARACTERS, Answer
from toolkit.errors import BusyError, ConfigError
from toolkit.reading import parse_json

if TYPE_CHECKING:
    from toolkit.app.workbench import AnswersInOrder, Workbench

MAX_PROMPTS = 500
AT_ONCE = 4  # prompts that wait for their answers; other visitors' questions have room in the queue
BUSY_WAIT_S = 0.5
LINE_END = re.compile(r"\r\n|\r|\n")  # str.splitlines also splits at U+2028, U+0085 and form feeds
FORMULA = tuple("=+-@\t\r")  # a spreadsheet computes a cell that starts with one of these


@dataclass(frozen=True)
class BatchRow:
    """One answer. `number` is the prompt's number, from 1; missing metrics are None."""

    number: int
    prompt: str
    checkpoint: str
    answer: str
    score: float | None
    kl: float | None
    tokens: int
    ended: bool
    problem: str


def parse_prompts(text: object) -> list[str]:
    """The distinct prompts of a text: one prompt, or one JSON object with `prompt`, per line.

    Raises: ConfigError if a line is not usable or there are too many.
    """
    prompts: dict[str, None] = {}
    for number, line in enumerate(LINE_END.split(str(text or "")), start=1):
        prompt = _prompt(line.strip(), number)
        if len(prompt) > MAX_PROMPT_CHARACTERS:
            raise ConfigError(
                f"line {number}: the prompt has {len(prompt):,} characters; at most "
                f"{MAX_PROMPT_CHARACTERS:,} are allowed. Shorten it"
            )
        if prompt:
            prompts[prompt] = None
    if not prompts:
        raise ConfigError("there are no prompts; paste or open a file with one prompt per line")
    if len(prompts) > MAX_PROMPTS:
        raise ConfigError(
            f"{len(prompts):,} prompts; at most {MAX_PROMPTS} are allowed. Remove some, or use "
            "`toolkit app --ask` in a script"
        )
    return list(prompts)


def prompt_line(prompt: str) -> str:
    """A prompt as one line that `parse_prompts` reads."""
    text = prompt.strip()
    return json.dumps({"prompt": text}) if LINE_END.search(text) or text[:1] == "{" else text


def _prompt(line: str, number: int) -> str:
    if not line.startswith("{"):
        return line
    try:
        row = parse_json(line)
    except ValueError as error:
        if line[1:].lstrip().startswith('"prompt"'):
            raise ConfigError(
                f"line {number}: not valid JSON ({error}); correct the line"
            ) from error
        return line  # a prompt may start with a brace
    prompt = row.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], dict):
        prompt = prompt[0].get("content")  # one message
    if not isinstance(prompt, str):
        raise ConfigError(
            f'line {number}: a JSON line needs "prompt" with a text or one message; got '
            f"{json.dumps(prompt)[:60]}"
        )
    return prompt.strip()


def answer_all(
    workbench: "Workbench", prompts: Sequence[str], checkpoints: object, **settings: Any
) -> Iterator[list[BatchRow]]:
    """Yield all rows so far, about twice a second while the answers are generated.

    Args:
        settings: as for `Workbench.compare`.

    Raises: the errors of `Workbench.compare`. Closing the iterator cancels the remaining answers.
    """
    rows: list[BatchRow] = []
    left = deque(enumerate(prompts, start=1))
    running: deque[tuple[int, str, AnswersInOrder]] = deque()
    try:
        while left or running:
            while left and len(running) < AT_ONCE:
                number, prompt = left[0]
                try:
                    answers = workbench.compare(prompt, checkpoints, **settings)
                except BusyError:
                    if not running:
                        time.sleep(BUSY_WAIT_S)
                        yield list(rows)
                    break
                left.popleft()
                running.append((number, prompt, answers))
            if not running:
                continue
            number, prompt, answers = running[0]
            for answer in answers.beats():
                if answer is not None:
                    rows.append(_row(number, prompt, answer))
                yield list(rows)
            running.popleft()
    finally:
        for *_, answers in running:
            answers.close()


def _row(number: int, prompt: str, answer: Answer) -> BatchRow:
    return BatchRow(
        *(number, prompt, answer.name, answer.text, answer.score, answer.kl, answer.tokens),
        *(answer.ended, answer.problem or ""),
    )


def to_jsonl(rows: Sequence[BatchRow]) -> str:
    """One JSON object per line."""
    return "".join(f"{json.dumps(asdict(row), ensure_ascii=False)}\n" for row in rows)


def to_csv(rows: Sequence[BatchRow]) -> str:
    """CSV with a header. A text that a spreadsheet would run as a formula gets an apostrophe first."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(BatchRow.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: _plain(v) if isinstance(v, str) else v for k, v in asdict(row).items()})
    return out.getvalue()


def _plain(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA) else text
