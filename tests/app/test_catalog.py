"""The catalog of the runs folder: ids, references, broken runs and their reasons."""

import json
import os
import pickle
import shlex
import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.app.conftest import MakeRun, edit_json
from toolkit.app import catalog as module
from toolkit.app.answering.chat import Chat
from toolkit.app.answering.cli_command import _id, cli_command
from toolkit.app.answering.request import Answer
from toolkit.app.choices import NO_REWARD_RUN, NO_SCORE, checkpoint_choices, reward_choices
from toolkit.app.lineage import Lineage
from toolkit.app.tabs.compare_columns import column_updates
from toolkit.app.workbench import Workbench
from toolkit.runs.run import Run
from toolkit.sampling.settings import Drawing


def broken(workbench: Workbench) -> dict[str, str]:
    return dict(workbench.refresh().broken)


def references(workbench: Workbench) -> dict[str, str | None]:
    """name -> the reference's name, or why there is no reference."""
    entries = workbench.refresh().checkpoints
    return {
        e.name: entries[e.reference].name if e.reference else e.no_reference
        for e in entries.values()
    }


def test_scan_separates_checkpoints_and_reward_models(workbench: Workbench) -> None:
    catalog = workbench.catalog
    assert [e.name for e in catalog.checkpoints.values()] == ["base", "dpo", "ppo", "sft"]
    assert [e.name for e in catalog.rewards.values()] == ["reward"]
    assert not catalog.empty


def test_ids_hide_paths_and_stay_the_same(workbench: Workbench, make_run: MakeRun) -> None:
    before = {e.name: e.id for e in workbench.catalog.checkpoints.values()}
    make_run(workbench.runs / "aaa", "dpo", seed=9)
    after = {e.name: e.id for e in workbench.refresh().checkpoints.values()}
    assert before.items() <= after.items() and len(set(after.values())) == len(after)
    for name, id in after.items():
        assert id == "base" or (id.startswith("run_") and name not in id)


def test_missing_runs_folder_lists_only_the_base(tiny_base: str, tmp_path: Path) -> None:
    catalog = Workbench.open(tiny_base, tmp_path / "none").catalog
    assert catalog.empty and catalog.broken == () and list(catalog.checkpoints) == ["base"]


def test_broken_runs_are_listed_with_the_reason(workbench: Workbench, make_run: MakeRun) -> None:
    runs = workbench.runs
    make_run(runs / "foreign", "sft", seed=6)
    edit_json(runs / "foreign" / "base.json", weights="0123", id="other/model")
    make_run(runs / "cut", "dpo", seed=6)
    file = runs / "cut" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    make_run(runs / "headless", "reward", seed=6)
    (runs / "headless" / "head.safetensors").unlink()
    make_run(runs / "odd", "dpo", seed=6)
    (runs / "odd" / "adapter_config.json").write_text("[]}")
    Run.start(runs / "begun", recipe="ppo")
    Run.start(runs / "stopped", recipe="ppo").fail(RuntimeError("out of memory"))
    reasons = broken(workbench)
    assert set(reasons) == {*("damaged", "foreign", "cut", "headless", "odd", "begun", "stopped")}
    assert "damaged manifest" in reasons["damaged"]
    assert "other/model" in reasons["foreign"] and "0123" in reasons["foreign"]
    assert "damaged" in reasons["cut"] and "damaged" in reasons["odd"]
    assert "head.safetensors is missing" in reasons["headless"]
    assert "not finished" in reasons["begun"]
    assert "RuntimeError: out of memory" in reasons["stopped"]
    assert not any(str(runs) in reason for reason in reasons.values())
    assert set(references(workbench)) == {"base", "dpo", "ppo", "sft"}


def test_recipes_without_an_adapter_are_not_broken(workbench: Workbench) -> None:
    for recipe in ("label", "merge", "evaluate"):
        Run.start(workbench.runs / recipe, recipe=recipe).finish()
    assert set(broken(workbench)) == {"damaged"}


@pytest.mark.parametrize("parents", [["sft"], "sft", {"adapter": ["x"]}, {"adapter": "\0"}, None])
def test_invalid_parents_do_not_affect_other_runs(workbench: Workbench, parents: object) -> None:
    edit_json(workbench.runs / "dpo" / "run.json", parents=parents)
    assert {"base", "ppo", "sft"} <= set(references(workbench))


