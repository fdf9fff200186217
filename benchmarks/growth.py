"""How PPO's cost grows: speed over completion length and batch, memory over the vocabulary."""

import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.cases import BASE, CASES, Case, prepare
from benchmarks.compare import compare
from toolkit.runs.run import write_json

LENGTHS, BATCHES, VOCABULARIES = (64, 128, 256, 512), (8, 16, 32, 64, 128), (4096, 16_384, 131_072)
LARGE_BATCHES = (8, 32)  # at the largest vocabulary, where logits would take most memory
START = dataclasses.replace(CASES["fixed-5m"], batch=16, micro_batch=8, rollouts=1)


def measure_growth(folder: Path) -> str:
    """Run every point once; write `growth.json` and `growth.png`. Returns: the picture's path.

    Each point also holds the size of the base's weights, and the size of all float32 logits of one
    rollout's completions, which PPO never holds at once.
    """
    lengths = [_point(folder, f"length-{n}", completion=n) for n in LENGTHS]
    batches = [_point(folder, f"batch-{n}", batch=n) for n in BATCHES]
    vocabularies = [_point(folder, f"vocabulary-{n}", vocabulary=n) for n in VOCABULARIES]
    large = [
        _point(folder, f"large-{n}", batch=n, vocabulary=VOCABULARIES[-1]) for n in LARGE_BATCHES
    ]
    points = {"length": lengths, "batch": batches, "vocabulary": vocabularies, "large": large}
    write_json(folder / "growth.json", {"schema": 1, "points": points})
    _draw(points, folder / "growth.png")
    return f"{folder / 'growth.png'}"


def _point(folder: Path, name: str, **changes: int) -> dict[str, Any]:
    case: Case = dataclasses.replace(START, name=name, **changes)  # type: ignore[arg-type]
    prepare(case, folder / name, sft=None, reward=None)
    print(name, flush=True)
    ours = compare(case, folder / name, peer=None, rounds=1, roles=["adapter"])[0]["ours"]
    weights = sum(f.stat().st_size for f in (folder / name / BASE).glob("*.safetensors"))
    logits = case.batch * case.completion * case.vocabulary * 4
    return changes | {
        "episodes_per_s": ours["episodes_per_s"],
        "peak_memory_mb": ours["peak_memory_mb"],
        "base_mb": round(weights / 2**20, 1),
        "all_logits_mb": round(logits / 2**20, 1),
    }


def _draw(groups: dict[str, list[dict[str, Any]]], file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    panels = (
        ("length", "completion", "tokens per completion"),
        ("batch", "batch", "episodes per rollout"),
        ("vocabulary", "vocabulary", "tokens in the vocabulary"),
    )
    lines = {"peak_memory_mb": "memory added by PPO", "base_mb": "of it the base's weights"}
    lines["all_logits_mb"] = "all logits of a rollout (never held at once)"
    for axis, (group, key, label) in zip(axes, panels, strict=True):
        points = groups[group]
        sizes = [p[key] for p in points]
        if group == "vocabulary":
            for (name, legend), style in zip(lines.items(), ("o-", "s--", "^:"), strict=True):
                axis.plot(sizes, [p[name] for p in points], style, label=legend)
            axis.set_ylabel("memory, MB")
            axis.legend(frameon=False, fontsize=8)
        else:
            axis.plot(sizes, [p["episodes_per_s"] for p in points], "o-")
            axis.set_ylabel("episodes per second")
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [f"{x:,}" for x in sizes])
        axis.set_xlabel(label)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)
