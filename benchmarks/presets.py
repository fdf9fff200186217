"""The predicted memory of each preset on its GPU.

    python benchmarks/presets.py --output docs/results/presets.json

No model is downloaded: the shapes below are those of each model's config.json on the hub. The tokens
are the embedded world's, because memory does not depend on them. Rows have the preset's maximal length.

Reads   recipes/configs/*/pipeline.yaml.
Writes  docs/results/presets.json, where other presets are kept; prints the table of docs/adapters.md.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks.common import ROOT, markdown_table, parser, read_json, require_known, run_main
from toolkit.preflight.check import full_rows
from toolkit.preflight.fit import device_memory, predict
from toolkit.preflight.rows import longest_row, row_tokens
from toolkit.runs.run import write_json
from toolkit.stages import Stage, find_stages
from toolkit.world import resolve_base

LIMIT_S = 3600.0  # per prediction
CONFIGS = ROOT / "recipes" / "configs"
GB = 2**30


@dataclass(frozen=True)
class Preset:
    """A preset's GPU memory, in units of 2^30 bytes, and its model's shape."""

    gpu_gb: float
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
        """Write config.json and the embedded world's tokenizer. Returns: the number of parameters."""
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
    """Predict each preset; write the JSON after each."""
    require_known("preset", args.presets, PRESETS)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    if args.output is not None and args.output.is_file():
        kept = read_json(args.output, fix="remove it")["presets"]
        rows = {(row["preset"], row["recipe"]): row for row in kept}
    for name in args.presets:
        preset = PRESETS[name]
        with tempfile.TemporaryDirectory() as folder:
            parameters = preset.save(Path(folder))
            for stage in stages(name, folder):
                row = {"preset": name, "parameters": parameters} | predict_stage(stage, preset)
                rows[name, stage.recipe.name] = row
                print(row, flush=True)
        if args.output is not None:
            content = {"schema": 1, "date": time.strftime("%Y-%m-%d")}
            write_json(args.output, content | {"presets": list(rows.values())})
    print(f"\n{to_markdown(list(rows.values()))}")


def stages(name: str, base: str) -> list[Stage]:
    """The preset's training stages, on a base of the same shape."""
    training = find_stages(str(CONFIGS / name / "pipeline.yaml"))
    for stage in training:
        stage.model.model_name_or_path = base
        stage.model.model_revision = "main"
    return training


def predict_stage(stage: Stage, preset: Preset) -> dict[str, Any]:
    """The highest peak of a stage, and the largest batch that fits on the preset's GPU."""
    start = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(stage.model.model_name_or_path)
    rows = full_rows(stage, tokenizer)
    row = longest_row(rows, row_tokens(rows, stage.max_length))
    memory = device_memory(preset.gpu_gb, use_cpu=False)
    peaks, largest = predict(stage, tokenizer, row, memory, limit_s=LIMIT_S)
    peak = max(peaks, key=lambda each: each.total)
    return {
        "recipe": stage.recipe.name,
        "gpu_gb": preset.gpu_gb,
        "peak_gb": round(peak.total / GB, 3),
        "phase": peak.phase,
        "parts_gb": {part: round(count / GB, 3) for part, count in peak.parts.items()},
        "batch": stage.args.per_device_train_batch_size,
        "largest_batch": largest,
        "seconds": round(time.perf_counter() - start, 1),
    }


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """One line per preset: peak, and in brackets the preset's batch and the largest that fits."""
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    lines = []
    for name in dict.fromkeys(row["preset"] for row in rows):
        stages = {row["recipe"]: row for row in rows if row["preset"] == name}
        first = next(iter(stages.values()))
        cells = [f"`{name}`", f"{first['parameters'] / 1e9:.2f} B", f"{first['gpu_gb']} GB"]
        for recipe in recipes:
            row = stages.get(recipe)
            cells.append(
                f"{row['peak_gb']:.1f} ({row['batch']}, {row['largest_batch']})" if row else ""
            )
        lines.append(cells)
    return markdown_table(["preset", "parameters", "GPU", *recipes], lines)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    options = parser(__doc__)
    options.add_argument("--presets", nargs="+", default=list(PRESETS), help=", ".join(PRESETS))
    options.add_argument("--output", type=Path, help="the JSON; by default none is written")
    return options


if __name__ == "__main__":
    run_main(main, arguments().parse_args())
