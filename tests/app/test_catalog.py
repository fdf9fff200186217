"""The runs folder as the page shows it: ids, references, and what is broken and why."""

import json
import os
import pickle
import shlex
import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.app.conftest import MakeRun, edit_json
from toolkit.app import inspection
from toolkit.app.answering import cli_command as recall
from toolkit.app.choices import NO_REWARD_RUN, NO_SCORE, checkpoint_choices, reward_choices
from toolkit.app.lineage import Lineage
from toolkit.app.workbench import Workbench
from toolkit.runs.run import Run
from toolkit.sampling.settings import Drawing


def broken(workbench: Workbench) -> dict[str, str]:
    return dict(workbench.refresh().broken)


def references(workbench: Workbench) -> dict[str, str | None]:
    """name -> name of the reference, or the reason why there is none."""
    entries = workbench.refresh().checkpoints
    return {
        e.name: entries[e.reference].name if e.reference else e.no_reference
        for e in entries.values()
    }


def test_runs_are_found_and_sorted_into_kinds(workbench: Workbench) -> None:
    catalog = workbench.catalog
    assert [e.name for e in catalog.checkpoints.values()] == ["base", "dpo", "ppo", "sft"]
    assert [e.name for e in catalog.rewards.values()] == ["reward"]
    assert not catalog.empty


def test_ids_say_nothing_of_the_disk_and_stay(workbench: Workbench, make_run: MakeRun) -> None:
    before = {e.name: e.id for e in workbench.catalog.checkpoints.values()}
    make_run(workbench.runs / "aaa", "dpo", seed=9)
    after = {e.name: e.id for e in workbench.refresh().checkpoints.values()}
    assert before.items() <= after.items() and len(set(after.values())) == len(after)
    for name, key in after.items():
        assert key == "base" or (key.startswith("run_") and name not in key)


def test_no_folder_at_all_is_only_the_base(tiny_base: str, tmp_path: Path) -> None:
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
    found = broken(workbench)
    assert set(found) == {*("damaged", "foreign", "cut", "headless", "odd", "begun", "stopped")}
    assert "damaged manifest" in found["damaged"]
    assert "other/model" in found["foreign"] and "0123" in found["foreign"]
    assert "damaged" in found["cut"] and "damaged" in found["odd"]
    assert "head.safetensors is missing" in found["headless"]
    assert "not finished" in found["begun"]
    assert "RuntimeError: out of memory" in found["stopped"]
    assert not any(str(runs) in reason for reason in found.values())
    assert set(references(workbench)) == {"base", "dpo", "ppo", "sft"}


def test_recipes_without_an_adapter_are_not_broken(workbench: Workbench) -> None:
    for recipe in ("label", "merge", "evaluate"):
        Run.start(workbench.runs / recipe, recipe=recipe).finish()
    assert set(broken(workbench)) == {"damaged"}


@pytest.mark.parametrize("parents", [["sft"], "sft", {"adapter": ["x"]}, {"adapter": "\0"}, None])
def test_a_strange_lineage_harms_nobody_else(workbench: Workbench, parents: object) -> None:
    edit_json(workbench.runs / "dpo" / "run.json", parents=parents)
    assert {"base", "ppo", "sft"} <= set(references(workbench))


def test_references_are_the_first_sft_of_the_lineage(
    workbench: Workbench, make_run: MakeRun
) -> None:
    runs = workbench.runs
    make_run(runs / "ppo2", "ppo", seed=7, parents={"adapter": str(runs / "ppo")})
    make_run(runs / "best_of_n", "sft", seed=8, parents={"adapter": str(runs / "sft")})
    make_run(runs / "no_sft", "ppo", seed=9)
    make_run(runs / "orphan", "dpo", seed=10, parents={"adapter": "elsewhere/gone"})
    found = references(workbench)
    assert found["base"] == found["sft"] == found["dpo"] == found["ppo"] == "sft"
    assert found["ppo2"] == found["best_of_n"] == "sft"
    assert found["no_sft"] == "base"
    assert found["orphan"] == "its parent elsewhere/gone is not among the runs"


def test_a_broken_reference_is_named(workbench: Workbench) -> None:
    (workbench.runs / "sft" / "adapter_model.safetensors").unlink()
    found = references(workbench)
    assert found["ppo"] == "its SFT run sft is broken"
    assert found["base"] == "base"
    keys = {e.name: e.id for e in workbench.catalog.checkpoints.values()}
    answer = next(workbench.compare("Hello", [keys["ppo"]], max_new_tokens=4))
    assert answer.problem is None and answer.kl is None
    assert answer.notes == ("no KL: its SFT run sft is broken",)


