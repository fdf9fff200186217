"""Argument dataclasses of the recipes, used together with TRL's."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from toolkit.reading import parse_json

MAX_SAMPLES = 1000  # answers per prompt


@dataclass
class SourceArguments:
    """One dataset of a mixture: an entry of `sources`."""

    dataset_name: str
    dataset_config: str | None = None
    split: str = "train"
    fraction: float | None = None
    columns: dict[str, str] | None = None
    dataset_format: str | None = None

    def __post_init__(self) -> None:
        if self.fraction is not None and not 0 < self.fraction < math.inf:
            raise ValueError(
                f"{self.dataset_name}: `fraction` must be a finite number above 0, got {self.fraction}"
            )
        self.columns = _column_map(self.columns)


@dataclass
class DataArguments:
    """How rows are read; used together with TRL's arguments."""

    dataset_format: str | None = field(
        default=None,
        metadata={"help": "Format of the rows; default: detected from the columns."},
    )
    columns: dict[str, str] | str | None = field(
        default=None,
        metadata={
            "help": "Renames columns, {yours: expected}; as JSON on the command line, such as "
            '{"question": "prompt"}.'
        },
    )
    sources: list[SourceArguments] = field(
        default_factory=list,
        metadata={
            "help": "A mixture of datasets, set in the YAML: a list of entries with dataset_name, "
            "fraction, columns, split, dataset_config, dataset_format (docs/data.md)."
        },
    )
    pairs: Literal["all", "best"] = field(
        default="all",
        metadata={"help": "Pairs of a ranking: all, or the best against each of the rest."},
    )
    drop_bad_rows: bool = field(
        default=False,
        metadata={
            "help": "Drop malformed rows and list them in dropped_rows.jsonl, instead of stopping "
            "at the first one."
        },
    )
    drop_duplicates: bool = field(
        default=False, metadata={"help": "Drop rows that repeat an earlier row."}
    )
    max_rows: int | None = field(
        default=None, metadata={"help": "Use only the first rows of each split (a quick trial)."}
    )

    def __post_init__(self) -> None:
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"`max_rows` must be at least 1, got {self.max_rows}")
        self.columns = _column_map(self.columns)
        self.sources = [
            SourceArguments(**source) if isinstance(source, dict) else source
            for source in self.sources
        ]


def _column_map(columns: dict[str, str] | str | None) -> dict[str, str] | None:
    """`columns` as a mapping.

    Raises: ValueError if it is not a mapping of names, or gives two columns the same name.
    """
    if isinstance(columns, str):
        try:
            columns = parse_json(columns)
        except ValueError as error:
            raise ValueError(f"`columns` must be a JSON object, got {columns!r}") from error
    if columns is None:
        return None
    if not isinstance(columns, dict) or not all(
        isinstance(name, str) for pair in columns.items() for name in pair
    ):
        raise ValueError(f"`columns` must map names to names, got {columns!r}")
    if len(set(columns.values())) < len(columns):
        raise ValueError(f"`columns` gives two columns the same name, got {columns!r}")
    return columns


@dataclass
class ParentArguments(DataArguments):
    """The run whose adapter a run starts from."""

    parent: str | None = field(
        default=None,
        metadata={"help": "Run directory whose adapter this run starts from: the SFT run."},
    )


@dataclass
class SFTArguments(ParentArguments):
    """The adapter that SFT continues, and the turns of a dialogue on which it trains."""

    parent: str | None = field(
        default=None,
        metadata={"help": "Run directory whose adapter SFT continues; default: a new adapter."},
    )
    turns: Literal["all", "last"] = field(
        default="all",
        metadata={
            "help": "Examples of a dialogue: one for each assistant turn, or only the last turn."
        },
    )


