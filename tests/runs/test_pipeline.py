"""The pipeline's YAML and what makes a stage run again."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from tests.conftest import ROOT
from toolkit.errors import CheckpointError, ConfigError, ToolkitError
from toolkit.pipeline import Pipeline, run_pipeline
from toolkit.runs.resuming import last_checkpoint, list_contents
from toolkit.runs.run import ADAPTER_FILES, Run

GOOD = """
output_dir: {out}
seed: 0
stages:
  sft:
    recipe: sft
    config: {config}
  ppo:
    recipe: ppo
    config: {config}
    options: {{parent: "{{sft}}", runs: ["{{sft}}", x]}}
"""


@pytest.fixture
def write(tmp_path):
    config = tmp_path / "stage.yaml"
    config.write_text("seed: 1\n")

    def go(text):
        file = tmp_path / "pipeline.yaml"
        file.write_text(text.format(out=tmp_path / "runs", config=config))
        return file

    return go


def test_options_name_earlier_stages(write, tmp_path):
    pipeline = Pipeline.read(str(write(GOOD)))
    words = pipeline.words(pipeline.stages[1])
    assert words[words.index("--parent") + 1] == str(tmp_path / "runs" / "sft")
    at = words.index("--runs")
    assert words[at + 1 : at + 3] == [str(tmp_path / "runs" / "sft"), "x"]
    assert words[words.index("--output_dir") + 1] == str(tmp_path / "runs" / "ppo")
    moved = GOOD.replace(
        "config: {config}\n", "config: {config}\n    options: {{output_dir: a}}\n", 1
    )
    assert Pipeline.read(str(write(moved))).stages[1].options["parent"] == "a"
    other = Pipeline.read(str(write(GOOD)), seed=3, output_dir="elsewhere")
    words = other.words(other.stages[0])
    assert words[words.index("--seed") + 1] == "3"
    assert words[words.index("--output_dir") + 1] == "elsewhere/sft"


def test_rounds_repeat_their_stages(write, tmp_path):
    pipeline = Pipeline.read("world/rounds", output_dir=str(tmp_path / "r"), seed=5)
    names = [stage.name for stage in pipeline.stages]
    rounds = [f"{name}-{i}" for i in (1, 2, 3) for name in ("comparisons", "reward", "ppo")]
    assert names == ["sft", *rounds, "report"]
    words = {stage.name: pipeline.words(stage) for stage in pipeline.stages}

    def value(stage, option, count=1):
        at = words[stage].index(f"--{option}")
        found = [word.removeprefix(f"{tmp_path}/r/") for word in words[stage][at + 1 :][:count]]
        return found if count > 1 else found[0]

    assert value("comparisons-1", "parent") == "sft" and "--earlier" not in words["comparisons-1"]
    assert value("comparisons-3", "parent") == "ppo-2"
    assert value("comparisons-3", "earlier") == "comparisons-2"
    assert value("ppo-2", "reward_model") == "reward-2" and value("ppo-2", "parent") == "sft"
    assert value("report", "runs", 4) == ["sft", "ppo-1", "ppo-2", "ppo-3"]
    assert value("report", "reward_model") == "reward-3"
    assert [value(name, "seed") for name in ("sft", "ppo-1", "ppo-3", "report")] == list("5575")


ROUND = "rounds: 2\nstages:\n  sft:\n    each_round: true"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("seed: 0", "seed: 0\nrounds: 2", "`each_round: true` in the stages to repeat"),
        ("  sft:", "  sft:\n    each_round: true", "set `rounds`"),
        ("stages:", "rounds: 0\nstages:", "must be an integer in 1…100, got 0"),
        ("stages:", "rounds: true\nstages:", "must be an integer in 1…100, got True"),
        ("stages:", "rounds: 51\nstages:", "2 stages and 51 rounds; at most 100"),
        ("stages:\n  sft:", ROUND + "\n    first_round: [1]", "`first_round` must be dict"),
        ("  ppo:", "  ppo:\n    first_round: {{}}", "`first_round` needs `each_round: true`"),
        (
            "stages:\n  sft:",
            ROUND + '\n    options: {{parent: "{{last.sft}}"}}',
            "in round 1 there",
        ),
        ("stages:\n  sft:", ROUND + '\n    options: {{parent: "{{ppo}}"}}', "names `ppo`, which"),
        ('"{{sft}}", x', '"{{all.ppo}}"', "names `all.ppo`, which is neither"),
    ],
)
def test_mistakes_in_rounds_are_named(write, before, after, message):
    with pytest.raises(ConfigError, match=message):
        Pipeline.read(str(write(GOOD.replace(before, after, 1))))


def test_stages_of_rounds_follow_each_other(write):
    last = "  dpo: {{recipe: dpo, config: {config}, each_round: true}}\n"
    text = GOOD.replace("stages:\n  sft:", ROUND, 1) + last
    with pytest.raises(ConfigError, match="must follow each other"):
        Pipeline.read(str(write(text)))
    listed = GOOD.replace("stages:\n  sft:", ROUND, 1).replace("{{sft}}", "a{{all.sft}}", 1)
    with pytest.raises(ConfigError, match=r"is a list; it cannot be a part of"):
        Pipeline.read(str(write(listed)))


def test_values_replace_their_names(write):
    text = GOOD.replace("seed: 0", "seed: 0\nvalues: {{pairs: mine.jsonl}}")
    file = str(write(text.replace('"{{sft}}", x', '"{{pairs}}", x')))
    for values, expected in ((), "mine.jsonl"), (["pairs=a=b.csv"], "a=b.csv"):
        pipeline = Pipeline.read(file, values=values)
        words = pipeline.words(pipeline.stages[1])
        assert words[words.index("--runs") + 1] == expected
    for values, message in (
        (["pairs"], "expected NAME=TEXT"),
        (["x=y"], r"`values` \(pairs\), got 'x=y'"),
        (["pairs=--config"], "would be read as another option"),
    ):
        with pytest.raises(ConfigError, match=message):
            Pipeline.read(file, values=values)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("seed: 0", "seed: 0\nvalues: {{sft: x}}", "names, which no stage has, to texts"),
        ("seed: 0", "seed: 0\nvalues: {{x: 1}}", "to texts; got 'x': 1"),
        ("seed: 0", "seed: 0\nvalues: [x]", "`values` must be dict"),
        ("recipe: ppo", "recipe: nosuch", "`recipe` must be one of"),
        ("{{sft}}", "{{dpo}}", "names `dpo`, which is neither an earlier stage"),
        ("seed: 0", "seed: x", "`seed` must be int"),
        ("seed: 0", "sead: 0", "unknown key `sead`"),
        ("config: {config}", "config: no.yaml", "`config` no.yaml: neither a config file"),
        ("    recipe: sft\n", "", "`recipe` must be str"),
        ("seed: 0", "seed: true", "`seed` must be an integer in 0…4294967295, got True"),
        ("seed: 0", "seed: -1", "`seed` must be an integer"),
        ("seed: 0", "seed: 99999999999", "`seed` must be an integer"),
    ],
)
def test_mistakes_are_named(write, before, after, message):
    with pytest.raises(ConfigError, match=message):
        Pipeline.read(str(write(GOOD.replace(before, after))))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("output_dir: {{recipe: sft, config: world/sft}}", "a stage's name cannot be `output_dir`"),
        (
            "a: {{recipe: sft, config: world/sft, options: {{output_dir: 7}}}}",
            "must be text, got 7",
        ),
        (
            "a: {{recipe: sft, config: world/sft, options: {{config: x}}}}",
            "`config` is set by the pipe",
        ),
        (
            "a: {{recipe: sft, config: world/sft, options: {{help: true}}}}",
            "`help` is set by the pipe",
        ),
        (
            "a: {{recipe: sft, config: world/sft, options: {{resume_from_checkpoint: /x}}}}",
            "`resume_from_checkpoint` is set by the pipeline",
        ),
        (
            """a: {{recipe: sft, config: world/sft, options: {{run_name: "a\\0b"}}}}""",
            "`run_name` must have at most 100,000 characters and no NUL",
        ),
        (
            "a: {{recipe: sft, config: world/sft, options: {{run_name: " + "a" * 200_000 + "}}}}",
            "`run_name` must have at most 100,000 characters and no NUL",
        ),
        ("a" * 300 + ": {{recipe: sft, config: world/sft}}", "File name too long"),
        (
            "\n".join(
                f"  s{i}: {{{{recipe: sft, config: world/sft}}}}" for i in range(101)
            ).strip(),
            "has 101 stages; at most 100 are supported",
        ),
        (
            "a: {{recipe: sft, config: world/sft}}\n"
            "  b: {{recipe: sft, config: world/sft, options: {{output_dir: '{{a}}'}}}}",
            "stage `b`: its folder .* is or lies in the folder of stage `a`",
        ),
        (
            "a: {{recipe: sft, config: world/sft}}\n"
            "  b: {{recipe: sft, config: world/sft, options: {{output_dir: '{{a}}/checkpoint-3'}}}}",
            "stage `b`: its folder .* is or lies in the folder of stage `a`",
        ),
    ],
)
def test_stages_that_cannot_run_are_rejected(write, stages, message):
    text = "output_dir: {out}\nseed: 0\nstages:\n  " + stages + "\n"
    with pytest.raises(ConfigError, match=message):
        Pipeline.read(str(write(text)))


def test_changed_config_repeats_its_stage_and_later_ones(write, tmp_path):
    file = write(GOOD)
    first = Pipeline.read(str(file))
    before = [first.fingerprint(i) for i in range(2)]
    assert before == [Pipeline.read(str(file)).fingerprint(i) for i in range(2)]
    write(GOOD.replace("runs: [", "runs: [y, "))
    changed = [Pipeline.read(str(file)).fingerprint(i) for i in range(2)]
    assert changed[0] == before[0]
    assert changed[1] != before[1]
    (tmp_path / "stage.yaml").write_text("seed: 2\n")
    assert Pipeline.read(str(file)).fingerprint(0) != before[0]


def test_changed_data_changes_the_fingerprint(write, tmp_path):
    file, rows = write(GOOD), tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    (tmp_path / "stage.yaml").write_text(f"dataset_name: {rows}\n")
    before = Pipeline.read(str(file)).fingerprint(0)
    rows.write_text("{}\n{}\n")
    assert Pipeline.read(str(file)).fingerprint(0) != before


@pytest.mark.parametrize(
    "option",
    [
        "trust_remote_code: true",
        '"trust-remote-code": true',
        '"trust_remote_code=true": []',
        "runs: [x, --trust_remote_code, true]",
        "runs: [x, --trust-remote-code=true]",
        "model_init_kwargs: {{trust_remote_code: true}}",
        """model_init_kwargs: '{{"trust\\u005fremote_code": true}}'""",
    ],
)
def test_only_command_line_enables_trust_remote_code(write, option):
    text = GOOD.replace('runs: ["{{sft}}", x]', option)
    assert text != GOOD
    with pytest.raises(
        ConfigError, match="stage `ppo`: `trust_remote_code` cannot be set in a file"
    ):
        Pipeline.read(str(write(text)))
    pipeline = Pipeline.read(str(write(GOOD)), trust_remote_code=True)
    for stage in pipeline.stages:
        assert pipeline.words(stage)[-2:] == ["--trust_remote_code", "true"]
    assert "--trust_remote_code" not in Pipeline.read(str(write(GOOD))).words(pipeline.stages[0])


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ('reward_funcs: "evil.py:f"', "reward_funcs"),
        ('reward_funcs: ["evil.py:f"]', "reward_funcs"),
        ('"reward-funcs": "evil.py:f"', "reward_funcs"),
        ('"--reward_funcs": "evil.py:f"', "reward_funcs"),
        ('runs: [x, --reward_funcs, "evil.py:f"]', "reward_funcs"),
        ('"dtype=float32 --reward_funcs": x', "an option's name must consist"),
        ('runs: "--reward_funcs={{sft}}"', "reward_funcs"),
        ("attn_implementation: evil/kernel", "attn_implementation"),
        ("runs: ['--parent', y]", "would be read as another option, got '--parent'"),
        ("parent: -x", "would be read as another option, got '-x'"),
        ('"-c": x', "an option's name must consist of letters"),
        ('"parent=x": y', "an option's name must consist of letters"),
        ('"parent y": y', "an option's name must consist of letters"),
        ("1: y", "an option's name must consist of letters"),
        ("parent: {{a: 1}}", "must be text, a number, a boolean or a list"),
        ("parent: null", "must be text, a number, a boolean or a list"),
        ("parent: [[a]]", "must be text, a number, a boolean or a list"),
    ],
)
def test_stage_options_cannot_name_code_or_other_options(write, options, option):
    text = GOOD.replace('runs: ["{{sft}}", x]', options)
    text = text.replace('parent: "{{sft}}", ', "") if "parent" in options else text
    with pytest.raises(ConfigError) as error:
        Pipeline.read(str(write(text)))
    assert "stage `ppo`" in str(error.value) and option in str(error.value)


def test_options_are_checked_after_stages_are_filled_in(write, tmp_path):
    text = GOOD.replace("output_dir: {out}", 'output_dir: "--reward_funcs"')
    with pytest.raises(ConfigError, match="`output_dir` would be read as another option"):
        Pipeline.read(str(write(text)))
    text = GOOD.replace('runs: ["{{sft}}", x]', 'runs: ["{{output_dir}}"]')
    with pytest.raises(ConfigError, match="would be read as another option, got '-x"):
        Pipeline.read(str(write(text)), output_dir="-x")


def test_negative_numbers_are_values(write):
    text = GOOD.replace("runs: [", "max_steps: -1, cliprange: [-0.5, '-2'], runs: [")
    assert "--max_steps -1 --cliprange -0.5 -2" in " ".join(
        (pipeline := Pipeline.read(str(write(text)))).words(pipeline.stages[1])
    )


def test_command_line_reward_functions_reach_stages_with_the_option(write, tmp_path):
    functions = tmp_path / "rewards.py"
    functions.write_text("def f(**_): return [0.0]\n")
    file = str(write(GOOD))
    name = f"{functions}:f"
    pipeline = Pipeline.read(file, reward_funcs=[name])
    sft, ppo = map(pipeline.words, pipeline.stages)
    assert ppo[-2:] == ["--reward_funcs", name]
    assert "--reward_funcs" not in sft
    before = pipeline.fingerprint(1)
    functions.write_text("def f(**_): return [1.0]\n")
    assert Pipeline.read(file, reward_funcs=[name]).fingerprint(1) != before
    assert Pipeline.read(file).fingerprint(0) == pipeline.fingerprint(0)
    with pytest.raises(ConfigError, match="no stage has the option `reward_funcs`"):
        Pipeline.read(str(write(ONE)), reward_funcs=[name])


@pytest.mark.parametrize("module", ["judges/rewards.py", "judges.rewards"])
def test_fingerprint_covers_modules_beside_the_reward_function(
    write, tmp_path, monkeypatch, module
):
    """Nothing is imported: the functions may load a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "judges").mkdir()
    (tmp_path / "judges" / "rewards.py").write_text("from .scale import SCALE\nraise ValueError\n")
    scale, file = tmp_path / "judges" / "scale.py", str(write(GOOD))

    def fingerprint(text):
        scale.write_text(text)
        return Pipeline.read(file, reward_funcs=[f"{module}:f"]).fingerprint(1)

    assert fingerprint("SCALE = 1") == fingerprint("SCALE = 1") != fingerprint("SCALE = 2")


