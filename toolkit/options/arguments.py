"""Arguments of the recipes, as dataclasses beside TRL's own."""

import json
import math
from dataclasses import dataclass, field
from typing import Literal


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
                f"{self.dataset_name}: `fraction` must be above 0, got {self.fraction}"
            )
        self.columns = _column_map(self.columns)


@dataclass
class DataArguments:
    """How rows are read, beside TRL's own arguments for it."""

    dataset_format: str | None = field(
        default=None,
        metadata={"help": "Name of the rows' format; by default it is detected from the columns."},
    )
    columns: dict[str, str] | str | None = field(
        default=None,
        metadata={
            "help": "Other names for columns, {yours: theirs}; as JSON on the command line, such as "
            '{"question": "prompt"}.'
        },
    )
    sources: list[SourceArguments] = field(
        default_factory=list,
        metadata={
            "help": "A mixture, in the YAML: a list of dataset_name with fraction, columns, split, "
            "dataset_config, dataset_format (docs/data.md)."
        },
    )
    pairs: Literal["all", "best"] = field(
        default="all",
        metadata={"help": "Of a ranking: all its pairs, or the best against each of the rest."},
    )
    drop_bad_rows: bool = field(
        default=False,
        metadata={
            "help": "Drop malformed rows into dropped_rows.jsonl, saying how many, instead of "
            "stopping at them."
        },
    )
    drop_duplicates: bool = field(
        default=False, metadata={"help": "Drop rows that repeat an earlier one, too."}
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


def _column_map(given: dict[str, str] | str | None) -> dict[str, str] | None:
    """`columns` as a mapping.

    Raises: ValueError where it is none, or gives two columns one name.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise ValueError(f"`columns` must be a JSON object, got {given!r}") from error
    if given is None:
        return None
    if not isinstance(given, dict) or not all(
        isinstance(name, str) for pair in given.items() for name in pair
    ):
        raise ValueError(f"`columns` must map names to names, got {given!r}")
    if len(set(given.values())) < len(given):
        raise ValueError(f"`columns` gives two columns the same name, got {given!r}")
    return given


@dataclass
class SFTArguments(DataArguments):
    """What SFT learns of a dialogue."""

    turns: Literal["all", "last"] = field(
        default="all",
        metadata={
            "help": "Of a dialogue: an example for each assistant turn, or one of the last alone."
        },
    )


@dataclass
class ParentArguments(DataArguments):
    """Which adapter a run starts from."""

    parent: str | None = field(
        default=None,
        metadata={"help": "Run directory whose adapter this run starts from: the SFT run."},
    )


@dataclass
class RewardArguments(ParentArguments):
    """What the reward model starts from, where its zero is, and how many there are."""

    demonstrations: str | None = field(
        default=None, metadata={"help": "Prompt-completion dataset whose rewards shall average 0."}
    )
    unit_variance: bool = field(
        default=False,
        metadata={"help": "Also scale scores so that the demonstrations' have variance 1."},
    )
    shuffle_pairs: bool = field(
        default=False,
        metadata={
            "help": "Learn from every pair by itself, instead of all pairs of a prompt together."
        },
    )
    ensemble: int = field(
        default=1,
        metadata={
            "help": "Train so many reward models on one base, seed by seed, in member-0, member-1, …"
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ensemble < 1:
            raise ValueError(f"`ensemble` must be at least 1, got {self.ensemble}")
        if self.unit_variance and self.demonstrations is None:
            raise ValueError("`unit_variance` needs `demonstrations`, whose scores it measures")


@dataclass
class PPOArguments(ParentArguments):
    """What PPO's four roles start from, and what is rewarded."""

    reward_model: list[str] = field(
        default_factory=list,
        metadata={"help": "Run directory of the reward model; several make an ensemble."},
    )
    reward_funcs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Python functions whose rewards are added (`reward_weights`), or are all there "
            "is without a reward_model: FILE.py:FUNCTION or package.module:FUNCTION. Their code "
            "runs, so they are named on the command line only."
        },
    )
    ptx_texts: str | None = field(
        default=None,
        metadata={"help": "Pretraining text for ptx_coef: world:corpus, or JSONL with `text`."},
    )
    eval_prompts: int = field(
        default=96,
        metadata={
            "help": "Held-out prompts answered per evaluation while training, the first ones."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eval_prompts < 1:
            raise ValueError(f"`eval_prompts` must be at least 1, got {self.eval_prompts}")


@dataclass
class BaseArguments:
    """Shape of the embedded world's base."""

    vocab_size: int = field(default=1536, metadata={"help": "Tokens of the byte-level BPE."})
    tokenizer_documents: int = field(default=20000, metadata={"help": "Documents it learns from."})
    hidden_size: int = field(default=192, metadata={"help": "Width of the trunk."})
    intermediate_size: int = field(default=512, metadata={"help": "Width of the MLP."})
    num_hidden_layers: int = field(default=5, metadata={"help": "Layers."})
    num_attention_heads: int = field(default=4, metadata={"help": "Attention heads."})
    width: int = field(default=128, metadata={"help": "Tokens per row of the packed corpus."})


@dataclass
class LabelArguments:
    """How many comparisons to make in the embedded world, and of which samples."""

    parent: str | None = field(
        default=None, metadata={"help": "Run directory of the SFT model whose answers are ranked."}
    )
    output_dir: str = field(default="runs/world/comparisons", metadata={"help": "Where to write."})
    seed: int = field(default=0, metadata={"help": "Seed of samples, panel and prompts."})
    train_prompts: int = field(default=500, metadata={"help": "Prompts whose answers are ranked."})
    test_prompts: int = field(default=150, metadata={"help": "The same, of the test split."})
    completions: int = field(default=3, metadata={"help": "Answers per prompt from the parent."})
    base_completions: int = field(default=1, metadata={"help": "Answers per prompt from the base."})
    written_vices: int = field(
        default=1, metadata={"help": "Bad answers per prompt that nobody sampled."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    max_new_tokens: int = field(default=64, metadata={"help": "Most tokens of an answer."})
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run Python that comes with the model; on the command line only."},
    )

    def __post_init__(self) -> None:
        counts = (self.completions, self.base_completions, self.written_vices)
        if min(counts) < 0 or sum(counts) < 2:
            raise ValueError(
                "`completions`, `base_completions` and `written_vices` must be 0 or more, and 2 or "
                f"more together, got {counts}"
            )
        for name, most in (("train_prompts", 2000), ("test_prompts", 450)):
            if not 1 <= getattr(self, name) <= most:  # the world has not many more questions
                raise ValueError(f"`{name}` must be in 1…{most}, got {getattr(self, name)}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"`temperature` must be above 0, got {self.temperature}")
        if self.max_new_tokens < 1:
            raise ValueError(f"`max_new_tokens` must be at least 1, got {self.max_new_tokens}")


@dataclass
class MergeArguments:
    """Which run is merged into its base, and where the model goes."""

    parent: str | None = field(
        default=None, metadata={"help": "Run directory whose adapter is merged into the base."}
    )
    output_dir: str = field(
        default="runs/merged", metadata={"help": "A new directory for the merged model."}
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run Python that comes with the model; on the command line only."},
    )


@dataclass
class EvaluateArguments:
    """Which runs to compare, on what, and how they sample."""

    runs: list[str] = field(
        default_factory=list,
        metadata={"help": "Run directories; the first of SFT is compared with."},
    )
    reward_model: str | None = field(
        default=None,
        metadata={"help": "Run of the reward model, or of an ensemble, whose mean score counts."},
    )
    comparisons: str | None = field(
        default=None,
        metadata={"help": "Preference dataset whose test split judges the reward model."},
    )
    demonstrations: str | None = field(
        default=None,
        metadata={"help": "Prompt-completion dataset: few-shot examples, reward mean."},
    )
    drop_bad_rows: bool = field(
        default=False,
        metadata={"help": "Drop malformed rows, saying how many, instead of stopping at them."},
    )
    prompts: str = field(default="world:prompts", metadata={"help": "Dataset of held-out prompts."})
    prompts_split: str = field(default="test", metadata={"help": "Its split."})
    max_prompts: int | None = field(default=None, metadata={"help": "Use only the first ones."})
    samples_per_prompt: int = field(
        default=1, metadata={"help": "Answers to each prompt; more make the numbers steadier."}
    )
    texts: str | None = field(
        default=None,
        metadata={"help": "Held-out text for lm_loss: world:corpus, or JSONL with `text`."},
    )
    few_shot: int = field(default=4, metadata={"help": "Demonstrations shown to the base."})
    temperature: float = field(default=0.7, metadata={"help": "Main sampling temperature."})
    max_new_tokens: int = field(default=64, metadata={"help": "Most tokens of an answer."})
    batch_size: int = field(default=32, metadata={"help": "Answers scored together."})
    generation_batch_size: int = field(default=32, metadata={"help": "Prompts sampled together."})
    seed: int = field(default=0, metadata={"help": "Seed of the samples and the intervals."})
    output_dir: str = field(default="runs/report", metadata={"help": "Where the report goes."})
    timings: str | None = field(
        default=None, metadata={"help": "JSON of seconds per earlier stage, for the report."}
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run Python that comes with the model; on the command line only."},
    )

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("`runs` is missing: name at least the SFT run")
        lowest = {
            "few_shot": 0,
            "max_new_tokens": 1,
            "batch_size": 1,
            "generation_batch_size": 1,
            "samples_per_prompt": 1,
            "max_prompts": 1,
        }
        for name, low in lowest.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"`{name}` must be at least {low}, got {value}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"`temperature` must be 0 or more, got {self.temperature}")
