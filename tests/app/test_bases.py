"""The base comes from the runs; of several bases, one is loaded and the others can be chosen."""

import re
import shlex
import shutil
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import app
from tests.app.conftest import edit_json, write_base, write_run
from toolkit.app.answering.chat import Chat
from toolkit.app.arguments import parse_arguments
from toolkit.app.bases import EMBEDDED, MAX_BASES, Base, find_bases
from toolkit.app.choices import checkpoint_choices
from toolkit.app.conversations.store import Conversations
from toolkit.app.judgements.battles import Battles
from toolkit.app.judgements.store import Store
from toolkit.app.loading import LoadingWorkbench
from toolkit.app.tabs.compare_events import CompareEvents, Visit, new_chat
from toolkit.app.workbench import Workbench
from toolkit.errors import CheckpointError, ConfigError
from toolkit.runs.listing import list_runs
from toolkit.runs.run import Run
from toolkit.sampling.row_batch import RowBatch

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def template(tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on the base `other`, and a newer one on `tiny`."""
    folder = tmp_path_factory.mktemp("bases")
    other = write_base(folder / "other", seed=7)
    root = folder / "runs"
    write_run(other, root / "old" / "sft", "sft", seed=1)
    write_run(other, root / "old" / "reward", "reward", seed=2)
    write_run(tiny_base, root / "new", "sft", seed=3)
    return root


@pytest.fixture
def mixed(template: Path, tmp_path: Path) -> Path:
    """A copy of the runs of `template`."""
    root = tmp_path / "runs"
    shutil.copytree(template, root)
    return root


def bases_in(root: Path) -> tuple[Base, ...]:
    return find_bases(list_runs(root)[0], root)


@pytest.fixture
def loading(mixed: Path) -> LoadingWorkbench:
    """A workbench that has loaded the first base."""
    loading = LoadingWorkbench("tiny", mixed)
    loading.load(lambda: Workbench.open_base(bases_in(mixed)[0], mixed))
    return loading


def names(catalog: Any) -> list[str]:
    return [entry.name for entry in catalog.checkpoints.values()]


def fake_run(path: Path, *, base: Any = None, **fields: Any) -> Run:
    default = {"id": "org/m", "weights": "org/m@c0ffee", "quantization": "none"}
    return Run(path, "sft", base=default | (base or {}), **fields)


def test_bases_are_found_with_their_runs_newest_first(mixed: Path, tiny_base: str) -> None:
    tiny, other = bases_in(mixed)
    assert (tiny.label, tiny.id, tiny.runs) == ("tiny", tiny_base, ("new",))
    assert (other.label, other.runs) == ("other", ("old/reward", "old/sft"))
    assert (str(tiny), str(other)) == ("tiny (1 run)", "other (2 runs)")
    edit_json(mixed / "old" / "sft" / "run.json", started=time.time() + 60)
    assert [base.label for base in bases_in(mixed)] == ["other", "tiny"]
    (mixed / "old" / "sft" / WEIGHTS).unlink()  # such as a run that failed
    assert [base.label for base in bases_in(mixed)] == ["tiny", "other"]


def test_precision_and_commit_come_from_the_run(tmp_path: Path) -> None:
    config = {"dtype": "bfloat16", "load_in_4bit": True, "use_bnb_nested_quant": True}
    base = {"quantization": "4bit-nf4-double"}
    (found,) = find_bases([fake_run(tmp_path / "a", base=base, config=config)], tmp_path)
    assert found.label == "org/m 4bit-nf4-double"
    assert found.config["model_revision"] == "c0ffee"
    local = Base("x", str(tmp_path), found.config, found.key)
    model = local.options()
    assert (model.model_name_or_path, model.dtype) == (str(tmp_path), "bfloat16")
    assert model.load_in_4bit and model.use_bnb_nested_quant
    with pytest.raises(CheckpointError, match="options are not valid"):
        Base("x", str(tmp_path), {**config, "load_in_8bit": True}).options()


def test_bases_of_one_name_get_different_labels(tmp_path: Path) -> None:
    commits = [{"weights": f"org/m@{c * 8}"} for c in "ab"]
    runs = [fake_run(tmp_path / f"{i}", base=b) for i, b in enumerate(commits)]
    labels = [base.label for base in find_bases(runs, tmp_path)]
    assert labels == ["org/m [aaaaaaaa]", "org/m [bbbbbbbb]"]


def test_damaged_manifests_name_no_base(tmp_path: Path) -> None:
    damaged = [{}, {"id": 3}, {"id": "a"}, {"id": "a", "weights": "", "quantization": "none"}]
    runs = [Run(tmp_path / "x", "sft", base=base) for base in damaged]
    assert find_bases(runs, tmp_path) == ()
    many = [fake_run(tmp_path / f"{i}", base={"weights": f"{i}"}) for i in range(MAX_BASES + 9)]
    assert len(find_bases(many, tmp_path)) == MAX_BASES


@pytest.mark.parametrize(
    ("id", "message"),
    [
        (
            "someone/unknown-model",
            "the app downloads only a base that you name; download it with `hf",
        ),
        ("/no/such/folder", "its folder /no/such/folder does not exist"),
        ("../outside", "does not exist"),
        ("a b\n", "download it with `hf download 'a b"),
    ],
)
def test_base_in_a_manifest_is_never_downloaded(
    id: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.app.workbench.load_base", lambda *a, **k: pytest.fail("loaded"))
    base = Base("x", id, {"trust_remote_code": True}, ("w", "none"))
    with pytest.raises(CheckpointError, match=message):
        Workbench.open_base(base, tmp_path)


def test_code_of_a_base_in_a_manifest_is_not_run(
    mixed: Path, tiny_base: str, tmp_path: Path
) -> None:
    folder = tmp_path / "code"
    shutil.copytree(tiny_base, folder)
    edit_json(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Own"})
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    base = Base("x", str(folder), {"trust_remote_code": True, "dtype": "float32"}, ("w", "none"))
    with pytest.raises(CheckpointError, match="cannot load the base model"):
        Workbench.open_base(base, mixed)
    assert not (tmp_path / "ran").exists()


def test_changed_base_is_rejected(mixed: Path, tiny_base: str, tmp_path: Path) -> None:
    write_base(tmp_path / "copy", seed=1)
    tiny = bases_in(mixed)[0]
    with pytest.raises(CheckpointError, match=r"tiny \(1 run\): the base has changed since"):
        Workbench.open_base(
            Base("tiny", str(tmp_path / "copy"), tiny.config, tiny.key, ("new",)), mixed
        )


@pytest.mark.slow
def test_ask_loads_the_base_of_the_checkpoint(
    mixed: Path, capsys: pytest.CaptureFixture[str], tiny_base: str
) -> None:
    words = ["--runs", str(mixed), "--temperature", "0", "--max_new_tokens", "4", "--ask", "Hi"]

    def ask(*more: str) -> tuple[int, str, str]:
        code = app.main([*words, *more])
        output = capsys.readouterr()
        return code, re.sub(r", \d+ per second", "", output.out), output.err

    code, answer, _ = ask("--checkpoint", "new", "--model_name_or_path", tiny_base)
    assert (code, answer) == ask("--checkpoint", "new")[:2] and code == 0
    code, other, _ = ask("--checkpoint", "old/sft", "--reward", "old/reward")
    assert code == 0 and "Score" in other and other.split("\n\n")[0] != answer.split("\n\n")[0]
    code, _, error = ask("--checkpoint", "new", "--checkpoint", "old/sft")
    assert (
        code == 2 and "old/sft cannot be used: trained on other (the loaded base is tiny)" in error
    )
    assert ask("--base", "other")[1] != ask()[1] == ask("--base", "tiny")[1]
    assert "a base named x; known: tiny, other" in ask("--base", "x")[2]


def test_base_options_need_a_named_base() -> None:
    for words, message in [
        (["--load_in_4bit"], "for a base that --model_name_or_path names"),
        (["--base", "a", "--model_name_or_path", "b"], "exclude each other"),
    ]:
        with pytest.raises(ConfigError, match=message):
            parse_arguments(words, description="")


@pytest.mark.slow
def test_missing_base_is_skipped_with_a_line(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = mixed / "new" / "run.json"
    fingerprint = Run.load(mixed / "new").base
    edit_json(manifest, base=fingerprint | {"id": str(tmp_path / "gone")})
    assert app.main(["--smoke", "--runs", str(mixed)]) == 0
    output = capsys.readouterr()
    assert "warning: gone (1 run): its folder" in output.err
    assert "Bases of the runs: gone (1 run); other (2 runs), loaded" in output.out
    assert "| old/sft: " in output.out
    shutil.rmtree(mixed / "old")
    assert app.main(["--smoke", "--runs", str(mixed)]) == 2


def test_without_runs_the_embedded_base_is_loaded(tmp_path: Path) -> None:
    arguments = parse_arguments(["--runs", str(tmp_path)], description="")
    assert app.bases_of(arguments) == [EMBEDDED]


def test_runs_of_other_bases_are_not_broken(loading: LoadingWorkbench) -> None:
    catalog = loading.catalog
    assert (catalog.base, catalog.broken) == ("tiny", ())
    assert names(catalog) == ["base", "new"] and catalog.rewards == {}
    assert catalog.unusable == dict.fromkeys(("old/sft", "old/reward"), "trained on other")
    named = Workbench.open(bases_in(loading.runs)[0].id, loading.runs).catalog
    assert named.bases == () and [name for name, _ in named.broken] == ["old/reward", "old/sft"]


def test_switch_frees_the_old_base_and_loads_the_new_one(loading: LoadingWorkbench) -> None:
    old = cast(Workbench, loading._workbench)
    weight, reference = old.roles.base.get_input_embeddings().weight, weakref.ref(old)
    loading._workbench.cli_options[:] = ["--runs", "x"]  # type: ignore[union-attr]
    ids = {e.name: e.id for e in loading.catalog.checkpoints.values()}
    del old
    loading.switch("other")
    assert weight.numel() == 0 and reference() is None
    assert loading.catalog.base == "other" and names(loading.catalog) == ["base", "old/sft"]
    assert loading.command_options == ["--runs", "x", "--base", "other"]
    with pytest.raises(CheckpointError, match="reload"):
        loading.compare("Hi", [ids["new"]])
    loading.switch("tiny")
    assert {e.name: e.id for e in loading.catalog.checkpoints.values()} == ids


def test_switch_ends_running_answers(
    loading: LoadingWorkbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = RowBatch.step
    monkeypatch.setattr(RowBatch, "step", lambda self: time.sleep(0.05) or step(self))
    loading.metrics.stop = [-1]
    ids = list(loading.catalog.checkpoints)
    growing = loading.stream("What is it?", ids, temperature=0, max_new_tokens=100)
    queued: list[Any] = []
    while not growing.now()[0].text:
        time.sleep(0.01)
    engine = loading.engine
    threading.Timer(0.1, loading.switch, ["other"]).start()
    *_, answers = growing
    for answer in answers:
        assert answer.done and 0 < answer.tokens < 100 and answer.kl is not None
        assert "stopped, because another base is loading" in answer.notes
    assert loading.compare("Hi", ["base"], temperature=0, max_new_tokens=2)
    with pytest.raises(Exception, match="busy"):
        engine.call(lambda: queued.append(1))
    assert queued == []


def test_failed_load_restores_the_old_base(
    loading: LoadingWorkbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = next(b for b in loading.catalog.bases if b.label == "other")
    config = Path(other.id) / "config.json"
    config.rename(config.with_suffix(".away"))
    try:
        with pytest.raises(CheckpointError, match="cannot load the base model"):
            loading.switch("other")
    finally:
        config.with_suffix(".away").rename(config)
    assert loading.ready and loading.catalog.base == "tiny"
    with monkeypatch.context() as patch:
        patch.setattr("toolkit.app.workbench.load_base", lambda *a, **k: 1 / 0)
        with pytest.raises(CheckpointError):
            loading.switch("other")
        with pytest.raises(CheckpointError, match="no base is loaded"):
            loading.compare("Hi", ["base"])
        assert not loading.ready and len(loading.catalog.bases) == 2
    loading.switch("tiny")
    assert loading.ready
    with pytest.raises(ConfigError, match="named x"):
        loading.switch("x")


def test_page_menu_switches_the_base(loading: LoadingWorkbench, tmp_path: Path) -> None:
    workbench = cast(Workbench, loading)
    page = app.build(workbench, Battles(workbench, Store(tmp_path / "j.sqlite")), [])
    event = next(f for f in page.fns.values() if f.name == "switch")
    assert [name for _, name in event.targets] == ["select"]  # `input` occurs twice for a choice
    first, last = event.fn("other")
    assert first[0]["visible"] and "loading" in first[0]["value"]
    _, checkpoints, reward, box, unusable, base, examples = last
    chosen = checkpoint_choices(loading.catalog).chosen
    assert checkpoints["value"] == chosen and len(chosen) == 2
    assert reward["choices"][0][0] == "old/reward (reward)"
    assert (box["visible"], unusable) == (True, "new: trained on tiny")
    assert base["choices"] == [("tiny (1 run)", "tiny"), ("other (2 runs)", "other")]
    assert (base["value"], base["visible"]) == ("other", True)
    assert examples["visible"] is False  # they are questions about the embedded world


def test_command_and_vote_belong_to_the_base_of_the_answers(
    loading: LoadingWorkbench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = CompareEvents(cast(Workbench, loading), Conversations(tmp_path / "c.sqlite"))
    ask, visitor = events.answering(new_chat), SimpleNamespace(session_hash="one")
    loading._workbench.cli_options[:] = ["--runs", str(loading.runs)]  # type: ignore[union-attr]
    settings = ("no_score", 0, 4, 0, 1, 1, "", 0)
    *_, last = ask(Chat(), Visit(), "Hi", ["base"], *settings, cast(Any, visitor))
    chat, command = last[1], last[-1 - 5 * 8]["value"]
    assert "--base tiny" in command and events.is_current(chat)
    capsys.readouterr()
    assert app.main(shlex.split(command)[2:]) == 0
    assert capsys.readouterr().out.startswith(next(iter(chat.answers.values())).text)
    loading.switch("other")
    assert not events.is_current(chat)
    assert events.settled(chat, Visit())[8 + 4]["value"] == ""