ONE = """
output_dir: {out}
seed: 0
stages:
  reward:
    recipe: reward
    config: {config}
"""


class Stages:
    """In the place of stages' processes: a run as a recipe makes it, that dies where it is told to."""

    def __init__(self, folder):
        self.folder, self.dies, self.asked = folder, None, []

    def __call__(self, words, output, more):
        with mock.patch.dict(os.environ, more):
            return self.run(words)

    def run(self, words):
        resume = words[words.index("--resume_from_checkpoint") + 1] == "true"
        found = last_checkpoint(self.folder, resume)
        self.asked.append(found is not None)
        with (
            contextlib.suppress(RuntimeError),
            Run.start(self.folder, recipe="reward", resume=found) as run,
        ):
            self.die("loading")
            run.begin()
            place = self.folder / "checkpoint-2"
            place.mkdir(exist_ok=True)
            for name in (*ADAPTER_FILES, "optimizer.pt", "scheduler.pt"):
                (place / name).write_bytes(b"x")
            (place / "trainer_state.json").write_text("{}")
            list_contents(place)
            self.die("training")
            run.finish()
            return 0, 1
        return 2, 1

    def die(self, where):
        if self.dies == where:
            raise RuntimeError(where)


@pytest.fixture
def stages(tmp_path, monkeypatch):
    made = Stages(tmp_path / "runs" / "reward")
    monkeypatch.setattr("toolkit.pipeline._call", made)
    return made


