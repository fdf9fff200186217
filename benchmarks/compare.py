"""Both sides of a case in turn, each run in a process of its own; medians, ratios, floors."""

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import BASE, Case, read
from benchmarks.floor import Work, floor_seconds, measure_rates
from benchmarks.meter import PHASES
from toolkit.errors import ConfigError, ToolkitError

PEER_NAME = "trl 1.12.0 PPOTrainer"
SIDES = {"adapter": "", "head": "-trunk"}  # the value's role, and what it adds to a case's name


def compare(
    case: Case, folder: Path, *, peer: Path | None, rounds: int, roles: Sequence[str] = tuple(SIDES)
) -> list[dict[str, Any]]:
    """Run a prepared case; one entry per role of the value, in the schema of `benchmark.json`.

    Args:
        folder: as `benchmarks.cases.prepare` left it.
        peer: the Python that has the old trainer; None measures ours alone.
        rounds: how often each side runs, in turn.
        roles: of the value, those of `SIDES` that are measured.
    """
    taken: dict[str, list[dict[str, Any]]] = {side: [] for side in ("peer", *roles)}
    for number in range(rounds):
        for side in taken:
            if side == "peer" and peer is None:
                continue
            result = folder / f"{side}-{number}.json"
            _run(_command(side, folder, result, peer), folder / f"{side}-{number}.log")
            taken[side].append(json.loads(result.read_text(encoding="utf-8")))
            print(f"  {side}: {taken[side][-1]['episodes_per_s']:.2f} episodes/s", flush=True)
    return [_entry(case, folder, taken[side], taken["peer"], side) for side in roles]


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    import torch

    found = {"cores": os.cpu_count(), "arch": platform.machine(), "torch": torch.__version__}
    found["python"] = platform.python_version()
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _command(side: str, folder: Path, result: Path, peer: Path | None) -> list[str]:
    if side == "peer":
        return [str(peer), str(Path(__file__).with_name("peer.py")), str(folder), str(result)]
    module = [sys.executable, "-m", "benchmarks.ours"]
    return [*module, str(folder), str(result), "--value_role", side]


def _run(command: list[str], log: Path) -> None:
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        last = (log.read_text(encoding="utf-8").strip().splitlines() or ["nothing printed"])[-1]
        raise ToolkitError(f"{log}: exit status {done.returncode}: {last}")


def _entry(
    case: Case,
    folder: Path,
    ours: list[dict[str, Any]],
    peer: list[dict[str, Any]],
    side: str,
) -> dict[str, Any]:
    mine = _medians(ours)
    floor = _floor(case, folder, mine["mean_completion"], own_trunk=side == "adapter")
    entry: dict[str, Any] = {"name": case.name + SIDES[side], "rounds": len(ours), "ours": mine}
    if peer:
        theirs = _medians(peer)
        entry["peer"] = {"name": PEER_NAME} | theirs
        entry["speedup"] = round(mine["episodes_per_s"] / theirs["episodes_per_s"], 3)
        entry["memory_ratio"] = round(mine["peak_memory_mb"] / theirs["peak_memory_mb"], 4)
    entry["floor_s"] = {phase: round(seconds, 4) for phase, seconds in floor.items()}
    entry["efficiency"] = {p: round(floor[p] / mine["seconds"][p], 3) for p in PHASES}
    return entry


def _floor(case: Case, folder: Path, completion: float, *, own_trunk: bool) -> dict[str, float]:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder / BASE)
    lengths = [len(prompt["ids"]) for prompt in read(folder)[1]]
    work = Work.of(config, case, sum(lengths) / len(lengths), completion)
    return floor_seconds(work, case, measure_rates(work, case, config), own_trunk=own_trunk)


def _medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    def median(values: list[float]) -> float:
        return round(statistics.median(values), 4)

    speeds = [run["episodes_per_s"] for run in runs]
    peaks = [run["peak_memory_mb"] for run in runs]
    return {
        "episodes_per_s": median(speeds),
        "episodes_per_s_range": [round(min(speeds), 4), round(max(speeds), 4)],
        "peak_memory_mb": median(peaks),
        "peak_memory_mb_range": [round(min(peaks), 1), round(max(peaks), 1)],
        "seconds": {p: median([run["seconds"][p] for run in runs]) for p in PHASES},
        "mean_completion": median([run["mean_completion"] for run in runs]),
    }


def require_peer(python: Path) -> Path:
    """Check that the old trainer's environment is there.

    Raises: ConfigError saying how to make it.
    """
    if not python.is_file():
        raise ConfigError(f"{python}: no such Python; `make benchmark` sets the environment up")
    return python
