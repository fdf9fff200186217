"""Argument dataclasses of the recipes, used together with TRL's."""

# ruff: noqa: RUF009 (`option` makes a dataclass field)
import math
from dataclasses import dataclass
from typing import Annotated, Literal

from toolkit.options.fields import (
    AtLeast1,
    NotNegative,
    Positive,
    between,
    check_options,
    option,
)
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

    dataset_format: str | None = option(
        None, "Format of the rows; default: detected from the columns."
    )
    columns: dict[str, str] | str | None = option(
        None,
        "Renames columns, {yours: expected}; as JSON on the command line, such as "
        '{"question": "prompt"}.',
    )
    sources: list[SourceArguments] = option(
        list,
        "A mixture of datasets, set in the YAML: a list of entries with dataset_name, "
        "fraction, columns, split, dataset_config, dataset_format (docs/data.md).",
    )
    pairs: Literal["all", "best"] = option(
        "all", "Pairs of a ranking: all, or the best against each of the rest."
    )
    drop_bad_rows: bool = option(
        False,
        "Drop malformed rows and list them in dropped_rows.jsonl, instead of stopping at the "
        "first one.",
    )
    drop_duplicates: bool = option(False, "Drop rows that repeat an earlier row.")
    max_rows: AtLeast1[int | None] = option(
        None, "Use only the first rows of each split (a quick trial)."
    )

    def __post_init__(self) -> None:
        check_options(self)
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

    parent: str | None = option(
        None, "Run directory whose adapter this run starts from: the SFT run."
    )


@dataclass
class SFTArguments(ParentArguments):
    """The adapter that SFT continues, and the turns of a dialogue on which it trains."""

    parent: str | None = option(
        None, "Run directory whose adapter SFT continues; default: a new adapter."
    )
    turns: Literal["all", "last"] = option(
        "all", "Examples of a dialogue: one for each assistant turn, or only the last turn."
    )