def test_killed_stage_does_not_resume_from_replaced_run(write, tmp_path, stages):
    """The finished run is as it was, and of another configuration."""
    file = str(write(ONE))
    run_pipeline(Pipeline.read(file))
    first = Run.load(stages.folder).started
    (tmp_path / "stage.yaml").write_text("seed: 2\n")
    stages.dies = "loading"
    for _ in range(2):
        with pytest.raises(ToolkitError, match="stage reward failed"):
            run_pipeline(Pipeline.read(file))
        assert (Run.load(stages.folder).state, Run.load(stages.folder).started) == (
            "finished",
            first,
        )
        assert (stages.folder / "checkpoint-2").is_dir()
    stages.dies = None
    run_pipeline(Pipeline.read(file))
    assert Run.load(stages.folder).started > first
    assert stages.asked == [False] * 4  # never from what was there


@pytest.mark.parametrize(
    "entry",
    [
        3,
        [],
        *({"seconds": "x"}, {"seconds": None}, {"fingerprint": 3}, {"finished": "x"}),
        *({"replaces": [1]}, {"before": 3}, {"before": {"fingerprint": 3}}),
    ],
)
def test_stage_with_damaged_entry_runs_again(write, tmp_path, stages, entry):
    file, state = str(write(ONE)), tmp_path / "runs" / "pipeline.json"
    run_pipeline(Pipeline.read(file))
    old = json.loads(state.read_text())["reward"]
    state.write_text(json.dumps({"reward": old | entry if isinstance(entry, dict) else entry}))
    run_pipeline(Pipeline.read(file))
    assert len(stages.asked) == 2 and Run.load(stages.folder).state == "finished"


