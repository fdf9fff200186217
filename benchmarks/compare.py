"""Runs both sides of a case in turn, each in its own process; medians, ratios, efficiency, table."""

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
from benchmarks.common import ROOT, markdown_table
from benchmarks.floor import Work, floor_seconds, measure_rates
from benchmarks.meter import PHASES
from toolkit.errors import ConfigError, ToolkitError

PEER_NAME = "trl 1.12.0 PPOTrainer"
STEP_SIDES = ("stock", "ours")
STEP_NUMBERS = {"step_s": "overhead", "startup_s": "startup_ratio"}
SIDES = {"adapter": "", "head": "-trunk"}  # `value_role`, and the suffix of the case's name
HEADER = ["case", "ours, episodes/s", "TRL 1.12", "times as fast", "memory MB", "TRL 1.12", "share"]
HEADER += ["efficiency: generate", "score", "update"]
STEP_HEADER = ["recipe", "ours, s per step", "TRL's", "ratio", "startup s", "TRL's", "ratio"]


def compare(
    case: Case, folder: Path, *, peer: Path | None, rounds: int, roles: Sequence[str] = tuple(SIDES)
) -> list[dict[str, Any]]:
    """Run a prepared case; one entry per value role, in the schema of `benchmark.json`.

    Args:
        folder: the output of `benchmarks.cases.prepare`.
        peer: the Python of the old trainer; None measures our side alone.
        rounds: runs of each side, in turn.
        roles: the value roles to measure, of `SIDES`.
    """
    if case.recipe != "ppo":
        commands = {side: _module("steps", "--side", side) for side in STEP_SIDES}
        return [_step_entry(case, _in_turn(commands, folder, rounds))]
    commands = {"peer": [str(peer), str(ROOT / "benchmarks" / "peer.py")]} if peer else {}
    commands |= {role: _module("ours", "--value_role", role) for role in roles}
    results = _in_turn(commands, folder, rounds)
    return [_entry(case, folder, role, results[role], results.get("peer")) for role in roles]


def machine() -> dict[str, Any]:
    """The machine and the versions that the numbers depend on."""
    import torch

    content = {
        "cores": os.cpu_count(),
        "arch": platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return content | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def to_markdown(entries: list[dict[str, Any]]) -> str:
    """A Markdown table with one line per case of PPO, and one with a line per other recipe.

    A dash marks numbers that the old trainer lacks.
    """
    lines, step_lines = [], []
    for entry in entries:
        if "overhead" in entry:
            cells = [entry["name"]]
            for number, ratio in STEP_NUMBERS.items():
                cells += [f"{entry[side][number]:.2f}" for side in ("ours", "peer")]
                cells.append(f"{entry[ratio]:.2f}")
            step_lines.append(cells)
            continue
        ours, peer = entry["ours"], entry.get("peer")
        theirs = ["–"] * 4
        if peer:
            theirs = [f"{peer['episodes_per_s']:.2f}", f"{entry['speedup']:.2f}"]
            theirs += [f"{peer['peak_memory_mb']:.0f}", f"{entry['memory_ratio']:.2f}"]
        efficiency = [f"{entry['efficiency'][phase]:.2f}" for phase in PHASES]
        memory = f"{ours['peak_memory_mb']:.0f}"
        speed = f"{ours['episodes_per_s']:.2f}"
        lines.append([entry["name"], speed, *theirs[:2], memory, *theirs[2:], *efficiency])
    tables = [
        markdown_table(*table) for table in ((HEADER, lines), (STEP_HEADER, step_lines)) if table[1]
    ]
    return "\n\n".join(tables) + "\n"


def require_peer(python: Path) -> Path:
    """Check that the old trainer's environment exists.

    Raises: ConfigError with the command that creates it.
    """
    if not python.is_file():
        raise ConfigError(f"{python}: this interpreter does not exist; run `make benchmark`")
    return python


def _module(name: str, *words: str) -> list[str]:
    return [sys.executable, "-m", f"benchmarks.{name}", *words]


def _in_turn(
    commands: dict[str, list[str]], folder: Path, rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Run each side's command with the case's folder and a result file, side after side."""
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in commands}
    for number in range(rounds):
        for side, numbers in results.items():
            file = folder / f"{side}-{number}.json"
            _run([*commands[side], str(folder), str(file)], file.with_suffix(".log"))
            numbers.append(json.loads(file.read_text(encoding="utf-8")))
            print(f"  {side}: {numbers[-1]}", flush=True)
    return results


def _run(command: list[str], log: Path) -> None:
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
    if process.returncode:
        last = (log.read_text(encoding="utf-8").strip().splitlines() or ["no output"])[-1]
        raise ToolkitError(f"{log}: exit status {process.returncode}: {last}")


def _entry(
    case: Case,
    folder: Path,
    role: str,
    ours: list[dict[str, Any]],
    peer: list[dict[str, Any]] | None,
) -> dict[str, Any]:
    mine = _medians(ours)
    floor = _floor(case, folder, mine["mean_completion"], own_trunk=role == "adapter")
    entry: dict[str, Any] = {"name": case.name + SIDES[role], "rounds": len(ours), "ours": mine}
    if peer:
        theirs = _medians(peer)
        entry["peer"] = {"name": PEER_NAME} | theirs
        entry["speedup"] = round(mine["episodes_per_s"] / theirs["episodes_per_s"], 3)
        entry["memory_ratio"] = round(mine["peak_memory_mb"] / theirs["peak_memory_mb"], 4)
    entry["floor_s"] = {phase: round(seconds, 4) for phase, seconds in floor.items()}
    entry["efficiency"] = {p: round(floor[p] / mine["seconds"][p], 3) for p in PHASES}
    return entry


def _step_entry(case: Case, results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    stock, ours = (
        {
            number: round(statistics.median(run[number] for run in results[side]), 4)
            for number in STEP_NUMBERS
        }
        for side in STEP_SIDES
    )
    entry = {"name": case.name, "rounds": len(results["ours"]), "ours": ours, "peer": stock}
    ratios = {name: round(ours[n] / stock[n], 3) for n, name in STEP_NUMBERS.items()}
    return entry | ratios


def _floor(case: Case, folder: Path, completion: float, *, own_trunk: bool) -> dict[str, float]:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder / BASE)
    prompt = statistics.fmean(len(prompt["ids"]) for prompt in read(folder)[1])
    work = Work.of(config, case, prompt, completion)
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
