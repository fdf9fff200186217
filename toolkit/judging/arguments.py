"""Arguments of `toolkit judge`."""

import math
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

BASE = "base"  # as `judge_run`: the base without an adapter


@dataclass
class JudgeArguments:
    """The answers to judge, the judge, and how it is called."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Dataset whose rows have a prompt and two or more answers."},
    )
    votes: str | None = field(
        default=None,
        metadata={
            "help": "File of the app with people's judgements (judgements.sqlite). The report compares the "
            "judge with them. Without `dataset_name`, the answers in this file are judged."
        },
    )
    runs: list[str] = field(
        default_factory=list,
        metadata={"help": "Run directories; their answers to `prompts` are judged."},
    )
    prompts: str | None = field(
        default=None,
        metadata={"help": "Dataset of prompts for `runs`. Default: those that the runs held out."},
    )
    prompts_split: str = field(default="test", metadata={"help": "Split of `prompts`."})
    samples_per_prompt: int = field(
        default=1, metadata={"help": "Answers of each run to a prompt."}
    )
    temperature: float = field(default=0.7, metadata={"help": "Temperature of the answers."})
    max_new_tokens: int = field(default=64, metadata={"help": "Maximum tokens of an answer."})
    generation_batch_size: int = field(default=32, metadata={"help": "Answers sampled together."})
    dataset_split: str = field(default="train", metadata={"help": "Split of `dataset_name`."})
    drop_bad_rows: bool = field(
        default=False,
        metadata={"help": "Drop and count malformed rows instead of stopping at the first one."},
    )
    max_prompts: int | None = field(
        default=None, metadata={"help": "Judge only the first prompts or rows."}
    )
    mode: Literal["pairwise", "aspects"] = field(
        default="pairwise",
        metadata={
            "help": "pairwise: every two answers, in both orders. aspects: each answer gets a rating from "
            "1 to 5 for instruction following, truthfulness, honesty and helpfulness."
        },
    )
    judge_url: str | None = field(
        default=None,
        metadata={
            "help": "OpenAI-compatible endpoint, such as http://localhost:8000/v1. The key is read from "
            "the environment variable TOOLKIT_JUDGE_KEY."
        },
    )
    judge_model: str | None = field(
        default=None, metadata={"help": "The model's name at the endpoint."}
    )
    judge_run: str | None = field(
        default=None,
        metadata={
            "help": "A run on the same base that judges without a server, or `base` for the base itself."
        },
    )
    batch_size: int = field(
        default=8, metadata={"help": "Replies of `judge_run` that are scored together."}
    )
    judge_prompt: str | None = field(
        default=None,
        metadata={"help": "Text file with the judge's instructions. Default: the shipped one."},
    )
    max_judge_tokens: int = field(
        default=512, metadata={"help": "Maximum tokens of a reply from the endpoint."}
    )
    concurrency: int = field(default=8, metadata={"help": "Requests at the same time."})
    timeout: float = field(default=120.0, metadata={"help": "Seconds until a request is repeated."})
    retries: int = field(
        default=6, metadata={"help": "Repetitions of a failed request, with growing pauses."}
    )
    malformed_retries: int = field(
        default=2, metadata={"help": "Further requests after a reply that does not fit the schema."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the samples and the intervals."})
    output_dir: str = field(default="runs/judge", metadata={"help": "Where to write."})
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run Python code of the model; only on the command line."},
    )

    def __post_init__(self) -> None:
        lowest = {"concurrency": 1, "max_judge_tokens": 1, "retries": 0, "malformed_retries": 0}
        lowest |= {"samples_per_prompt": 1, "max_new_tokens": 1, "batch_size": 1}
        for name, low in (lowest | {"max_prompts": 1, "generation_batch_size": 1}).items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"`{name}` must be at least {low}, got {value}")
        if not 0 < self.timeout < math.inf:
            raise ValueError(f"`timeout` must be finite and above 0 seconds, got {self.timeout}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"`temperature` must be finite and at least 0, got {self.temperature}")
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