def test_change_while_a_stage_runs_is_reported(write, tmp_path, stages, monkeypatch, capsys):
    file, rows = str(write(ONE)), tmp_path / "rows.jsonl"
    (tmp_path / "stage.yaml").write_text(f"dataset_name: {rows}\n")
    rows.write_text("{}\n")
    monkeypatch.setattr(stages, "die", lambda _: rows.write_text('{"edited": 1}\n'))
    run_pipeline(Pipeline.read(file))
    assert "warning: a config or an input of reward or of an" in capsys.readouterr().out
    run_pipeline(Pipeline.read(file))  # repeats the stage
    assert len(stages.asked) == 2 and "warning" not in capsys.readouterr().out


def test_stage_whose_folder_was_deleted_runs_again(write, tmp_path, stages):
    """The output folder is a link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "real")
    file = str(write(ONE))
    run_pipeline(Pipeline.read(file))
    run_pipeline(Pipeline.read(file))
    assert len(stages.asked) == 1
    shutil.rmtree(stages.folder)
    run_pipeline(Pipeline.read(file))
    assert len(stages.asked) == 2 and Run.load(stages.folder).state == "finished"


@pytest.mark.parametrize(
    ("recipe", "finished"), [("reward", True), ("reward", False), ("sample", False)]
)
def test_reverted_change_repeats_no_stage(write, tmp_path, stages, recipe, finished):
    """A typo in an option: what had finished is done, what had not goes on from its checkpoint."""
    file = str(write(ONE.replace("recipe: reward", f"recipe: {recipe}")))
    if not finished:
        stages.dies = "training"
        with pytest.raises(ToolkitError, match="stage reward failed"):
            run_pipeline(Pipeline.read(file))
    else:
        run_pipeline(Pipeline.read(file))
    before, stages.dies = (tmp_path / "stage.yaml").read_text(), "loading"
    for typo in ("learning_rte: 1\n", "learning_rte: 2\n", "learning_rte: 2\n"):
        (tmp_path / "stage.yaml").write_text(typo)
        with pytest.raises(ToolkitError, match="stage reward failed"):
            run_pipeline(Pipeline.read(file))
    (tmp_path / "stage.yaml").write_text(before)
    stages.dies = None
    assert list(run_pipeline(Pipeline.read(file))) == ["reward"]  # with its seconds
    assert stages.asked == [False] * 4 + ([] if finished else [True])


def test_unfinished_run_stays_until_changed_stage_begins(write, tmp_path, stages):
    file = str(write(ONE))
    stages.dies = "training"
    with pytest.raises(ToolkitError, match="stage reward failed"):
        run_pipeline(Pipeline.read(file))
    (tmp_path / "stage.yaml").write_text("seed: 2\n")
    stages.dies = "loading"
    for _ in range(2):
        with pytest.raises(ToolkitError, match="stage reward failed"):
            run_pipeline(Pipeline.read(file))
        assert (stages.folder / "checkpoint-2").is_dir()
    stages.dies = None
    run_pipeline(Pipeline.read(file))
    assert stages.asked == [False] * 4  # and never from the earlier asking's checkpoint


def test_moved_pipeline_repeats_no_stage(write, tmp_path, stages):
    file = write(ONE)
    run_pipeline(Pipeline.read(str(file)))
    (tmp_path / "runs").rename(tmp_path / "moved")
    run_pipeline(Pipeline.read(str(file), output_dir=str(tmp_path / "moved")))
    assert len(stages.asked) == 1


def test_deleted_stage_and_later_stages_run_again(write, tmp_path, monkeypatch, capsys):
    ran = []

    def call(words, output, more):
        folder = Path(words[words.index("--output_dir") + 1])
        ran.append(folder.name)
        with mock.patch.dict(os.environ, more), Run.start(folder, recipe="sft") as run:
            run.begin()
            run.finish()
        return 0, 1

    monkeypatch.setattr("toolkit.pipeline._call", call)
    file = str(write(GOOD + "  dpo: {{recipe: dpo, config: {config}}}\n"))
    run_pipeline(Pipeline.read(file))
    shutil.rmtree(tmp_path / "runs" / "ppo")
    run_pipeline(Pipeline.read(file))
    assert ran == ["sft", "ppo", "dpo", "ppo", "dpo"]
    assert capsys.readouterr().out.count("finished before") == 1


def test_one_process_runs_a_pipeline_at_a_time(write, tmp_path, stages):
    file = str(write(ONE))
    (tmp_path / "runs").mkdir(exist_ok=True)
    code = (
        "from pathlib import Path; from toolkit.runs.locking import lock_folder as own; "
        f"kept = own(Path({str(tmp_path / 'runs')!r}), '.pipeline.lock'); print(1, flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout.readline() == b"1\n"
    with pytest.raises(CheckpointError, match="another process writes to it"):
        run_pipeline(Pipeline.read(file))
    assert not (tmp_path / "runs" / "pipeline.json").exists()
    other.communicate(b"\n")
    run_pipeline(Pipeline.read(file))


def test_killed_stage_resumes_unless_it_has_changed(write, tmp_path, stages):
    file = str(write(ONE))
    stages.dies = "training"
    for _ in range(2):
        with pytest.raises(ToolkitError, match="stage reward failed"):
            run_pipeline(Pipeline.read(file))
    (tmp_path / "stage.yaml").write_text("seed: 2\n")
    stages.dies = None
    run_pipeline(Pipeline.read(file))
    assert stages.asked == [False, True, False]
    run_pipeline(Pipeline.read(file))
    assert len(stages.asked) == 3


def test_clock_set_back_does_not_restart_stage(write, stages, monkeypatch):
    """A stage is killed while it trains; its clock is an hour behind the pipeline's."""
    clock = iter(range(10**6, 0, -3600))
    monkeypatch.setattr("time.time", lambda: float(next(clock)))
    file = str(write(ONE))
    stages.dies = "training"
    for _ in range(2):
        with pytest.raises(ToolkitError, match="stage reward failed"):
            run_pipeline(Pipeline.read(file))
    stages.dies = None
    run_pipeline(Pipeline.read(file))
    assert stages.asked == [False, True, True]
    assert 0 <= Run.load(stages.folder).seconds < 100


