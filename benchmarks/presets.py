"""The memory that each preset is predicted to take on the card that it is meant for.

    python benchmarks/presets.py --output docs/results/presets.json

The models are not there: their shapes stand below, from the config.json of each on the hub, and the
tokens are the embedded world's, which memory does not depend on. Rows are as long as the preset's
limits allow.

Reads   recipes/configs/*/pipeline.yaml.
Writes  the JSON, in which other presets stay as they are; prints a Markdown table.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from toolkit.errors import ConfigError, ToolkitError
from toolkit.preflight.check import full_rows
from toolkit.preflight.fit import device_memory
from toolkit.preflight.lengths import row_tokens
from toolkit.preflight.report import foresee
from toolkit.preflight.stages import Stage, find_stages
from toolkit.runs.run import write_json
from toolkit.world import resolve_base

LIMIT_S = 3600.0  # that one prediction may take
CONFIGS = Path(__file__).resolve().parent.parent / "recipes" / "configs"
GB = 2**30


@dataclass(frozen=True)
class Preset:
    """A preset's card, in units of 2^30 bytes, and its model's shape."""

    card_gb: float
    kind: str
    hidden: int
    layers: int
    inner: int
    heads: int
    head: int
    vocabulary: int
    tied: bool
    kv_heads: int = 8

    def save(self, folder: Path) -> int:
        """Its config.json with the embedded world's tokenizer. Returns: how many parameters."""
        tokenizer = AutoTokenizer.from_pretrained(resolve_base(None))
        config = AutoConfig.for_model(
            self.kind,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            intermediate_size=self.inner,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head,
            vocab_size=self.vocabulary,
            tie_word_embeddings=self.tied,
            max_position_embeddings=32768,
            sliding_window=None,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        with torch.device("meta"):
            return int(AutoModelForCausalLM.from_config(config).num_parameters())


PRESETS = {
    "qwen3-0.6b": Preset(8, "qwen3", 1024, 28, 3072, 16, 128, 151936, True),
    "llama-3.2-1b": Preset(12, "llama", 2048, 16, 8192, 32, 64, 128256, True),
    "qwen3-4b-qlora": Preset(16, "qwen3", 2560, 36, 9728, 32, 128, 151936, True),
    "qwen3-8b-qlora": Preset(24, "qwen3", 4096, 36, 12288, 32, 128, 151936, False),
    "mistral-7b-qlora": Preset(24, "mistral", 4096, 32, 14336, 32, 128, 32768, False),
}


def main(args: argparse.Namespace) -> None:
    if unknown := [name for name in args.presets if name not in PRESETS]:
        raise ConfigError(f"no preset {unknown[0]!r}; there are {', '.join(PRESETS)}")
    kept: list[dict[str, Any]] = []
    if args.output is not None and args.output.is_file():
        kept = json.loads(args.output.read_text(encoding="utf-8"))["presets"]
    found = {(row["preset"], row["recipe"]): row for row in kept}
    for name in args.presets:
        preset = PRESETS[name]
        with tempfile.TemporaryDirectory() as folder:
            parameters = preset.save(Path(folder))
            for stage in stages(name, folder):
                row = {"preset": name, "parameters": parameters} | look(stage, preset)
                found[name, stage.recipe] = row
                print(row, flush=True)
        if args.output is not None:
            content = {"schema": 1, "date": time.strftime("%Y-%m-%d")}
            write_json(args.output, content | {"presets": list(found.values())})
    print(f"\n{to_markdown(list(found.values()))}")


def stages(name: str, base: str) -> list[Stage]:
    """The preset's training runs, on a base of the same shape."""
    found = find_stages(str(CONFIGS / name / "pipeline.yaml"))
    for stage in found:
        stage.model.model_name_or_path = base
        stage.model.model_revision = "main"
    return found


def look(stage: Stage, preset: Preset) -> dict[str, Any]:
    """The highest peak of a run, and the largest batch that fits on the preset's card."""
    began = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(stage.model.model_name_or_path)
    rows = full_rows(stage, tokenizer)
    lengths = row_tokens(stage.recipe, rows, stage.limit)
    memory = device_memory(preset.card_gb, use_cpu=False)
    peaks, largest = foresee(stage, tokenizer, rows, lengths, memory, limit_s=LIMIT_S)
    peak = max(peaks, key=lambda each: each.total)
    return {
        "recipe": stage.recipe,
        "card_gb": preset.card_gb,
        "peak_gb": round(peak.total / GB, 3),
        "phase": peak.phase,
        "parts_gb": {part: round(count / GB, 3) for part, count in peak.parts.items()},
        "batch": stage.training.per_device_train_batch_size,
        "largest_batch": largest,
        "seconds": round(time.perf_counter() - began, 1),
    }


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """A line for each preset: peaks, and in brackets the largest batch that fits beside the file's."""
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    lines = ["| " + " | ".join(["preset", "parameters", "card", *recipes]) + " |"]
    lines.append("|" + " --- |" * (3 + len(recipes)))
    for name in dict.fromkeys(row["preset"] for row in rows):
        own = {row["recipe"]: row for row in rows if row["preset"] == name}
        first = next(iter(own.values()))
        cells = [f"`{name}`", f"{first['parameters'] / 1e9:.2f} B", f"{first['card_gb']} GB"]
        for recipe in recipes:
            row = own.get(recipe)
            cells.append(
                f"{row['peak_gb']:.1f} ({row['batch']}, {row['largest_batch']})" if row else ""
            )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def arguments() -> argparse.ArgumentParser:
    """Its options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--output", type=Path, help="the JSON; by default none is written")
    return parser


if __name__ == "__main__":
    try:
        main(arguments().parse_args())
    except ToolkitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