def test_reference_is_the_first_sft_of_the_lineage(workbench: Workbench, make_run: MakeRun) -> None:
    runs = workbench.runs
    make_run(runs / "ppo2", "ppo", seed=7, parents={"adapter": str(runs / "ppo")})
    make_run(runs / "best_of_n", "sft", seed=8, parents={"adapter": str(runs / "sft")})
    make_run(runs / "no_sft", "ppo", seed=9)
    make_run(runs / "orphan", "dpo", seed=10, parents={"adapter": "elsewhere/gone"})
    names = references(workbench)
    assert names["base"] == names["sft"] == names["dpo"] == names["ppo"] == "sft"
    assert names["ppo2"] == names["best_of_n"] == "sft"
    assert names["no_sft"] == "base"
    assert names["orphan"] == "its parent elsewhere/gone is not in the runs folder"


def test_note_names_the_broken_reference(workbench: Workbench) -> None:
    (workbench.runs / "sft" / "adapter_model.safetensors").unlink()
    names = references(workbench)
    assert names["ppo"] == "its SFT run sft cannot be used"
    assert names["base"] == "base"
    ids = {e.name: e.id for e in workbench.catalog.checkpoints.values()}
    answer = next(workbench.compare("Hello", [ids["ppo"]], max_new_tokens=4))
    assert answer.problem is None and answer.kl is None
    assert answer.notes == ("no KL: its SFT run sft cannot be used",)


def test_moved_runs_folder_keeps_its_lineage(
    workbench: Workbench, tiny_base: str, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere" / "runs"
    shutil.move(workbench.runs, moved)
    assert references(Workbench.open(tiny_base, moved))["ppo"] == "sft"


def test_circular_parents_end(workbench: Workbench) -> None:
    edit_json(workbench.runs / "dpo" / "run.json", parents={"adapter": str(workbench.runs / "ppo")})
    edit_json(workbench.runs / "ppo" / "run.json", parents={"adapter": str(workbench.runs / "dpo")})
    assert "not in the runs folder" in (references(workbench)["ppo"] or "")


def test_names_from_the_disk_are_printable(workbench: Workbench, make_run: MakeRun) -> None:
    runs = workbench.runs
    make_run(runs / ("x" * 120), "dpo", seed=6)
    make_run(runs / "line\nbreak\x1b[31m", "dpo", seed=6)
    (runs / "sft").rename(runs / "caf\udce9")  # invalid UTF-8, which safetensors rejects
    catalog = workbench.refresh()
    names = [e.name for e in catalog.checkpoints.values()] + [name for name, _ in catalog.broken]
    assert len(names) == 5 + 2
    for shown in [*names, *(reason for _, reason in catalog.broken)]:
        assert shown.isprintable()
        shown.encode("utf-8")


def test_long_names_stay_complete_and_exact(workbench: Workbench) -> None:
    runs = workbench.runs
    folders = [runs / "sweep" / f"{'x' * 140}-{end}" for end in ("seed-0", "seed-1", "\1", "\2")]
    for folder in folders:
        shutil.copytree(runs / "dpo", folder)
    catalog = workbench.refresh()
    named = {e.name: e for e in catalog.checkpoints.values() if e.path in folders}
    assert len(named) == len({e.label for e in named.values()}) == 4
    assert f"sweep/{folders[1].name}" in named
    for name, entry in named.items():
        assert _id(catalog, name) == entry.id
    answers = [Answer(e.id, name, "Hi", 1, True) for name, e in named.items()]
    updates = column_updates(
        Chat().with_prompt("Hi").with_answers(answers),
        answers,
        [],
        shown=0,
        markdown=False,
        options=[],
    )
    titles = {u["label"] for u in updates if u.get("label")}
    assert len(titles) == 4 and max(map(len, titles)) < 80


def test_choices_start_with_base_and_sft(workbench: Workbench) -> None:
    catalog = workbench.catalog
    ids = {e.name: e.id for e in catalog.checkpoints.values()}
    first = checkpoint_choices(catalog)
    assert first.chosen == [ids[n] for n in ("base", "sft", "dpo", "ppo")]
    assert [label for label, _ in first.choices][-1] == "sft (sft)"
    later = checkpoint_choices(catalog, [ids["ppo"], "run_000099"])
    assert later.chosen == [ids["ppo"]]


def test_first_choice_has_ppo_and_no_copies_or_failed_runs(
    workbench: Workbench, runs: Path, make_run: MakeRun
) -> None:
    sft = {"adapter": str(runs / "sft")}
    for name in ("a_copy", "b_copy"):
        shutil.copytree(runs / "dpo", runs / name)
    make_run(runs / "a_failed", "kto", seed=11, parents=sft)
    edit_json(runs / "a_failed" / "run.json", state="failed", error="stopped")
    catalog = workbench.refresh()
    names = {e.id: e.name for e in catalog.checkpoints.values()}
    assert "a_failed" in names.values()
    assert [names[id] for id in checkpoint_choices(catalog).chosen] == [
        "base",
        "sft",
        "a_copy",
        "ppo",
    ]


def test_reward_choices(workbench: Workbench, tiny_base: str, tmp_path: Path) -> None:
    reward = next(iter(workbench.catalog.rewards))
    assert reward_choices(workbench.catalog).chosen == [reward]
    assert reward_choices(workbench.catalog, NO_SCORE).chosen == [NO_SCORE]
    assert reward_choices(workbench.catalog, NO_REWARD_RUN).chosen == [reward]
    empty = Workbench.open(tiny_base, tmp_path / "empty").catalog
    assert reward_choices(empty, reward).chosen == [NO_REWARD_RUN]


def test_changed_weights_are_broken_until_restored(workbench: Workbench) -> None:
    file = workbench.runs / "dpo" / "adapter_model.safetensors"
    before = file.read_bytes()
    ids = {e.name: e.id for e in workbench.catalog.checkpoints.values()}
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))  # still finite, with the same length
    answer, ppo = workbench.compare("Hello", [ids["dpo"], ids["ppo"]], max_new_tokens=4)
    assert "was changed after the run finished" in (answer.problem or "")
    assert ppo.problem is None
    assert "was changed after the run finished" in broken(workbench)["dpo"]
    file.write_bytes(before)
    assert "dpo" not in broken(workbench)
    assert next(workbench.compare("Hello", [ids["dpo"]], max_new_tokens=4)).problem is None


