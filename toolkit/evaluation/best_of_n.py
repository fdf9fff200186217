"""Best-of-n: ranked lists of answers in a file, and the training data and the numbers made from them."""

import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from toolkit.data.encoding import Prompt
from toolkit.data.messages import Row, assistant
from toolkit.errors import CheckpointError
from toolkit.evaluation.answers import AnswerScorer, is_usable
from toolkit.evaluation.metrics import rounded
from toolkit.evaluation.scoring import evaluating
from toolkit.models.roles import Roles
from toolkit.reading import parse_json
from toolkit.reward.functions import RewardFunction
from toolkit.runs.replacing import MADE_FROM_STREAMED
from toolkit.runs.run import replacing_file
from toolkit.sampling.generation import Completion
from toolkit.sampling.settings import Sampling

Pairs = Literal["none", "extremes", "all"]


def best_of_n_kl(n: int) -> float:
    """The KL of best-of-n from the sampled policy in nats, log n − (n−1)/n; with equal scores it is less.

    Source: Hilton, https://www.jacobh.co.uk/bon_kl.pdf, as in Stiennon et al. 2020, arXiv:2009.01325.
    """
    return math.log(n) - (n - 1) / n


def seeds_of(seed: int, number: int, n: int) -> list[int]:
    """The seeds of the answers to prompt `number`; a larger `n` adds seeds and changes none."""
    digests = (hashlib.sha256(f"{seed} {number} {i}".encode()).digest() for i in range(n))
    return [int.from_bytes(digest[:8]) >> 1 for digest in digests]


def rank_answers(
    roles: Roles,
    tokenizer: PreTrainedTokenizerBase,
    rows: Mapping[int, Row],
    *,
    role: str | None,
    functions: Sequence[RewardFunction],
    n: int,
    sampling: Sampling,
    seed: int,
    generation_batch_size: int,
    batch_size: int,
) -> list[Row]:
    """Sample `n` answers to each prompt, and score them with all attached reward roles and the functions.

    Args:
        rows: the prompts' rows by number. The number decides which answers are sampled.
        role: the role that answers; None is the base.
        generation_batch_size: answers sampled together.
        batch_size: answers scored together.

    Returns: a ranked row for each prompt; see `ranked_row`.
    """
    prompts = [row["prompt"] for row in rows.values()]
    others = [name for name in next(iter(rows.values())) if name != "prompt"]
    scorer = AnswerScorer(roles, tokenizer, prompts, (), batch_size)
    seeds = zip(*(seeds_of(seed, number, n) for number in rows), strict=True)
    with evaluating(roles):
        drawn = scorer.sample(
            role,
            sampling,
            seed=[each for one_per_prompt in seeds for each in one_per_prompt],
            batch_size=generation_batch_size,
            n=n,
        )
        candidates = [drawn[i * len(prompts) :][: len(prompts)] for i in range(n)]
        columns = {name: [row[name] for row in rows.values()] for name in others}
        scores = scorer.score(candidates, roles.rewards, functions, columns)
    assert scores is not None
    return [
        ranked_row(prompt, answers, [scores[at, tuple(answer.ids)] for answer in answers])
        for at, (prompt, *answers) in enumerate(zip(prompts, *candidates, strict=True))
    ]


def ranked_row(prompt: Prompt, answers: Sequence[Completion], scores: Sequence[float]) -> Row:
    """A prompt and its answers, from the highest score to the lowest."""
    scores = [rounded(score) for score in scores]
    order = sorted(range(len(answers)), key=lambda i: -scores[i])
    return {
        "prompt": prompt,
        "completions": [answers[i].text for i in order],
        "scores": [scores[i] for i in order],
        "ended": [answers[i].ended for i in order],
        "tokens": [len(answers[i].ids) for i in order],
    }


