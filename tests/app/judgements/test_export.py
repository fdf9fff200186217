"""Judgements become datasets that toolkit/data reads and the recipes train on."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

from tests.app.judgements.fake_workbench import FakeWorkbench
from tests.app.judgements.judgements import BASE, battle, ranking, reply
from tests.conftest import ROOT
from toolkit.app.judgements.battles import Battles
from toolkit.app.judgements.export import FILES, export, training_commands, training_files
from toolkit.app.judgements.judgement import VERDICTS, Judgement, parse_order
from toolkit.app.judgements.store import Store
from toolkit.app.workbench import Workbench
from toolkit.cli import main
from toolkit.data import messages
from toolkit.data.convert import convert_row
from toolkit.data.loading import load_splits
from toolkit.models.base import fingerprint, load_base
from toolkit.models.roles import Roles
from toolkit.options.arguments import DataArguments
from toolkit.options.command_line import parse
from toolkit.recipe import find_recipe
from toolkit.runs.run import Run

JUDGEMENTS: list[Judgement] = [
    battle("1", "sft", "dpo", "b", labeler="Ann", reason="kinder", prompt="Füße?\u2028"),
    battle("2", "base", "dpo", "a", prompt="What?"),
    battle("3", "sft", "dpo", "tie"),
    battle("4", "sft", "dpo", "both_bad"),
    battle("5", "sft", "dpo", "skip"),
    ranking("6", "sft dpo ppo base", (2, 1, 2, 3), likert=(4, 7, None, 1), prompt="Where?"),
]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def read(file: Path, kind: str) -> list[dict[str, Any]]:
    """The rows of a file, as a recipe reads them."""
    script = ScriptArguments(dataset_name=str(file))
    splits = load_splits(script, DatasetMixtureConfig(), DataArguments(), kind=kind, seed=0)
    return list(splits["train"])


def test_preference_rows_contain_their_origin(tmp_path: Path) -> None:
    export(JUDGEMENTS).write(tmp_path)
    first, second, *pairs = read(tmp_path / "preference.jsonl", "preference")
    assert first["prompt"] == user("Füße?\u2028")
    assert first["chosen"] == assistant("dpo says 1.")
    assert first["rejected"] == assistant("sft says 1.")
    assert first["group_id"] is None
    assert first["provenance"] == {
        "judgement": "1",
        "kind": "battle",
        "labeler": "Ann",
        "reason": "kinder",
        "time": "2026-01-02T03:04:05Z",
        "sampling": {"temperature": 0.7, "max_new_tokens": 64},
        "base": BASE,
        "chosen": {"checkpoint": "dpo", "adapter_sha256": "hash of dpo", "seed": 1},
        "rejected": {"checkpoint": "sft", "adapter_sha256": "hash of sft", "seed": 1},
    }
    assert (second["chosen"], second["rejected"]) == (
        assistant("base says 1."),
        assistant("dpo says 1."),
    )
    assert second["provenance"]["chosen"]["adapter_sha256"] is None
    better = [(p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in pairs]
    assert sorted(better) == [
        ("dpo says 2.", "base says 4."),
        ("dpo says 2.", "ppo says 3."),
        ("dpo says 2.", "sft says 1."),
        ("ppo says 3.", "base says 4."),
        ("sft says 1.", "base says 4."),
    ]
    assert len({p["group_id"] for p in pairs}) == 1 and pairs[0]["group_id"]
    assert all(
        p["provenance"][side]["checkpoint"] == p[side][0]["content"].split()[0]
        for p in pairs
        for side in ("chosen", "rejected")
    )


def test_other_files_are_readable(tmp_path: Path) -> None:
    written = export(JUDGEMENTS).write(tmp_path)
    assert [f.name for f in written] == list(FILES)
    ranked = json.loads((tmp_path / "ranked.jsonl").read_text())
    assert ranked["ranks"] == [2, 1, 2, 3]
    assert ranked["provenance"]["likert"] == [4, 7, None, 1]
    assert [a["seed"] for a in ranked["provenance"]["answers"]] == [1, 2, 3, 4]
    assert len(read(tmp_path / "ranked.jsonl", "preference")) == 5
    labels = [
        (row["completion"][0]["content"], row["label"], row["provenance"]["answer"]["checkpoint"])
        for row in read(tmp_path / "unpaired.jsonl", "unpaired")
    ]
    assert labels == [
        ("dpo says 1.", True, "dpo"),
        ("sft says 1.", False, "sft"),
        ("base says 1.", True, "base"),
        ("dpo says 1.", False, "dpo"),
        ("dpo says 2.", True, "dpo"),  # the two middle answers of the ranking get no label
        ("base says 4.", False, "base"),
    ]
    bad = read(tmp_path / "both_bad.jsonl", "unpaired")
    assert [row["label"] for row in bad] == [False, False]
    (tie,) = [json.loads(line) for line in (tmp_path / "ties.jsonl").read_text().splitlines()]
    assert tie["ranks"] == [1, 1] and tie["provenance"]["judgement"] == "3"


def test_export_is_reproducible_and_removes_old_files(tmp_path: Path) -> None:
    first = {f.name: f.read_bytes() for f in export(JUDGEMENTS).write(tmp_path)}
    assert {f.name: f.read_bytes() for f in export(JUDGEMENTS).write(tmp_path)} == first
    assert [f.name for f in export(JUDGEMENTS[:2]).write(tmp_path)] == [
        "preference.jsonl",
        "unpaired.jsonl",
    ]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["preference.jsonl", "unpaired.jsonl"]


def test_rejected_judgements_are_left_out_and_counted() -> None:
    same = (reply("sft", "Yes."), reply("dpo", "Yes. "))
    empty = (reply("sft", "Yes."), reply("dpo", " \n"))
    exported = export(
        [
            battle("1", "sft", "dpo", "a", replies=same),
            battle("2", "sft", "dpo", "a", replies=empty),
            battle("3", "sft", "dpo", "b", replies=empty),
            battle("4", "sft", "dpo", "tie", replies=same),
        ]
    )
    assert exported.left_out == {"chosen equals rejected": 1, "empty text": 2}
    counts = {name: len(lines) for name, lines in exported.lines.items() if lines}
    assert counts == {"ties.jsonl": 1}


TEXTS = st.sampled_from(
    ["Yes.", "Yes. ", "No.", "Nein:\u2028", " ", "", "\ud800", '"\\', "Maybe\n"]
)


@st.composite
def judgements(draw: st.DrawFn) -> Judgement:
    """A battle or ranking; the recipes reject some of the answers."""
    k = draw(st.integers(1, 5))
    prompt = draw(st.sampled_from(["Why?", " ", "\ud800"]))
    names = ("sft", "base", "dpo", "ppo", "sft")[: max(k, 2)]
    replies = tuple(reply(name, seed=i) for i, name in enumerate(names, start=1))
    replies = tuple(replace(one, text=draw(TEXTS)) for one in replies)
    if k == 1:
        verdict = draw(st.sampled_from(VERDICTS))
        return battle("b", "sft", "base", verdict, replies=replies, prompt=prompt, labeler='"ö')
    ranks = tuple(draw(st.integers(1, k)) for _ in replies)
    return ranking("r", " ".join(names), ranks, replies=replies, prompt=prompt)


@settings(max_examples=400, deadline=None)
@given(judgements())
def test_every_line_is_a_valid_row(judgement: Judgement) -> None:
    """The export checks a ranking as a whole, not each of its up to 36 pairs."""
    exported = export([judgement])
    for name, lines in exported.lines.items():
        for line in lines:
            row = json.loads(line)
            assert json.dumps(row, ensure_ascii=False) + "\n" == line
            kind = "unpaired" if FILES[name] == "unpaired" else "preference"
            convert_row(row, format=FILES[name], kind=kind)
    assert sum(exported.left_out.values()) <= 1
    assert not (exported.left_out and any(exported.lines.values()))


def test_ranking_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    as_text = messages.as_text
    monkeypatch.setattr(messages, "as_text", lambda v, name: read.append(name) or as_text(v, name))
    exported = export([ranking("1", " ".join(["sft", "dpo", "ppo"] * 3), tuple(range(1, 10)))])
    assert len(exported.lines["preference.jsonl"]) == 36
    assert len(read) == 1 + 9  # the prompt, the answers


def test_commands_are_quoted_and_use_the_base_of_the_parent() -> None:
    base = {"id": "org/it's a model", "quantization": "4bit-nf4-double"}
    commands = training_commands(
        Path("my runs/j"), base=base, parent=Path("my runs/$sft"), runs=Path("r")
    )
    words = shlex.split(commands["dpo"])
    assert words[:2] == ["toolkit", "dpo"]
    options = dict(zip(words[2::2], words[3::2], strict=True))
    assert options == {
        "--dataset_name": "my runs/j/preference.jsonl",
        "--parent": "my runs/$sft",
        "--output_dir": "r/judged/dpo",
        "--drop_bad_rows": "true",
    }
    assert "--dataset_name 'my runs/j/unpaired.jsonl'" in commands["kto"]
    assert training_commands(Path("x"), base=base, parent=None, runs=Path("r")) == {}


def test_new_recipe_gets_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ipo.py").write_text(
        "from toolkit.recipe import Recipe\n"
        'RECIPE = Recipe("ipo", "Identity preferences.", rows="preference", arguments=tuple, build=id)\n'
    )
    monkeypatch.setenv("TOOLKIT_RECIPES", str(tmp_path))
    assert training_files()["ipo"] == "preference.jsonl"
    commands = training_commands(Path("j"), base=BASE, parent=Path("sft"), runs=Path("r"))
    assert commands["ipo"].startswith("toolkit ipo --dataset_name")


@pytest.mark.parametrize("recipe", ["reward", "dpo", "kto"])
def test_recipes_accept_the_commands_options(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for base in ({"id": "world:base"}, {"id": "a/b", "quantization": "8bit"}):
        commands = training_commands(Path("j"), base=base, parent=Path("sft"), runs=Path("r"))
        program, name, *words = shlex.split(commands[recipe])
        assert (program, name) == ("toolkit", recipe)
        script_arguments, training, *_, start = parse(find_recipe(recipe).argument_classes(), words)
        assert script_arguments.dataset_name == f"j/{training_files()[recipe]}"
        assert training.output_dir == f"r/judged/{recipe}"
        assert (start.parent, start.drop_bad_rows) == ("sft", True)


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SFT run on the embedded base with an untrained adapter."""
    folder = tmp_path_factory.mktemp("with a blank") / "sft"
    model = ModelConfig(model_name_or_path="world:base", dtype="float32")
    base, tokenizer = load_base(model)
    torch.manual_seed(0)
    run = Run.start(folder, recipe="sft")
    run.base = fingerprint(model, tokenizer)
    roles = Roles(base, run.base)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    roles.create("default", lora)
    roles.save("default", folder)
    tokenizer.save_pretrained(folder)
    run.finish()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "read_as"),
    [
        ("reward", "14 rows -> preference (train 14)"),
        ("kto", "12 rows -> unpaired (train 12)"),  # 4 battles, and the ends of 2 rankings
    ],
)
def test_recipes_train_on_exported_votes(
    tmp_path: Path,
    sft: Path,
    recipe: str,
    read_as: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake = FakeWorkbench(tmp_path / "runs")
    battles = Battles(cast(Workbench, fake), Store(tmp_path / "runs" / "j.sqlite"))
    pool = list(fake.catalog.checkpoints)
    for i in range(6):
        *_, shown = battles.battle(f"What is {i}?", pool)
        battles.vote(shown.id, ("a", "b", "both_bad")[i % 3])
    for i in range(2):
        *_, shown = battles.ranking(f"Who is {i}?", pool, 4)
        battles.rank(shown.id, parse_order("3 > 1 = 2 > 4", 4))
    export(battles.store.all()).write(tmp_path / "runs" / "j")
    file = tmp_path / "runs" / "j" / "preference.jsonl"
    assert len(file.read_text().splitlines()) == 4 + 2 * 5
    commands = training_commands(
        file.parent, base={"id": "world:base"}, parent=sft, runs=tmp_path / "runs"
    )
    program, *words = shlex.split(commands[recipe])
    assert program == "toolkit"
    small = ["--max_steps", "1", "--per_device_train_batch_size", "2", "--save_strategy", "no"]
    if recipe == "reward":
        small += ["--max_rows", "64"]
    monkeypatch.chdir(ROOT)
    assert main([*words, *small, "--warmup_steps", "0"]) == 0
    assert read_as in capsys.readouterr().out
    run = Run.load(tmp_path / "runs" / "judged" / recipe)
    assert run.state == "finished" and run.adapter_problem() is None
