"""All checks that need a GPU, in ten minutes: tests, precision, memory of the presets, speed.

    make gpu
    python benchmarks/gpu.py --parts memory:qwen3-4b-qlora --output docs/results/cuda.json    # add a part
    python benchmarks/gpu.py --tiny    # small shapes, also on a CPU; writes runs/gpu/tiny.json

No hub is needed: the models are random, except SmolLM2-135M-Instruct if it is in build/smollm2-135m. Each
part is a process with a time limit. The JSON is written after each part, and a part that fails is recorded.

Writes  docs/results/cuda.json, where other parts are kept; prints the tables of docs/performance.md.
"""

import argparse
import contextlib
import datetime
import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks import compare
from benchmarks.cases import CASES, REAL_BASE, Case, prepare
from benchmarks.common import ROOT, markdown_table, parser, read_json, require_known, run_main
from benchmarks.meter import process_megabytes, reset_peak
from benchmarks.presets import GB, PRESETS, Preset, stages
from toolkit.errors import ConfigError, ToolkitError
from toolkit.models.tokenizer import load_tokenizer
from toolkit.runs.run import write_json
from toolkit.stages import Stage

# seconds; the first parts matter most, because a part that does not fit into the time is not run
LIMITS = {"tests": 90.0, "precision": 90.0, "memory:qwen3-0.6b": 90.0, "speed:cuda-0.5b": 120.0}
LIMITS |= {"memory:qwen3-8b-qlora": 180.0, "speed:cuda-1.5b-4bit": 150.0}
LIMITS |= {part: 150.0 for name in PRESETS if (part := f"memory:{name}") not in LIMITS}
SHORTEST_S = 20.0  # a part is not started with less time
SFT = "--max_steps 3 --per_device_train_batch_size 8 --learning_rate 2e-4 --logging_steps 1"
SFT += " --eval_strategy no --save_strategy no"
PRECISIONS = {
    "float32": "--dtype float32 --bf16 false",
    "bfloat16": "--dtype bfloat16 --bf16 true",
    "8 bit": "--dtype bfloat16 --bf16 true --load_in_8bit true",
    "4 bit": "--dtype bfloat16 --bf16 true --load_in_4bit true",
}
LOSS_TOLERANCE = 0.5  # nats per token; 4 bit changes the loss of a small model by some tenths
SMALL_PRESET: dict[str, Any] = dict(
    hidden=64, layers=2, inner=128, heads=2, head=32, kv_heads=1, vocabulary=4096
)
SMALL_CASE: dict[str, Any] = dict(
    hidden=128, layers=2, heads=4, kv_heads=2, intermediate=256, vocabulary=512
)
SMALL_CASE |= dict(batch=8, micro_batch=4, prompt=16, completion=16)
SMALL_ARGS = dict(max_length=32, max_prompt_length=16, response_length=16, num_mini_batches=1)
SMALL_ARGS |= dict(
    per_device_train_batch_size=2, gradient_accumulation_steps=2, generation_batch_size=4
)
Record = Callable[[dict[str, Any]], None]


def main(args: argparse.Namespace) -> None:
    """Run the parts one after the other; write the JSON after each."""
    require_known("part", args.parts, LIMITS)
    if not (args.tiny or torch.cuda.is_available()):
        raise ConfigError("no GPU is available; --tiny runs every part in small shapes on the CPU")
    end = time.monotonic() + args.limit_s
    kept = read_json(args.output, fix="remove it")["parts"] if args.output.is_file() else []
    parts = {part["part"]: part for part in kept}
    for name in args.parts:
        limit = min(LIMITS[name], end - time.monotonic())
        if limit < SHORTEST_S:
            print(f"{name}: not run, because the time is up; name it in --parts", flush=True)
            continue
        parts[name] = run_part(name, limit, args)
        print(f"{name}: {parts[name]['state']}, {parts[name]['seconds']} s", flush=True)
        content = {"schema": 1, "tiny": args.tiny, "machine": compare.machine()}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.output, content | {"parts": [parts[n] for n in LIMITS if n in parts]})
    print(f"\n{to_markdown([parts[n] for n in LIMITS if n in parts])}")


def run_part(name: str, limit_s: float, args: argparse.Namespace) -> dict[str, Any]:
    """Run a part in its own process, and end it with all its processes at the limit."""
    part: dict[str, Any] = {"part": name, "date": datetime.date.today().isoformat()}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder) / "rows.json", Path(folder) / "log"
        command = [sys.executable, "-m", "benchmarks.gpu", "--child", name, "--output", str(result)]
        command += ["--peer", str(args.peer), *(["--tiny"] if args.tiny else [])]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
            )
            try:
                state = "failed" if process.wait(limit_s) else "passed"
            except subprocess.TimeoutExpired:
                state = "out of time"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        part |= {"state": state, "seconds": round(time.monotonic() - start, 1)}
        if state != "passed":
            part["error"] = log.read_text(encoding="utf-8", errors="replace").strip()[-2000:]
        part["rows"] = read_json(result, fix="run it again")["rows"] if result.is_file() else []
    return part