@dataclass
class RewardArguments(ParentArguments):
    """The run that reward models start from, their calibration, and their number."""

    demonstrations: str | None = field(
        default=None,
        metadata={"help": "Prompt-completion dataset whose mean reward becomes 0."},
    )
    unit_variance: bool = field(
        default=False,
        metadata={"help": "Also scale scores: the demonstrations' scores get variance 1."},
    )
    shuffle_pairs: bool = field(
        default=False,
        metadata={
            "help": "Train on each pair separately instead of on all pairs of a prompt together."
        },
    )
    ensemble: int = field(
        default=1,
        metadata={"help": "Number of reward models to train on one base, in member-0, member-1, …"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ensemble < 1:
            raise ValueError(f"`ensemble` must be at least 1, got {self.ensemble}")
        if self.unit_variance and self.demonstrations is None:
            raise ValueError("`unit_variance` needs `demonstrations` to measure the variance on")


@dataclass
class OnlineArguments(ParentArguments):
    """The runs that the policy and the reward of PPO, RLOO and GRPO come from."""

    reward_model: list[str] = field(
        default_factory=list,
        metadata={"help": "Run directory of the reward model; several make an ensemble."},
    )
    reward_funcs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Python reward functions, FILE.py:FUNCTION or package.module:FUNCTION. Their "
            "weighted sum (`reward_weights`) is added to the reward model's score, or is the only "
            "reward. They run code, so they can only be set on the command line."
        },
    )
    eval_prompts: int = field(
        default=96,
        metadata={
            "help": "Number of held-out prompts (the first ones) per evaluation during training."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eval_prompts < 1:
            raise ValueError(f"`eval_prompts` must be at least 1, got {self.eval_prompts}")


@dataclass
class PPOArguments(OnlineArguments):
    """PPO's arguments."""

    ptx_texts: str | None = field(
        default=None,
        metadata={"help": "Pretraining text for ptx_coef: world:corpus, or JSONL with `text`."},
    )


@dataclass
class BaseArguments:
    """Shape of the embedded world's base."""

    vocab_size: int = field(default=1536, metadata={"help": "Tokens in the vocabulary."})
    tokenizer_documents: int = field(default=20000, metadata={"help": "Documents to train on."})
    hidden_size: int = field(default=192, metadata={"help": "Width of the trunk."})
    intermediate_size: int = field(default=512, metadata={"help": "Width of the MLP."})
    num_hidden_layers: int = field(default=5, metadata={"help": "Number of layers."})
    num_attention_heads: int = field(default=4, metadata={"help": "Heads per layer."})
    width: int = field(default=128, metadata={"help": "Tokens per row of the packed corpus."})


@dataclass
class LabelArguments:
    """Number and sources of the comparisons of the embedded world."""

    parent: str | None = field(
        default=None, metadata={"help": "Run directory of the SFT model whose answers are ranked."}
    )
    earlier: str | None = field(
        default=None,
        metadata={"help": "Earlier comparisons, whose rows are written before the new ones."},
    )
    output_dir: str = field(default="runs/world/comparisons", metadata={"help": "Where to write."})
    seed: int = field(default=0, metadata={"help": "Seed of samples, panel and prompts."})
    train_prompts: int = field(
        default=500, metadata={"help": "Training prompts whose answers are ranked."}
    )
    test_prompts: int = field(
        default=150, metadata={"help": "Test prompts whose answers are ranked."}
    )
    completions: int = field(default=3, metadata={"help": "Answers per prompt from the parent."})
    base_completions: int = field(default=1, metadata={"help": "Answers per prompt from the base."})
    written_vices: int = field(default=1, metadata={"help": "Rule-based bad answers per prompt."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    max_new_tokens: int = field(default=64, metadata={"help": "Maximum tokens of an answer."})
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run Python code of the model; only on the command line."},
    )

    def __post_init__(self) -> None:
        counts = (self.completions, self.base_completions, self.written_vices)
        if min(counts) < 0 or not 2 <= sum(counts) <= MAX_SAMPLES:
            raise ValueError(
                "`completions`, `base_completions` and `written_vices` must each be 0 or more, and "
                f"their sum in 2…{MAX_SAMPLES}, got {counts}"
            )
        for name, most in (("train_prompts", 2000), ("test_prompts", 450)):
            if not 1 <= getattr(self, name) <= most:  # the world has few more questions
                raise ValueError(f"`{name}` must be in 1…{most}, got {getattr(self, name)}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"`temperature` must be finite and above 0, got {self.temperature}")
        if self.max_new_tokens < 1:
            raise ValueError(f"`max_new_tokens` must be at least 1, got {self.max_new_tokens}")


@dataclass
class SampleArguments(ParentArguments):
    """The answers to sample, their scores, and the files to write."""

    parent: str | None = field(
        default=None,
        metadata={"help": "Run directory of the policy that answers; default: the base itself."},
    )
    reward_model: list[str] = field(
        default_factory=list,
        metadata={"help": "Run directory of the reward model; several make an ensemble."},
    )
    reward_funcs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Python reward functions, as for PPO; their sum is added to the reward model's score, "
            "or is the score. They run code, so they can only be set on the command line."
        },
    )
    num_generations: int = field(default=16, metadata={"help": "Answers per prompt: the n."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    max_new_tokens: int = field(default=64, metadata={"help": "Maximum tokens of an answer."})
    write_best: bool = field(
        default=True,
        metadata={"help": "Write best.jsonl: the best answer to each prompt, for SFT."},
    )
    write_pairs: Literal["none", "extremes", "all"] = field(
        default="extremes",
        metadata={
            "help": "Write pairs.jsonl, for DPO and the reward model: the best answer against the worst "
            "(extremes), every two answers with different scores (all), or no file (none)."
        },
    )
    generation_batch_size: int = field(default=128, metadata={"help": "Answers sampled together."})
    batch_size: int = field(default=32, metadata={"help": "Answers scored together."})
    seed: int = field(default=0, metadata={"help": "Seed of the answers."})
    output_dir: str = field(default="runs/sample", metadata={"help": "Where to write."})
    resume_from_checkpoint: bool = field(
        default=False, metadata={"help": "Continue a run that was interrupted."}
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run Python code of the model; only on the command line."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_at_least(
            self, dict.fromkeys(("max_new_tokens", "generation_batch_size", "batch_size"), 1)
        )
        if not 2 <= self.num_generations <= MAX_SAMPLES:
            raise ValueError(
                f"`num_generations` must be in 2…{MAX_SAMPLES}, got {self.num_generations}"
            )
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"`temperature` must be finite and above 0, got {self.temperature}")


@dataclass
class MergeArguments:
    """The run to merge into its base, and the output directory."""

    parent: str | None = field(
        default=None, metadata={"help": "Run directory whose adapter is merged into the base."}
    )
    output_dir: str = field(
        default="runs/merged", metadata={"help": "A new directory for the merged model."}
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run Python code of the model; only on the command line."},
    )


@dataclass
class AnswerArguments:
    """Answers to held-out prompts, and the reward functions that score them."""

    reward_funcs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Python reward functions, as for PPO; their sum is added to the reward model's score, "
            "or is the score. They run code, so they can only be set on the command line."
        },
    )
    drop_bad_rows: bool = field(
        default=False,
        metadata={"help": "Drop and count malformed rows instead of stopping at the first one."},
    )
    prompts: str | None = field(
        default=None,
        metadata={
            "help": "Dataset of held-out prompts. Default: those that the run held out; in a report, those "
            "of the first run after SFT."
        },
    )
    prompts_split: str = field(default="test", metadata={"help": "Split of `prompts`."})
    max_prompts: int | None = field(default=None, metadata={"help": "Number of prompts to use."})
    samples_per_prompt: int = field(
        default=1, metadata={"help": "Answers per prompt; more give narrower intervals."}
    )
    temperature: float = field(default=0.7, metadata={"help": "Temperature of the main sampling."})
    max_new_tokens: int = field(default=64, metadata={"help": "Maximum tokens of an answer."})
    batch_size: int = field(default=32, metadata={"help": "Answers scored together."})
    generation_batch_size: int = field(default=32, metadata={"help": "Prompts sampled together."})
    seed: int = field(default=0, metadata={"help": "Seed of the samples and the intervals."})
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run Python code of the model; only on the command line."},
    )

    def __post_init__(self) -> None:
        lowest = {
            "max_new_tokens": 1,
            "batch_size": 1,
            "generation_batch_size": 1,
            "samples_per_prompt": 1,
            "max_prompts": 1,
        }
        _require_at_least(self, lowest)
        if self.samples_per_prompt > MAX_SAMPLES:
            raise ValueError(
                f"`samples_per_prompt` must be in 1…{MAX_SAMPLES}, got {self.samples_per_prompt}"
            )
        _require_temperatures("temperature", [self.temperature])