def append_rows(file: Path, rows: Iterable[Row]) -> None:
    """Append rows to a JSONL file, and wait until they are on the disk."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write("".join(map(_line, rows)))
        stream.flush()
        os.fsync(stream.fileno())


def count_finished(file: Path, prompts: Sequence[Prompt], batch: int) -> int:
    """The number of prompts whose ranked rows are in the file.

    Rows of an incomplete batch of `batch` prompts are removed: a run was killed while it wrote them.

    Raises: CheckpointError for a row of another prompt.
    """
    finished = position = end = 0
    with file.open("rb+") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                break
            if number > len(prompts) or _prompt_of(line) != prompts[number - 1]:
                raise CheckpointError(
                    f"{file} line {number}: expected the answers to prompt {number} of {len(prompts)}, got "
                    f"{line[:60]!r}; restore the file, or start anew in another output_dir"
                )
            position += len(line)
            if number % batch == 0 or number == len(prompts):
                finished, end = number, position
        stream.truncate(end)
    return finished


def _prompt_of(line: bytes) -> Any:
    try:
        return parse_json(line)["prompt"]
    except (ValueError, KeyError, TypeError):
        return None


def read_rows(file: Path) -> Iterator[Row]:
    """The rows of a JSONL file."""
    with file.open(encoding="utf-8") as stream:
        yield from map(parse_json, stream)


def write_rows(file: Path, rows: Iterable[Row]) -> int:
    """Write a JSONL file, which gets its name when it is complete; returns the number of rows."""
    count = 0
    with replacing_file(file) as stream:
        for row in rows:
            stream.write(_line(row))
            count += 1
    return count


def demonstrations(rows: Iterable[Row]) -> Iterator[Row]:
    """The best usable answer to each prompt as a prompt-completion row."""
    for row in rows:
        for text, score in _usable(row)[:1]:
            yield {
                "prompt": row["prompt"],
                "completion": _as_completion(row["prompt"], text),
                "score": score,
            }


def comparisons(rows: Iterable[Row], pairs: Pairs) -> Iterator[Row]:
    """Preference rows: the best usable answer against the worst ("extremes"), or every two ("all").

    Answers with equal scores are no pair.
    """
    for row in rows:
        usable = _usable(row)
        ends = usable[:1] + usable[1:][-1:]
        for better, worse in itertools.combinations(ends if pairs == "extremes" else usable, 2):
            if better[1] > worse[1]:
                chosen, rejected = (_as_completion(row["prompt"], t) for t, _ in (better, worse))
                yield {
                    "prompt": row["prompt"],
                    "chosen": chosen,
                    "rejected": rejected,
                    "score_chosen": better[1],
                    "score_rejected": worse[1],
                }


def summarize(rows: Iterable[Row]) -> dict[str, Any]:
    """The numbers of ranked rows.

    Returns: `prompts` and `answers`; `score_mean` and `score_std` of all answers; `score_std_within`, the
        mean of the prompts' standard deviations; `best_score_mean` of the best usable answers; `no_spread`,
        the prompts that give no pair, because their usable answers have one score; `no_usable`, those
        without a usable answer; `ended`, the share of answers that ended; `tokens`; `kl_best_of_n`.
    """
    scores, ended, tokens, best, no_spread = [], [], 0, [], 0
    for row in rows:
        usable = [score for _, score in _usable(row)]
        scores.append(row["scores"])
        ended += row["ended"]
        tokens += sum(row["tokens"])
        best += usable[:1]
        no_spread += len(set(usable)) < 2
    table = np.array(scores)  # (prompts, n)
    return {
        "prompts": len(table),
        "answers": table.size,
        "score_mean": rounded(table.mean()),
        "score_std": rounded(table.std()),
        "score_std_within": rounded(table.std(axis=1).mean()),
        "best_score_mean": rounded(np.mean(best)) if best else None,
        "no_spread": no_spread,
        "no_usable": len(table) - len(best),
        "ended": rounded(np.mean(ended)),
        "tokens": tokens,
        "kl_best_of_n": rounded(best_of_n_kl(table.shape[1])),
    }


def write_files(answers: Path, *, best: bool, pairs: Pairs) -> dict[str, Any]:
    """Write the demonstrations and the comparisons that ranked rows give, beside their file.

    Returns: the numbers of `summarize`, and the rows of each written file.
    """
    results = summarize(read_rows(answers))
    files = [answers.with_name(name) for name in MADE_FROM_STREAMED]
    for file in files:  # an interrupted run may have had other options
        file.unlink(missing_ok=True)
    if best:
        results["demonstrations"] = write_rows(files[0], demonstrations(read_rows(answers)))
    if pairs != "none":
        results["pairs"] = write_rows(files[1], comparisons(read_rows(answers), pairs))
    return results


def describe(results: Mapping[str, Any]) -> str:
    """The results of a run as lines."""
    numbers = {name: f"{value:.3f}" for name, value in results.items() if isinstance(value, float)}
    n, best = results["answers"] // results["prompts"], numbers.get("best_score_mean", "unknown")
    files = [f"{results[key]} {key}" for key in ("demonstrations", "pairs") if key in results]
    lines = [
        f"{results['answers']} answers to {results['prompts']} prompts, {results['ended']:.0%} ended; "
        f"{results['tokens']} tokens in {results['seconds']:.0f} s",
        f"score: mean {numbers['score_mean']}, standard deviation {numbers['score_std']}, within a prompt "
        f"{numbers['score_std_within']}",
        f"best of {n}: mean score {best}, KL {numbers['kl_best_of_n']} nats",
        f"prompts without spread, which give no pair: {results['no_spread']}",
        f"prompts without a usable answer: {results['no_usable']}",
        f"written: {', '.join(files) or 'only the ranked answers'}",
    ]
    return "\n".join(lines)


def _usable(row: Row) -> list[tuple[str, float]]:
    """Text and score of the distinct usable answers."""
    answers: dict[str, tuple[str, float]] = {}
    for text, score, ended in zip(row["completions"], row["scores"], row["ended"], strict=True):
        if is_usable(text, ended=ended):
            answers.setdefault(text.strip(), (text, score))
    return list(answers.values())


def _as_completion(prompt: Prompt, text: str) -> Prompt:
    return text if isinstance(prompt, str) else [assistant(text)]


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