def test_a_moved_folder_keeps_its_lineage(
    workbench: Workbench, tiny_base: str, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere" / "runs"
    shutil.move(workbench.runs, moved)
    assert references(Workbench.open(tiny_base, moved))["ppo"] == "sft"


def test_a_circle_of_parents_ends(workbench: Workbench) -> None:
    edit_json(workbench.runs / "dpo" / "run.json", parents={"adapter": str(workbench.runs / "ppo")})
    edit_json(workbench.runs / "ppo" / "run.json", parents={"adapter": str(workbench.runs / "dpo")})
    assert "not among the runs" in (references(workbench)["ppo"] or "")


def test_names_from_the_disk_can_be_shown(workbench: Workbench, make_run: MakeRun) -> None:
    runs = workbench.runs
    make_run(runs / ("x" * 120), "dpo", seed=6)
    make_run(runs / "line\nbreak\x1b[31m", "dpo", seed=6)
    (runs / "sft").rename(runs / "caf\udce9")  # bytes that are no UTF-8: safetensors refuses
    catalog = workbench.refresh()
    names = [e.name for e in catalog.checkpoints.values()] + [name for name, _ in catalog.broken]
    assert len(names) == 5 + 2
    for shown in [*names, *(reason for _, reason in catalog.broken)]:
        assert shown.isprintable()
        shown.encode("utf-8")
    assert max(map(len, names)) == 80


def test_choices_start_with_base_and_sft_and_keep_what_was_chosen(workbench: Workbench) -> None:
    catalog = workbench.catalog
    keys = {e.name: e.id for e in catalog.checkpoints.values()}
    first = checkpoint_choices(catalog)
    assert first.chosen == [keys[n] for n in ("base", "sft", "dpo", "ppo")]
    assert [label for label, _ in first.choices][-1] == "sft (sft)"
    kept = checkpoint_choices(catalog, [keys["ppo"], "run_000099"])
    assert kept.chosen == [keys["ppo"]]


def test_reward_choices(workbench: Workbench, tiny_base: str, tmp_path: Path) -> None:
    reward = next(iter(workbench.catalog.rewards))
    assert reward_choices(workbench.catalog).chosen == [reward]
    assert reward_choices(workbench.catalog, NO_SCORE).chosen == [NO_SCORE]
    assert reward_choices(workbench.catalog, NO_REWARD_RUN).chosen == [reward]
    none = Workbench.open(tiny_base, tmp_path / "none").catalog
    assert reward_choices(none, reward).chosen == [NO_REWARD_RUN]


def test_changed_weights_are_broken_and_put_back_are_not(workbench: Workbench) -> None:
    file = workbench.runs / "dpo" / "adapter_model.safetensors"
    before = file.read_bytes()
    keys = {e.name: e.id for e in workbench.catalog.checkpoints.values()}
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))  # finite, and of the same length
    answer, fine = workbench.compare("Hello", [keys["dpo"], keys["ppo"]], max_new_tokens=4)
    assert "was changed after the run finished" in (answer.problem or "")
    assert fine.problem is None
    assert "was changed after the run finished" in broken(workbench)["dpo"]
    file.write_bytes(before)
    assert "dpo" not in broken(workbench)
    assert next(workbench.compare("Hello", [keys["dpo"]], max_new_tokens=4)).problem is None


