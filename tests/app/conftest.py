"""Fixtures: a tiny random base with a tokenizer, runs with random adapters on it, and a browser."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM
from trl import ModelConfig

from toolkit.app.workbench import Workbench
from toolkit.models.base import fingerprint, load_base
from toolkit.models.heads import ScalarHead
from toolkit.models.roles import Roles
from toolkit.runs.run import Run
from toolkit.world.tokenizer import train_tokenizer

MakeRun = Callable[..., Run]
CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a two-layer Llama of hidden size 32."""
    return write_base(tmp_path_factory.mktemp("base") / "tiny", seed=0)


def write_base(folder: Path, *, seed: int) -> str:
    """Write a tiny base with random weights; returns its folder."""
    tokenizer = train_tokenizer(["What is it? I do not know it.", "Hello there."], vocab_size=300)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,  # far from uniform, so that two adapters answer differently
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def make_run(tiny_base: str) -> MakeRun:
    """A function that writes a finished run with a random adapter; see `write_run`."""
    return partial(write_run, tiny_base)


def write_run(
    base_name: str, path: Path, recipe: str, *, seed: int, parents: dict[str, Any] | None = None
) -> Run:
    """A finished run with a random adapter on a base of hidden size 32; a reward run also has a head."""
    model = ModelConfig(model_name_or_path=base_name, dtype="float32")
    base, tokenizer = load_base(model)
    torch.manual_seed(seed)
    run = Run.start(path, recipe=recipe, parents=parents)
    run.base = fingerprint(model, tokenizer)
    roles = Roles(base, run.base)
    # dropout, so that a forward pass in training mode gives other numbers
    roles.create(
        "default",
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.5),
    )
    assert roles.model is not None
    for name, parameter in roles.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    roles.save("default", path)
    if recipe == "reward":
        ScalarHead(32).save(path)
    return run.finish()


@pytest.fixture(scope="session")
def runs_template(tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun) -> Path:
    """The runs that `runs` copies for each test."""
    root = tmp_path_factory.mktemp("template") / "runs"
    sft = {"adapter": str(root / "sft")}
    make_run(root / "sft", "sft", seed=1)
    make_run(root / "dpo", "dpo", seed=2, parents=sft)
    make_run(root / "ppo", "ppo", seed=3, parents=sft | {"reward": str(root / "reward")})
    make_run(root / "reward", "reward", seed=4, parents=sft)
    make_run(root / "damaged", "dpo", seed=5, parents=sft)
    (root / "damaged" / "run.json").write_text("{")
    return root


@pytest.fixture
def runs(tmp_path: Path, runs_template: Path) -> Path:
    """sft, its children dpo and ppo, a reward run, and a run with a damaged manifest."""
    return copied_runs(runs_template, tmp_path)


def copied_runs(template: Path, folder: Path) -> Path:
    """A copy of the template's runs whose parents point to the copy."""
    root = folder / "runs"
    shutil.copytree(template, root)
    for manifest in root.glob("*/run.json"):
        manifest.write_text(manifest.read_text().replace(str(template), str(root)))
    return root


@pytest.fixture
def workbench(tiny_base: str, runs: Path) -> Workbench:
    """A workbench over `runs`."""
    return Workbench.open(tiny_base, runs)


def edit_json(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Headless Chromium through Playwright. Skips the tests if either is not installed.

    It is not shared by all files: Playwright keeps an event loop, beside which `asyncio.run` fails.
    """
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Any]:
    """Chromium without pages; each `new_page` has its own cookies and storage."""
    yield chromium
    for context in chromium.contexts:
        context.close()