def test_clock_set_back_does_not_resume_from_replaced_run(write, tmp_path, stages, monkeypatch):
    """A changed stage dies while it loads; the old run's clock was ahead."""
    file = str(write(ONE))
    with monkeypatch.context() as ahead:
        ahead.setattr("time.time", lambda: 4e9)
        run_pipeline(Pipeline.read(file))
    (tmp_path / "stage.yaml").write_text("seed: 2\n")
    stages.dies = "loading"
    for _ in range(2):
        with pytest.raises(ToolkitError, match="stage reward failed"):
            run_pipeline(Pipeline.read(file))
    assert stages.asked == [False] * 3


@pytest.mark.parametrize("place", ["config", "list", "folder"])
def test_replaced_data_of_equal_size_and_time_changes_stage(write, tmp_path, place):
    rows = tmp_path / "data" / "rows.jsonl"
    rows.parent.mkdir()
    rows.write_text('{"a": 1}\n')
    os.utime(rows, (1, 1))
    value = {"config": rows, "list": f"[x, {rows}]", "folder": rows.parent}[place]
    file = write(GOOD)
    (tmp_path / "stage.yaml").write_text(f"dataset_name: {value}\n")
    before = Pipeline.read(str(file)).fingerprint(0)
    assert Pipeline.read(str(file)).fingerprint(0) == before
    os.utime(rows, (2, 2))
    assert Pipeline.read(str(file)).fingerprint(0) == before
    (tmp_path / "new").write_text('{"a": 2}\n')
    (tmp_path / "new").rename(rows)
    os.utime(rows, (2, 2))
    assert Pipeline.read(str(file)).fingerprint(0) != before


def test_data_named_in_stage_options_changes_stage(write, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    file = str(write(GOOD.replace("runs: [", f"dataset_name: {rows}, runs: [")))
    before = [Pipeline.read(file).fingerprint(i) for i in range(2)]
    rows.write_text("{}\n{}\n")
    after = [Pipeline.read(file).fingerprint(i) for i in range(2)]
    assert (after[0], after[1] != before[1]) == (before[0], True)