def test_what_was_fine_is_read_again_only_after_a_change(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    changed = inspection.changed
    monkeypatch.setattr(
        inspection, "changed", lambda run, saved: (looked.append(run.name), changed(run, saved))[1]
    )
    assert set(broken(workbench)) == {"damaged"} and looked == []
    file = workbench.runs / "dpo" / "adapter_model.safetensors"
    before, times = file.read_bytes(), file.stat()
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as if nothing had been written
    assert "was changed after the run finished" in broken(workbench)["dpo"]
    assert "dpo" in broken(workbench) and looked == ["dpo", "dpo"]
    file.write_bytes(before)
    for _ in range(2):
        assert "dpo" not in broken(workbench) and looked == ["dpo"] * 3


def test_a_parent_is_found_by_its_place_or_by_the_end_of_its_path() -> None:
    runs = [Run(Path(p), "sft") for p in ("/a/one/sft", "/b/one/sft", "/b/two/sft", "/b/two/dpo")]
    lineage = Lineage(runs)
    assert lineage.find("/b/one/sft") is runs[1]
    assert lineage.find("/b/two/../one/sft") is runs[1]
    assert lineage.find("/moved/two/sft") is runs[2]
    assert lineage.find("dpo") is runs[3]
    assert lineage.find("/moved/one/sft") is None  # two could be meant
    assert lineage.find("/moved/three/sft") is None and lineage.find("") is None


def test_a_run_that_recorded_no_hashes_still_loads(workbench: Workbench) -> None:
    file = workbench.runs / "dpo" / "run.json"
    saved = json.loads(file.read_text())
    del saved["weights"]
    file.write_text(json.dumps(saved))
    assert "dpo" not in broken(workbench)
    keys = {e.name: e.id for e in workbench.catalog.checkpoints.values()}
    assert next(workbench.compare("Hello", [keys["dpo"]], max_new_tokens=4)).problem is None


def test_a_pickle_is_never_opened(workbench: Workbench) -> None:
    folder = workbench.runs / "dpo"
    touched = workbench.runs / "touched"
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Touch(touched)))
    assert "adapter_model.bin is a pickle, which is never opened" in broken(workbench)["dpo"]
    assert not touched.exists()
    pickle.loads((folder / "adapter_model.bin").read_bytes())
    assert touched.exists()  # opening it would have shown


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.file,))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"auto_mapping": {"base_model_class": "X", "parent_library": "planted"}}, None),
        ({"megatron_config": {"a": 1}, "megatron_core": "planted"}, "megatron_config"),
        ({"init_lora_weights": "pissa"}, "would change the base's weights"),
        ({"peft_type": "XLORA", "adapters": {"0": "planted"}}, ""),
        ({"peft_type": "planted"}, ""),
    ],
)
def test_an_adapters_config_runs_no_code_and_leaves_the_base(
    workbench: Workbench,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    config: dict[str, object],
    said: str | None,
) -> None:
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    keys = {e.name: e.id for e in workbench.catalog.checkpoints.values()}
    ask = partial(workbench.compare, "Hello", max_new_tokens=6, temperature=0)
    base, ppo = ask(["base", keys["ppo"]])
    edit_json(workbench.runs / "dpo" / "adapter_config.json", **config)
    Run.load(workbench.runs / "dpo").finish()  # as if it had been written so
    answer = next(ask([keys["dpo"]]))
    assert (answer.problem is None) == (said is None)
    assert (said or "") in (answer.problem or "")
    assert list(ask(["base", keys["ppo"]])) == [base, ppo]
    assert not (tmp_path / "ran").exists()


def test_links_and_pipes_in_a_run_are_broken_and_nothing_is_read(workbench: Workbench) -> None:
    runs = workbench.runs
    secret = runs.parent / "secret"
    secret.write_text("SECRET")
    (runs / "dpo" / "adapter_config.json").unlink()
    (runs / "dpo" / "adapter_config.json").symlink_to(secret)
    (runs / "ppo" / "base.json").unlink()
    os.mkfifo(runs / "ppo" / "base.json")
    found = broken(workbench)
    assert "leads out of the runs folder" in found["dpo"]
    assert "a pipe, a socket or a device" in found["ppo"]
    assert "SECRET" not in str(found)
    assert set(references(workbench)) == {"base", "sft"}


def test_an_adapter_replaced_by_a_link_after_the_look_is_refused(workbench: Workbench) -> None:
    file = workbench.runs / "dpo" / "adapter_model.safetensors"
    elsewhere = workbench.runs.parent / "elsewhere.safetensors"
    keys = {e.name: e.id for e in workbench.catalog.checkpoints.values()}
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    answer = next(workbench.compare("Hello", [keys["dpo"]], max_new_tokens=4))
    assert "leads out of the runs folder" in (answer.problem or "")


def test_a_run_called_base_is_not_the_base(workbench: Workbench, make_run: MakeRun) -> None:
    make_run(workbench.runs / "base", "sft", seed=7)
    catalog = workbench.refresh()
    by_name = {entry.name: entry for entry in catalog.checkpoints.values()}
    assert by_name["base"].path is None and by_name["./base"].path == workbench.runs / "base"
    told = recall.command(
        [],
        checkpoint=by_name["./base"].name,
        messages=[{"role": "user", "content": "Hi"}],
        drawing=Drawing(),
        reward=None,
    )
    name = shlex.split(told)[shlex.split(told).index("--checkpoint") + 1]
    assert recall._id(catalog, name) == by_name["./base"].id