@dataclass
class ChooseArguments(AnswerArguments):
    """The run whose checkpoints are compared, and the reward models."""

    parent: str | None = field(
        default=None, metadata={"help": "Run directory with the checkpoints: an SFT run."}
    )
    reward_model: list[str] = field(
        default_factory=list,
        metadata={"help": "Run directory of the reward model; several make an ensemble."},
    )
    output_dir: str = field(
        default="runs/chosen", metadata={"help": "Run directory for the chosen checkpoint."}
    )


@dataclass
class EvaluateArguments(AnswerArguments):
    """The runs to compare, the data, and the sampling."""

    runs: list[str] = field(
        default_factory=list,
        metadata={"help": "Run directories; the first SFT run is the reference."},
    )
    reward_model: str | None = field(
        default=None,
        metadata={"help": "Run of a reward model, or an ensemble (its mean score is used)."},
    )
    comparisons: str | None = field(
        default=None,
        metadata={
            "help": "Preference dataset; the reward model is evaluated on its test split. Default: "
            "the comparisons that the reward model's run held out."
        },
    )
    demonstrations: str | None = field(
        default=None,
        metadata={"help": "Dataset of few-shot examples; the report contains their mean score."},
    )
    texts: str | None = field(
        default=None,
        metadata={"help": "Held-out text for lm_loss: world:corpus, or JSONL with `text`."},
    )
    best_of: list[int] = field(
        default_factory=list,
        metadata={
            "help": "Also evaluate best-of-n of the SFT run for each of these n: the answer with the best "
            "score of n."
        },
    )
    few_shot: int | None = field(
        default=None,
        metadata={
            "help": "Demonstrations in the base's prompt. Default: none if the base has a chat template of "
            "its own, else 4."
        },
    )
    other_temperatures: list[float] | None = field(
        default=None,
        metadata={
            "help": "Further samplings for the report; 0 is greedy. Default: none, or 1 and 0 if all "
            "prompts are questions of the embedded world."
        },
    )
    output_dir: str = field(default="runs/report", metadata={"help": "Directory of the report."})
    timings: str | None = field(
        default=None, metadata={"help": "Seconds of earlier stages, as JSON, for the report."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.runs:
            raise ValueError("`runs` is missing: name at least the SFT run")
        _require_at_least(self, {"few_shot": 0})
        if not all(1 <= n <= MAX_SAMPLES for n in self.best_of):
            raise ValueError(f"`best_of` must be in 1…{MAX_SAMPLES}, got {self.best_of}")
        _require_temperatures("other_temperatures", self.other_temperatures)


def _require_at_least(options: Any, lowest: Mapping[str, int]) -> None:
    for name, low in lowest.items():
        value = getattr(options, name)
        if value is not None and value < low:
            raise ValueError(f"`{name}` must be at least {low}, got {value}")


def _require_temperatures(name: str, values: list[float] | None) -> None:
    if not all(0 <= value < math.inf for value in values or []):
        raise ValueError(f"`{name}` must be finite and at least 0, got {values}")
