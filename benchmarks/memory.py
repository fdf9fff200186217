"""Peak memory of two real training steps, each case in a process of its own, beside the prediction.

    python -m benchmarks.memory --cases sft-small dpo-small --out docs/results/preflight.json

What is measured is what training adds: the most resident memory of the process, less what it held
before the base was loaded, when a toy of the same kind had been trained already, so that libraries,
thread pools and caches are not counted. glibc is told to give freed memory back at once.
"""

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.memory_cases import CASES, Case, predict_case

ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
}
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def train(case: Case, base: Path) -> None:
    """Two optimizer steps of a case with the trainer that its recipe has."""
    from datasets import Dataset

    from toolkit.models.base import load_base
    from toolkit.models.fingerprint import fingerprint
    from toolkit.models.peft_methods import build_peft_config
    from toolkit.models.roles import POLICY, Roles
    from toolkit.ppo.trainer import PPOTrainer
    from toolkit.preflight.dry_run import with_score_head
    from toolkit.preflight.ppo_dry_run import attach_shapes
    from toolkit.reward.ranking import RankingCollator, RankingTrainer
    from toolkit.trainers.supervised import DPOTrainer, SFTTrainer

    model, training = case.model(base), case.training(base / "run")
    loaded, tokenizer = load_base(model, scalar=case.recipe == "reward")
    config = build_peft_config(model, loaded)
    given: dict[str, Any] = {"args": training, "processing_class": tokenizer}
    if case.recipe == "ppo":
        roles = Roles(loaded, fingerprint(model, tokenizer))
        attach_shapes(roles, config, [config], reference=False, value="adapter")
        tokens = case.length - case.length // 2
        prompts = Dataset.from_list(
            [{"prompt": prompt_of(tokenizer, tokens)}] * case.batch * case.accumulate
        )
        trainer: Any = PPOTrainer(roles, train_dataset=prompts, **given)
    else:
        row = case.row()
        if case.recipe == "dpo":  # TRL's trainer takes no tokenized rows
            half = case.length // 2
            answer = " a" * (case.length - half - 1)  # EOS is added
            row = {"prompt": prompt_of(tokenizer, half), "chosen": answer, "rejected": answer}
        given["train_dataset"] = Dataset.from_list([row] * case.batch * case.accumulate)
        if case.recipe == "sft":
            trainer = SFTTrainer(loaded, peft_config=config, **given)
        elif case.recipe == "dpo":
            roles = Roles(loaded, fingerprint(model, tokenizer))
            assert config is not None
            roles.create(POLICY, config)
            assert roles.model is not None
            trainer = DPOTrainer(roles.model, **given)
        else:
            collator = RankingCollator(int(tokenizer.pad_token_id))
            adapted = with_score_head(loaded, config)
            trainer = RankingTrainer(adapted, data_collator=collator, **given)
    trainer.base_fingerprint = {}
    trainer.train()


def prompt_of(tokenizer: Any, tokens: int) -> str:
    """A text of exactly so many tokens."""
    text = ""
    while len(tokenizer(text + " a")["input_ids"]) <= tokens:
        text += " a"
    assert len(tokenizer(text)["input_ids"]) == tokens
    return text


def measure_here(case: Case) -> float:
    """Megabytes that training a case adds to this process."""
    import torch

    from toolkit.models.memory import release

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        toy, base = Path(folder) / "toy", Path(folder) / "base"
        small = replace(case, hidden=64, layers=1, vocabulary=2048, batch=2, length=32)
        for made, place in ((small, toy), (case, base)):
            made.save_base(place)
        train(small, toy)
        gc.collect()
        release()
        _CLEAR.write_text("5", encoding="utf-8")  # the peak so far was the toy's
        before = _megabytes("VmRSS")
        train(case, base)
        return _megabytes("VmHWM") - before


def measure(case: Case) -> float:
    """The same in a process of its own."""
    words = [
        sys.executable,
        "-m",
        "benchmarks.memory",
        "--child",
        json.dumps(case.as_row()),
    ]
    environment = os.environ | ALLOCATOR | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{case.name}: {done.stderr[-2000:]}")
    return float(done.stdout.strip().splitlines()[-1].removeprefix("added_mb "))


def compare(case: Case) -> dict[str, Any]:
    """A case's measured and predicted peak in megabytes, and what the prediction consists of."""
    with tempfile.TemporaryDirectory() as folder:
        case.save_base(Path(folder))
        highest = max(predict_case(case, Path(folder)), key=lambda peak: peak.total)
    predicted, measured = highest.total / 2**20, measure(case)
    return {
        "case": case.as_row(),
        "measured_mb": round(measured, 1),
        "predicted_mb": round(predicted, 1),
        "off": round(predicted / measured - 1, 3),
        "phase": highest.phase,
        "parts_mb": {name: round(size / 2**20, 1) for name, size in highest.parts.items()},
    }


def main() -> None:
    """Compare cases and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=[c.name for c in CASES])
    parser.add_argument("--out", type=Path, default=Path("docs/results/preflight.json"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.child:
        print(f"added_mb {measure_here(Case(**json.loads(words.child)))}")
        return
    known = {case.name: case for case in CASES}
    kept = json.loads(words.out.read_text(encoding="utf-8"))["cases"] if words.out.is_file() else []
    found = {row["case"]["name"]: row for row in kept}
    for name in words.cases:
        found[name] = compare(known[name])
        row = found[name]
        numbers = f"{row['predicted_mb']:.0f} MB predicted, {row['measured_mb']:.0f} MB measured"
        print(f"{name}: {numbers}, {row['off']:+.1%}", flush=True)
        content = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, one used",
            "command": "python -m benchmarks.memory",
            "cases": [found[c.name] for c in CASES if c.name in found],
        }
        words.out.parent.mkdir(parents=True, exist_ok=True)
        words.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _megabytes(name: str) -> float:
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"{_STATUS}: no {name}")


if __name__ == "__main__":
    main()