def run_child(args: argparse.Namespace) -> None:
    """Run a part in this process; write its rows after each.

    Raises: ToolkitError if a row has an error.
    """
    rows: list[dict[str, Any]] = []

    def record(row: dict[str, Any]) -> None:
        rows.append(row)
        print(row, flush=True)
        write_json(args.output, {"rows": rows})

    kinds = {"tests": tests, "precision": precision, "memory": memory, "speed": speed}
    kind, _, name = args.child.partition(":")
    kinds[kind](name, record, args)
    if errors := [row["error"] for row in rows if "error" in row]:
        raise ToolkitError("; ".join(errors))


@contextlib.contextmanager
def recorded(record: Record, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Record the row after the block, with the error if the block raises one."""
    try:
        yield row
    except Exception as error:  # such as too little memory
        traceback.print_exc()
        row["error"] = f"{type(error).__name__}: {error}"
    record(row)


def tests(_: str, record: Record, __: argparse.Namespace) -> None:
    """The tests of tests/gpu; without a GPU they are all skipped."""
    import pytest

    class Counts:
        def pytest_terminal_summary(self, terminalreporter: Any) -> None:
            stats, outcomes = terminalreporter.stats, ("passed", "skipped", "failed", "error")
            self.by_outcome = {f"{key} tests": len(stats.get(key, [])) for key in outcomes}

    counts = Counts()
    code = pytest.main(["-m", "gpu", str(ROOT / "tests" / "gpu")], plugins=[counts])
    with recorded(record, counts.by_outcome):
        if code:
            raise ToolkitError(f"pytest tests/gpu: exit code {code}; the log names the tests")


def precision(_: str, record: Record, args: argparse.Namespace) -> None:
    """The losses of three SFT steps in each precision, against those in float32."""
    from toolkit.cli import main as toolkit
    from toolkit.runs.run import Run

    is_real = (REAL_BASE / "config.json").is_file() and not args.tiny
    exact: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        base = REAL_BASE if is_real else save_weights(shape("qwen3-0.6b", args), Path(folder))
        for name, options in PRECISIONS.items():
            output = f"{folder}/{name}"
            words = ["--model_name_or_path", str(base), "--output_dir", output, *options.split()]
            words += ["--config", "smollm2-135m/sft" if is_real else "world/sft", *SFT.split()]
            row: dict[str, Any] = {
                "model": "SmolLM2-135M" if is_real else "random",
                "precision": name,
            }
            with recorded(record, row):
                if toolkit(["sft", *words]):
                    raise ToolkitError(f"toolkit sft {' '.join(words)}: failed; see the log")
                losses = [round(r["loss"], 4) for r in Run.load(output).metrics() if "loss" in r]
                exact = exact or losses
                off = max(abs(a - b) for a, b in zip(losses, exact, strict=True))
                row |= {"losses": losses, "off": round(off, 4)}
                if off > LOSS_TOLERANCE:
                    raise ToolkitError(f"{name}: the losses are {off:.2f} nats from {exact}")


def memory(name: str, record: Record, args: argparse.Namespace) -> None:
    """The peak memory of two steps of each stage of a preset, predicted and measured."""
    cuda = torch.cuda.is_available()
    # predictions run beside this process, which uses the GPU; a fork could not follow it there
    context = get_context("spawn" if cuda else "fork")
    pool = ProcessPoolExecutor(os.cpu_count(), context)
    with tempfile.TemporaryDirectory() as folder, pool:
        shape(name, args).save(Path(folder))
        options = (name, folder, args.tiny, cuda)
        training = preset_stages(*options)
        with patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": ""}):
            predictions = [pool.submit(predicted, i, *options) for i in range(len(training))]
        save_weights(shape(name, args), Path(folder))
        for stage, prediction in zip(training, predictions, strict=True):
            result: dict[str, Any] = {"stage": stage.recipe.name}
            with recorded(record, result):
                row, peak = prediction.result()
                result["predicted_gb"] = round(peak / GB, 3)
                measured = added_memory(stage, row, Path(folder))
                result["measured_gb"] = round(measured / GB, 3)
                result["off"] = round(peak / measured - 1, 3)


def preset_stages(name: str, folder: str, tiny: bool, cuda: bool) -> list[Stage]:
    """The stages of a preset that train two steps on the base in `folder`."""
    training = stages(name, folder)
    options = (SMALL_ARGS if tiny else {}) | {"save_strategy": "no", "eval_strategy": "no"}
    options |= {"max_steps": 2, "eval_on_start": False}
    options |= {} if cuda else {"use_cpu": True, "optim": "adamw_torch"}
    for stage in training:
        for option in options.keys() & vars(stage.args).keys():
            setattr(stage.args, option, options[option])
    return training


def predicted(
    number: int, name: str, folder: str, tiny: bool, cuda: bool
) -> tuple[dict[str, Any], int]:
    """The row of the greatest length of a preset's stage, and the predicted peak in bytes."""
    from toolkit.preflight.check import full_rows
    from toolkit.preflight.fit import device_memory, predict

    stage, tokenizer = preset_stages(name, folder, tiny, cuda)[number], load_tokenizer(folder)
    row = dict(full_rows(stage, tokenizer)[0])
    device = device_memory(PRESETS[name].gpu_gb if cuda else None, use_cpu=not cuda)
    peaks, _ = predict(stage, tokenizer, row, device, always_largest=False)
    return row, max(peak.total for peak in peaks)


def added_memory(stage: Stage, row: dict[str, Any], base: Path) -> float:
    """The bytes that two steps on copies of one row add to this process, or to the GPU."""
    from datasets import Dataset

    from benchmarks.memory import RealBase

    gc.collect()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.empty_cache()
    reset_peak()
    before = torch.cuda.memory_allocated() if cuda else process_megabytes("VmRSS") * 2**20
    training = RealBase(stage, load_tokenizer(str(base)))
    trainer = training.recipe.build(training)
    rows = stage.args.per_device_train_batch_size * stage.args.gradient_accumulation_steps
    trainer.train_dataset = Dataset.from_list([row] * rows)
    trainer.base_fingerprint = {}
    if stage.recipe.name == "ppo":
        trainer.rollouts.stop = []  # all completions have full length, as in the prediction
    trainer.train()
    peak = torch.cuda.max_memory_allocated() if cuda else process_megabytes("VmHWM") * 2**20
    return float(peak - before)


def speed(name: str, record: Record, args: argparse.Namespace) -> None:
    """One round of a case of benchmark.py; our side alone if the old trainer is not installed."""
    case = small_case(name) if args.tiny else CASES[name]
    peer = args.peer if args.peer.is_file() else None
    if peer is None:
        print(f"{args.peer} does not exist: our side alone; `make .venv/peer/.installed` makes it")
    with tempfile.TemporaryDirectory() as folder:
        prepare(case, Path(folder), sft=None, reward=None)
        for entry in compare.compare(case, Path(folder), peer=peer, rounds=1):
            record(entry)


def small_case(name: str) -> Case:
    """A case in a small shape; without a GPU in float32 on the CPU."""
    case = replace(CASES[name], **SMALL_CASE)
    on_cpu = {"cuda": False, "bits": 0, "dtype": "float32"}
    return case if torch.cuda.is_available() else replace(case, **on_cpu)


def shape(name: str, args: argparse.Namespace) -> Preset:
    """A preset's shape, or a small one."""
    return replace(PRESETS[name], **SMALL_PRESET) if args.tiny else PRESETS[name]


def save_weights(preset: Preset, folder: Path) -> Path:
    """Write a random model of the preset's shape in bfloat16; it is made on the GPU if there is one."""
    from transformers import AutoConfig, AutoModelForCausalLM

    preset.save(folder)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        config = AutoConfig.from_pretrained(folder)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder


def to_markdown(parts: list[dict[str, Any]]) -> str:
    """A table of the parts, and one for each kind of part; rows with an error are left out."""
    header = ["part", "state", "seconds", "date"]
    tables = [markdown_table(header, [[str(part[key]) for key in header] for part in parts])]
    for kind in ("tests", "precision", "memory", "speed"):
        of_kind = [part for part in parts if part["part"].partition(":")[0] == kind]
        rows = [(part, row) for part in of_kind for row in part["rows"] if "error" not in row]
        if rows and kind == "speed":
            tables.append(compare.to_markdown([row for _, row in rows]).strip())
        elif rows:
            lines = [[part["part"], *map(str, row.values())] for part, row in rows]
            tables.append(markdown_table(["part", *rows[0][1]], lines))
    return "\n\n".join(tables) + "\n"


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--parts", nargs="+", default=list(LIMITS), help=", ".join(LIMITS))
    options.add_argument("--tiny", action="store_true", help="small shapes, on a GPU or a CPU")
    options.add_argument("--limit_s", type=float, default=570.0, help="seconds for all parts (570)")
    options.add_argument("--output", type=Path, help="the JSON (docs/results/cuda.json)")
    options.add_argument("--peer", type=Path, default=ROOT / ".venv" / "peer" / "bin" / "python")
    options.add_argument("--child", help=argparse.SUPPRESS)
    args = options.parse_args()
    default = Path("runs/gpu/tiny.json" if args.tiny else "docs/results/cuda.json")
    args.output = args.output or ROOT / default
    run_main(run_child if args.child else main, args)
