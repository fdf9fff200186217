"""Arguments of the recipes, as dataclasses beside TRL's own."""

from dataclasses import dataclass, field


@dataclass
class RunArguments:
    """What a recipe starts from, beside the base model and the data."""

    parent: str | None = field(
        default=None,
        metadata={
            "help": "Run directory whose adapter this run starts from (for DPO and PPO: SFT)."
        },
    )
    reward_model: str | None = field(
        default=None,
        metadata={"help": "Run directory of the reward model (PPO)."},
    )
    demonstrations: str | None = field(
        default=None,
        metadata={
            "help": "Prompt-completion dataset whose rewards shall average 0 (reward model)."
        },
    )
    dataset_format: str | None = field(
        default=None,
        metadata={"help": "Name of the rows' format; by default it is detected from the columns."},
    )
    drop_bad_rows: bool = field(
        default=False,
        metadata={"help": "Drop malformed rows, saying how many, instead of stopping at them."},
    )
    max_rows: int | None = field(
        default=None, metadata={"help": "Use only the first rows of each split (a quick trial)."}
    )

    def __post_init__(self) -> None:
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"`max_rows` must be at least 1, got {self.max_rows}")


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

    output_dir: str = field(default="runs/world/comparisons", metadata={"help": "Where to write."})
    seed: int = field(default=0, metadata={"help": "Seed of samples, panel and prompts."})
    train_prompts: int = field(default=500, metadata={"help": "Prompts whose answers are ranked."})
    test_prompts: int = field(default=150, metadata={"help": "The same, of the test split."})
    completions: int = field(default=3, metadata={"help": "Answers per prompt from the parent."})
    base_completions: int = field(default=1, metadata={"help": "Answers per prompt from the base."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    max_new_tokens: int = field(default=64, metadata={"help": "Most tokens of an answer."})

    def __post_init__(self) -> None:
        if min(self.completions, self.base_completions) < 0:
            raise ValueError("`completions` and `base_completions` must not be negative")
        if self.completions + self.base_completions < 2:
            raise ValueError("`completions` and `base_completions` must be 2 or more together")


@dataclass
class EvaluateArguments:
    """Which runs to compare, on what, and how they sample."""

    runs: list[str] = field(
        default_factory=list,
        metadata={"help": "Run directories; the first of SFT is compared with."},
    )
    reward_model: str | None = field(default=None, metadata={"help": "Run of the reward model."})
    comparisons: str | None = field(
        default=None,
        metadata={"help": "Preference dataset whose test split judges the reward model."},
    )
    demonstrations: str | None = field(
        default=None,
        metadata={"help": "Prompt-completion dataset: few-shot examples, reward mean."},
    )
    prompts: str = field(default="world:prompts", metadata={"help": "Dataset of held-out prompts."})
    prompts_split: str = field(default="test", metadata={"help": "Its split."})
    max_prompts: int | None = field(default=None, metadata={"help": "Use only the first ones."})
    texts: str | None = field(
        default=None,
        metadata={"help": "Held-out text for lm_loss: world:corpus, or JSONL with `text`."},
    )
    few_shot: int = field(default=4, metadata={"help": "Demonstrations shown to the base."})
    temperature: float = field(default=0.7, metadata={"help": "Main sampling temperature."})
    max_new_tokens: int = field(default=64, metadata={"help": "Most tokens of an answer."})
    seed: int = field(default=0, metadata={"help": "Seed of the samples and the intervals."})
    output_dir: str = field(default="runs/report", metadata={"help": "Where the report goes."})
    timings: str | None = field(
        default=None, metadata={"help": "JSON of seconds per earlier stage, for the report."}
    )

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("`runs` is missing: name at least the SFT run")