def test_sound_run_is_hashed_again_only_after_a_change(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    changed = module.changed
    monkeypatch.setattr(
        module, "changed", lambda run, saved: (hashed.append(run.name), changed(run, saved))[1]
    )
    assert set(broken(workbench)) == {"damaged"} and hashed == []
    file = workbench.runs / "dpo" / "adapter_model.safetensors"
    before, times = file.read_bytes(), file.stat()
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    # mtime is unchanged, but ctime is not
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "was changed after the run finished" in broken(workbench)["dpo"]
    assert "dpo" in broken(workbench) and hashed == ["dpo", "dpo"]
    file.write_bytes(before)
    for _ in range(2):
        assert "dpo" not in broken(workbench) and hashed == ["dpo"] * 3


def test_parent_is_found_by_path_or_its_tail() -> None:
    runs = [Run(Path(p), "sft") for p in ("/a/one/sft", "/b/one/sft", "/b/two/sft", "/b/two/dpo")]
    lineage = Lineage(runs)
    assert lineage.find("/b/one/sft") is runs[1]
    assert lineage.find("/b/two/../one/sft") is runs[1]
    assert lineage.find("/moved/two/sft") is runs[2]
    assert lineage.find("dpo") is runs[3]
    assert lineage.find("/moved/one/sft") is None  # two candidates
    assert lineage.find("/moved/three/sft") is None and lineage.find("") is None


def test_run_without_hashes_loads(workbench: Workbench) -> None:
    file = workbench.runs / "dpo" / "run.json"
    manifest = json.loads(file.read_text())
    del manifest["weights"]
    file.write_text(json.dumps(manifest))
    assert "dpo" not in broken(workbench)
    ids = {e.name: e.id for e in workbench.catalog.checkpoints.values()}
    assert next(workbench.compare("Hello", [ids["dpo"]], max_new_tokens=4)).problem is None


def test_pickle_is_never_opened(workbench: Workbench) -> None:
    folder = workbench.runs / "dpo"
    marker = workbench.runs / "marker"
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Touch(marker)))
    assert "adapter_model.bin is a pickle, which is never opened" in broken(workbench)["dpo"]
    assert not marker.exists()
    pickle.loads((folder / "adapter_model.bin").read_bytes())
    assert marker.exists()  # the pickle works


