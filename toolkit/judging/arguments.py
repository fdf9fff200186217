"""Arguments of `toolkit judge`."""

# ruff: noqa: RUF009 (`option` makes a dataclass field)
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from toolkit.options.fields import AtLeast1, NotNegative, Positive, check_options, option

BASE = "base"  # as `judge_run`: the base without an adapter


@dataclass
class JudgeArguments:
    """The answers to judge, the judge, and how it is called."""

    dataset_name: str | None = option(
        None, "Dataset whose rows have a prompt and two or more answers."
    )
    votes: str | None = option(
        None,
        "File of the app with people's judgements (judgements.sqlite). The report compares "
        "the judge with them. Without `dataset_name`, the answers in this file are judged.",
    )
    runs: list[str] = option(list, "Run directories; their answers to `prompts` are judged.")
    prompts: str | None = option(
        None, "Dataset of prompts for `runs`. Default: those that the runs held out."
    )
    prompts_split: str = option("test", "Split of `prompts`.")
    samples_per_prompt: AtLeast1[int] = option(1, "Answers of each run to a prompt.")
    temperature: NotNegative[float] = option(0.7, "Temperature of the answers.")
    max_new_tokens: AtLeast1[int] = option(64, "Maximum tokens of an answer.")
    generation_batch_size: AtLeast1[int] = option(32, "Answers sampled together.")
    dataset_split: str = option("train", "Split of `dataset_name`.")
    drop_bad_rows: bool = option(
        False, "Drop and count malformed rows instead of stopping at the first one."
    )
    max_prompts: AtLeast1[int | None] = option(None, "Judge only the first prompts or rows.")
    mode: Literal["pairwise", "aspects"] = option(
        "pairwise",
        "pairwise: every two answers, in both orders. aspects: each answer gets a rating "
        "from 1 to 5 for instruction following, truthfulness, honesty and helpfulness.",
    )
    judge_url: str | None = option(
        None,
        "OpenAI-compatible endpoint, such as http://localhost:8000/v1. The key is read from "
        "the environment variable TOOLKIT_JUDGE_KEY.",
    )
    judge_model: str | None = option(None, "The model's name at the endpoint.")
    judge_run: str | None = option(
        None, "A run on the same base that judges without a server, or `base` for the base itself."
    )
    batch_size: AtLeast1[int] = option(8, "Replies of `judge_run` that are scored together.")
    judge_prompt: str | None = option(
        None, "Text file with the judge's instructions. Default: the shipped one."
    )
    max_judge_tokens: AtLeast1[int] = option(512, "Maximum tokens of a reply from the endpoint.")
    concurrency: AtLeast1[int] = option(8, "Requests at the same time.")
    timeout: Positive[float] = option(120.0, "Seconds until a request is repeated.")
    retries: NotNegative[int] = option(6, "Repetitions of a failed request, with growing pauses.")
    malformed_retries: NotNegative[int] = option(
        2, "Further requests after a reply that does not fit the schema."
    )
    seed: int = option(0, "Seed of the samples and the intervals.")
    output_dir: str = option("runs/judge", "Where to write.")
    trust_remote_code: bool = option(
        False, "Run Python code of the model; only on the command line."
    )

    def __post_init__(self) -> None:
        check_options(self)
        if (self.judge_url is None) == (self.judge_run is None):
            raise ValueError(
                "name one judge: `judge_url` for an OpenAI-compatible endpoint, or `judge_run`"
            )
        sources = [self.dataset_name is not None, bool(self.runs)]
        if sum(sources) > 1 or (not any(sources) and self.votes is None):
            raise ValueError("name what is judged: `dataset_name`, `runs` or `votes`")
        if self.judge_url is not None:
            check_url(self.judge_url)
            if self.judge_model is None:
                raise ValueError("`judge_model` is missing: name the model at `judge_url`")


def check_url(url: str) -> None:
    """Check the address of an endpoint. Raises: ValueError, also for a URL that contains a key."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"`judge_url` must be an address such as http://localhost:8000/v1, got {url!r}"
        )
    if "@" in parts.netloc or parts.query:
        raise ValueError(
            "`judge_url` must not contain a password, a key or other parameters, because run.json "
            "records it; set the environment variable TOOLKIT_JUDGE_KEY"
        )