@dataclass
class RewardArguments(ParentArguments):
    """The run that reward models start from, their calibration, and their number."""

    demonstrations: str | None = option(
        None, "Prompt-completion dataset whose mean reward becomes 0."
    )
    unit_variance: bool = option(
        False, "Also scale scores: the demonstrations' scores get variance 1."
    )
    shuffle_pairs: bool = option(
        False, "Train on each pair separately instead of on all pairs of a prompt together."
    )
    ensemble: AtLeast1[int] = option(
        1, "Number of reward models to train on one base, in member-0, member-1, …"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit_variance and self.demonstrations is None:
            raise ValueError("`unit_variance` needs `demonstrations` to measure the variance on")


@dataclass
class OnlineArguments(ParentArguments):
    """The runs that the policy and the reward of PPO, RLOO and GRPO come from."""

    reward_model: list[str] = option(
        list, "Run directory of the reward model; several make an ensemble."
    )
    reward_funcs: list[str] = option(
        list,
        "Python reward functions, FILE.py:FUNCTION or package.module:FUNCTION. Their "
        "weighted sum (`reward_weights`) is added to the reward model's score, or is the "
        "only reward. They run code, so they can only be set on the command line.",
    )
    eval_prompts: AtLeast1[int] = option(
        96, "Number of held-out prompts (the first ones) per evaluation during training."
    )


@dataclass
class PPOArguments(OnlineArguments):
    """PPO's arguments."""

    ptx_texts: str | None = option(
        None, "Pretraining text for ptx_coef: world:corpus, or JSONL with `text`."
    )


@dataclass
class BaseArguments:
    """Shape of the embedded world's base."""

    vocab_size: int = option(1536, "Tokens in the vocabulary.")
    tokenizer_documents: int = option(20000, "Documents to train on.")
    hidden_size: int = option(192, "Width of the trunk.")
    intermediate_size: int = option(512, "Width of the MLP.")
    num_hidden_layers: int = option(5, "Number of layers.")
    num_attention_heads: int = option(4, "Heads per layer.")
    width: int = option(128, "Tokens per row of the packed corpus.")


@dataclass
class LabelArguments:
    """Number and sources of the comparisons of the embedded world."""

    parent: str | None = option(None, "Run directory of the SFT model whose answers are ranked.")
    earlier: str | None = option(
        None, "Earlier comparisons, whose rows are written before the new ones."
    )
    output_dir: str = option("runs/world/comparisons", "Where to write.")
    seed: int = option(0, "Seed of samples, panel and prompts.")
    train_prompts: Annotated[int, between(1, 2000)] = option(  # the world has few more questions
        500, "Training prompts whose answers are ranked."
    )
    test_prompts: Annotated[int, between(1, 450)] = option(
        150, "Test prompts whose answers are ranked."
    )
    completions: int = option(3, "Answers per prompt from the parent.")
    base_completions: int = option(1, "Answers per prompt from the base.")
    written_vices: int = option(1, "Rule-based bad answers per prompt.")
    temperature: Positive[float] = option(1.0, "Sampling temperature.")
    max_new_tokens: AtLeast1[int] = option(64, "Maximum tokens of an answer.")
    trust_remote_code: bool = option(
        False, "Run Python code of the model; only on the command line."
    )

    def __post_init__(self) -> None:
        check_options(self)
        counts = (self.completions, self.base_completions, self.written_vices)
        if min(counts) < 0 or not 2 <= sum(counts) <= MAX_SAMPLES:
            raise ValueError(
                "`completions`, `base_completions` and `written_vices` must each be 0 or more, and "
                f"their sum in 2…{MAX_SAMPLES}, got {counts}"
            )


@dataclass
class SampleArguments(ParentArguments):
    """The answers to sample, their scores, and the files to write."""

    parent: str | None = option(
        None, "Run directory of the policy that answers; default: the base itself."
    )
    reward_model: list[str] = option(
        list, "Run directory of the reward model; several make an ensemble."
    )
    reward_funcs: list[str] = option(
        list,
        "Python reward functions, as for PPO; their sum is added to the reward model's "
        "score, or is the score. They run code, so they can only be set on the command line.",
    )
    num_generations: Annotated[int, between(2, MAX_SAMPLES)] = option(
        16, "Answers per prompt: the n."
    )
    temperature: Positive[float] = option(1.0, "Sampling temperature.")
    max_new_tokens: AtLeast1[int] = option(64, "Maximum tokens of an answer.")
    write_best: bool = option(True, "Write best.jsonl: the best answer to each prompt, for SFT.")
    write_pairs: Literal["none", "extremes", "all"] = option(
        "extremes",
        "Write pairs.jsonl, for DPO and the reward model: the best answer against the worst "
        "(extremes), every two answers with different scores (all), or no file (none).",
    )
    generation_batch_size: AtLeast1[int] = option(128, "Answers sampled together.")
    batch_size: AtLeast1[int] = option(32, "Answers scored together.")
    seed: int = option(0, "Seed of the answers.")
    output_dir: str = option("runs/sample", "Where to write.")
    resume_from_checkpoint: bool = option(False, "Continue a run that was interrupted.")
    trust_remote_code: bool = option(
        False, "Run Python code of the model; only on the command line."
    )


@dataclass
class MergeArguments:
    """The run to merge into its base, and the output directory."""

    parent: str | None = option(None, "Run directory whose adapter is merged into the base.")
    output_dir: str = option("runs/merged", "A new directory for the merged model.")
    trust_remote_code: bool = option(
        False, "Run Python code of the model; only on the command line."
    )


@dataclass
class AnswerArguments:
    """Answers to held-out prompts, and the reward functions that score them."""

    reward_funcs: list[str] = option(
        list,
        "Python reward functions, as for PPO; their sum is added to the reward model's "
        "score, or is the score. They run code, so they can only be set on the command line.",
    )
    drop_bad_rows: bool = option(
        False, "Drop and count malformed rows instead of stopping at the first one."
    )
    prompts: str | None = option(
        None,
        "Dataset of held-out prompts. Default: those that the run held out; in a report, "
        "those of the first run after SFT.",
    )
    prompts_split: str = option("test", "Split of `prompts`.")
    max_prompts: AtLeast1[int | None] = option(None, "Number of prompts to use.")
    samples_per_prompt: Annotated[int, between(1, MAX_SAMPLES)] = option(
        1, "Answers per prompt; more give narrower intervals."
    )
    temperature: NotNegative[float] = option(0.7, "Temperature of the main sampling.")
    max_new_tokens: AtLeast1[int] = option(64, "Maximum tokens of an answer.")
    batch_size: AtLeast1[int] = option(32, "Answers scored together.")
    generation_batch_size: AtLeast1[int] = option(32, "Prompts sampled together.")
    seed: int = option(0, "Seed of the samples and the intervals.")
    trust_remote_code: bool = option(
        False, "Run Python code of the model; only on the command line."
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass
class ChooseArguments(AnswerArguments):
    """The run whose checkpoints are compared, and the reward models."""

    parent: str | None = option(None, "Run directory with the checkpoints: an SFT run.")
    reward_model: list[str] = option(
        list, "Run directory of the reward model; several make an ensemble."
    )
    output_dir: str = option("runs/chosen", "Run directory for the chosen checkpoint.")


@dataclass
class EvaluateArguments(AnswerArguments):
    """The runs to compare, the data, and the sampling."""

    runs: list[str] = option(list, "Run directories; the first SFT run is the reference.")
    reward_model: str | None = option(
        None, "Run of a reward model, or an ensemble (its mean score is used)."
    )
    comparisons: str | None = option(
        None,
        "Preference dataset; the reward model is evaluated on its test split. Default: the "
        "comparisons that the reward model's run held out.",
    )
    demonstrations: str | None = option(
        None, "Dataset of few-shot examples; the report contains their mean score."
    )
    texts: str | None = option(
        None, "Held-out text for lm_loss: world:corpus, or JSONL with `text`."
    )
    best_of: Annotated[list[int], between(1, MAX_SAMPLES)] = option(
        list,
        "Also evaluate best-of-n of the SFT run for each of these n: the answer with the "
        "best score of n.",
    )
    few_shot: NotNegative[int | None] = option(
        None,
        "Demonstrations in the base's prompt. Default: none if the base has a chat template "
        "of its own, else 4.",
    )
    other_temperatures: NotNegative[list[float] | None] = option(
        None,
        "Further samplings for the report; 0 is greedy. Default: none, or 1 and 0 if all "
        "prompts are questions of the embedded world.",
    )
    output_dir: str = option("runs/report", "Directory of the report.")
    timings: str | None = option(None, "Seconds of earlier stages, as JSON, for the report.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.runs:
            raise ValueError("`runs` is missing: name at least the SFT run")
