"""How our cost grows: speed against completion length and batch, memory against the vocabulary."""

import dataclasses
from pathlib import Path
from typing import Any

from toolkit.benchmark.cases import CASES, Case, prepare
from toolkit.benchmark.compare import compare
from toolkit.runs import write_json

LENGTHS, BATCHES, VOCABULARIES = (64, 128, 256, 512), (8, 16, 32, 64, 128), (4096, 16_384, 131_072)
START = dataclasses.replace(CASES["fixed-5m"], batch=16, micro_batch=8, rollouts=1)


def measure_growth(folder: Path) -> str:
    """Run every point once, write `growth.json` and `growth.png`; say where."""
    lengths = [_point(folder, f"length-{n}", completion=n) for n in LENGTHS]
    batches = [_point(folder, f"batch-{n}", batch=n) for n in BATCHES]
    vocabularies = [_point(folder, f"vocabulary-{n}", vocabulary=n) for n in VOCABULARIES]
    found = {"length": lengths, "batch": batches, "vocabulary": vocabularies}
    write_json(folder / "growth.json", {"schema": 1, "points": found})
    _draw(found, folder / "growth.png")
    return f"{folder / 'growth.png'}"


def _point(folder: Path, name: str, **changes: int) -> dict[str, Any]:
    case: Case = dataclasses.replace(START, name=name, **changes)  # type: ignore[arg-type]
    prepare(case, folder / name, sft=None, reward=None)
    print(name, flush=True)
    ours = compare(case, folder / name, peer=None, rounds=1)[0]["ours"]
    speed, memory = ours["episodes_per_s"], ours["peak_memory_mb"]
    return changes | {"episodes_per_s": speed, "peak_memory_mb": memory}


def _draw(found: dict[str, list[dict[str, Any]]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    panels = (
        ("length", "completion", "tokens per completion", "episodes_per_s", "episodes per second"),
        ("batch", "batch", "episodes per rollout", "episodes_per_s", "episodes per second"),
        ("vocabulary", "vocabulary", "tokens in the vocabulary", "peak_memory_mb", "MB added"),
    )
    for axis, (group, key, label, value, unit) in zip(axes, panels, strict=True):
        points = found[group]
        axis.plot([p[key] for p in points], [p[value] for p in points], "o-", color="#3b6ea5")
        axis.set_xscale("log", base=2)
        axis.set_xticks([p[key] for p in points], [f"{p[key]:,}" for p in points])
        axis.set_xlabel(label)
        axis.set_ylabel(unit)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)
    plt.close(figure)