class Touch:
    """Unpickling this creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.file,))


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"auto_mapping": {"base_model_class": "X", "parent_library": "planted"}}, None),
        ({"megatron_config": {"a": 1}, "megatron_core": "planted"}, "megatron_config"),
        ({"init_lora_weights": "pissa"}, "would change the base's weights"),
        ({"peft_type": "XLORA", "adapters": {"0": "planted"}}, ""),
        ({"peft_type": "planted"}, ""),
    ],
)
def test_adapter_config_runs_no_code(
    workbench: Workbench,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    config: dict[str, object],
    problem: str | None,
) -> None:
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    ids = {e.name: e.id for e in workbench.catalog.checkpoints.values()}
    ask = partial(workbench.compare, "Hello", max_new_tokens=6, temperature=0)
    base, ppo = ask(["base", ids["ppo"]])
    edit_json(workbench.runs / "dpo" / "adapter_config.json", **config)
    Run.load(workbench.runs / "dpo").finish()  # stores the new hash
    answer = next(ask([ids["dpo"]]))
    assert (answer.problem is None) == (problem is None)
    assert (problem or "") in (answer.problem or "")
    assert list(ask(["base", ids["ppo"]])) == [base, ppo]
    assert not (tmp_path / "ran").exists()


def test_links_and_pipes_are_broken_and_not_read(workbench: Workbench) -> None:
    runs = workbench.runs
    secret = runs.parent / "secret"
    secret.write_text("SECRET")
    (runs / "dpo" / "adapter_config.json").unlink()
    (runs / "dpo" / "adapter_config.json").symlink_to(secret)
    (runs / "ppo" / "base.json").unlink()
    os.mkfifo(runs / "ppo" / "base.json")
    reasons = broken(workbench)
    assert "leads out of the runs folder" in reasons["dpo"]
    assert "a pipe, a socket or a device" in reasons["ppo"]
    assert "SECRET" not in str(reasons)
    assert set(references(workbench)) == {"base", "sft"}


def test_adapter_replaced_by_a_link_is_rejected(workbench: Workbench) -> None:
    file = workbench.runs / "dpo" / "adapter_model.safetensors"
    outside = workbench.runs.parent / "outside.safetensors"
    ids = {e.name: e.id for e in workbench.catalog.checkpoints.values()}
    file.rename(outside)
    file.symlink_to(outside)
    answer = next(workbench.compare("Hello", [ids["dpo"]], max_new_tokens=4))
    assert "leads out of the runs folder" in (answer.problem or "")


def test_run_called_base_is_not_the_base(workbench: Workbench, make_run: MakeRun) -> None:
    make_run(workbench.runs / "base", "sft", seed=7)
    catalog = workbench.refresh()
    by_name = {entry.name: entry for entry in catalog.checkpoints.values()}
    assert by_name["base"].path is None and by_name["./base"].path == workbench.runs / "base"
    command = cli_command(
        [],
        checkpoint=by_name["./base"].name,
        messages=[{"role": "user", "content": "Hi"}],
        drawing=Drawing(),
        reward=None,
    )
    name = shlex.split(command)[shlex.split(command).index("--checkpoint") + 1]
    assert _id(catalog, name) == by_name["./base"].id


def test_unknown_recipe_is_classified_by_its_files(workbench: Workbench) -> None:
    for name, recipe in (("dpo", "my_method"), ("reward", "my_reward"), ("ppo", 5)):
        edit_json(workbench.runs / name / "run.json", recipe=recipe)
    Run.start(workbench.runs / "empty", recipe="my_method").finish()
    catalog = workbench.refresh()
    assert [e.name for e in catalog.checkpoints.values()] == ["base", "dpo", "sft"]
    assert [e.name for e in catalog.rewards.values()] == ["reward"]
    assert {name for name, _ in catalog.broken} == {"damaged", "ppo"}
