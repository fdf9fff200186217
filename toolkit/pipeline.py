"""Pipelines run the stages of a YAML file, each as its own command, and resume after an interruption."""

import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from toolkit.errors import CheckpointError, ConfigError, ToolkitError
from toolkit.options.config import find_config, load_yaml, options_of
from toolkit.options.stage_options import check_word, require_keys, stage_options
from toolkit.reading import parse_yaml, read_json, read_text
from toolkit.recipe import AnyCommand, Recipe, commands, files, find, with_words
from toolkit.runs.locking import lock_folder
from toolkit.runs.replacing import REPLACES, has_finished
from toolkit.runs.run import Run, write_json

STATE_FILE = "pipeline.json"


@dataclass(frozen=True)
class Stage:
    """One call of a command. `options` override the config."""

    name: str
    recipe: str
    config: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Pipeline:
    """Stages in order, all under one directory."""

    output_dir: Path
    seed: int
    stages: tuple[Stage, ...]
    trust_remote_code: bool = False
    reward_funcs: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        file: str,
        *,
        output_dir: str | None = None,
        seed: int | None = None,
        trust_remote_code: bool = False,
        reward_funcs: Sequence[str] = (),
    ) -> "Pipeline":
        """Read and check a pipeline's YAML, including that every stage's config file exists.

        Args:
            trust_remote_code: for every stage; only the command line may set it.
            reward_funcs: for every stage that has this option; only the command line may set them.

        Raises: ConfigError that names file, key, expected and got.
        """
        file = find_config(file)
        content = load_yaml(file)
        require_keys(content, {"output_dir": str, "seed": int, "stages": dict}, file)
        check_word(content["output_dir"], f"{file}: `output_dir`")
        directory = Path(output_dir or content["output_dir"])
        stages: list[Stage] = []
        for name, stage in content["stages"].items():
            place = f"{file}: stage `{name}`"
            if not re.fullmatch(r"\w[\w-]*", str(name)) or not isinstance(name, str):
                raise ConfigError(f"{place}: a stage's name has letters, digits, _ and - only")
            require_keys(stage, {"recipe": str, "config": str, "options": dict}, place, {"options"})
            if not _is_stage(find(stage["recipe"])):
                names = ", ".join(
                    name for name, command in commands().items() if _is_stage(command)
                )
                raise ConfigError(
                    f"{place}: `recipe` must be one of {names}, got {stage['recipe']!r}"
                )
            try:
                config_file = find_config(stage["config"])
            except ConfigError as error:
                raise ConfigError(f"{place}: `config` {error}") from error
            check_word(config_file, f"{place}: `config`")
            known = {s.name: str(directory / s.name) for s in stages}
            known["output_dir"] = str(directory)
            options = stage_options(stage.get("options", {}), known, place)
            stages.append(Stage(name, stage["recipe"], config_file, options))
        if not stages:
            raise ConfigError(f"{file}: `stages` is empty; add a stage")
        seed = content["seed"] if seed is None else seed
        pipeline = cls(directory, seed, tuple(stages), trust_remote_code, tuple(reward_funcs))
        if reward_funcs and not any(map(pipeline._takes_reward_functions, stages)):
            raise ConfigError(
                f"{file}: no stage has the option `reward_funcs`; remove --reward_funcs"
            )
        return pipeline

    def directory(self, stage: Stage) -> Path:
        """Where a stage writes: `output_dir` in its options, by default a folder of its name."""
        return Path(stage.options.get("output_dir", self.output_dir / stage.name))

    def command_of(self, stage: Stage) -> AnyCommand:
        """The command that a stage runs."""
        command = find(stage.recipe)
        assert command is not None
        return command

    def words(self, stage: Stage) -> list[str]:
        """The options of a stage's command line."""
        words = ["--config", stage.config]
        options = {"seed": self.seed} | stage.options | {"output_dir": self.directory(stage)}
        for key, value in options.items():
            words.append(f"--{key}")
            words += [str(v) for v in value] if isinstance(value, list) else [str(value)]
        if self.reward_funcs and self._takes_reward_functions(stage):
            words += ["--reward_funcs", *self.reward_funcs]
        return words + (["--trust_remote_code", "true"] if self.trust_remote_code else [])

    def _takes_reward_functions(self, stage: Stage) -> bool:
        command = self.command_of(stage)
        if isinstance(command, Recipe):
            return "reward_funcs" in options_of(command.argument_classes())
        return command.arguments is not None and "reward_funcs" in options_of(command.arguments())

    def fingerprint(self, at: int) -> str:
        """A hash that changes with any stage up to `at`: its options, its config, the files that the
        config names, and the code and base of this package."""
        parts, home = [_code()], str(self.output_dir)
        for stage in self.stages[: at + 1]:
            config = read_text(Path(stage.config))
            words = [word.replace(home, "{output_dir}") for word in self.words(stage)[2:]]
            parts += [stage.recipe, *words, config, *_named_files(config)]
            if "--reward_funcs" in words:
                parts += [_content(name.rpartition(":")[0]) for name in self.reward_funcs]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def run_pipeline(pipeline: Pipeline) -> dict[str, float]:
    """Run every stage that has not finished, with one line of progress per stage.

    A stage whose config changed runs again, and so do the stages after it. If the changed stage did
    not begin and the change is undone, its earlier result counts again. An interrupted stage resumes
    from its last checkpoint.

    Returns: seconds per stage, including those of earlier calls.
    Raises: ToolkitError if a stage fails, with the end of its log; CheckpointError if another
        process runs a pipeline in the directory.
    """
    lock = lock_folder(
        pipeline.output_dir, ".pipeline.lock"
    )  # a stage may write to the same folder
    try:
        return _run_stages(pipeline)
    finally:
        lock.release()


def _run_stages(pipeline: Pipeline) -> dict[str, float]:
    state_file = pipeline.output_dir / STATE_FILE
    done: dict[str, Any] = _read_state(state_file)
    run_again = False  # once a stage runs, all stages after it run again
    for at, stage in enumerate(pipeline.stages):
        fingerprint = pipeline.fingerprint(at)
        label = f"[{at + 1}/{len(pipeline.stages)}] {stage.name:<12}"
        entry = _last_entry(done.get(stage.name, {}), pipeline.directory(stage), fingerprint)
        same = entry.get("fingerprint") == fingerprint and not run_again
        if same and entry.get("finished") and has_finished(pipeline.directory(stage)):
            print(f"{label} finished before ({entry['seconds']:.0f} s)", flush=True)
            done[stage.name] = entry
            continue
        run_again = True
        began = entry.get("began", 0.0) if same else time.time()
        done[stage.name] = {"fingerprint": fingerprint, "finished": False, "began": began}
        before = entry.get("before") if same else {k: v for k, v in entry.items() if k != "before"}
        if before:
            done[stage.name]["before"] = before
        write_json(state_file, done)
        print(f"{label} running …", end="", flush=True)
        resume = same and _has_begun(pipeline.directory(stage), began)
        seconds, peak_mb = _run_stage(pipeline, stage, resume=resume, timings=_timings(done))
        seconds = round(seconds, 1)
        done[stage.name] |= {"finished": True, "seconds": seconds, "peak_mb": peak_mb}
        done[stage.name].pop("before", None)
        write_json(state_file, done)
        print(f"\r{label} finished in {seconds:.0f} s, at most {peak_mb} MB", flush=True)
    return _timings(done)


def _run_stage(
    pipeline: Pipeline, stage: Stage, *, resume: bool, timings: dict[str, float]
) -> tuple[float, int]:
    command, words = pipeline.command_of(stage), pipeline.words(stage)
    if isinstance(command, Recipe):
        words += ["--resume_from_checkpoint", str(resume).lower()]
    elif command.takes_timings:
        words += ["--timings", json.dumps(timings)]
    log = pipeline.output_dir / f"{stage.name}.log"
    began = time.monotonic()
    with log.open("a" if resume else "w", encoding="utf-8") as output:
        # without resume, unfinished work of an earlier config is replaced when this run begins
        code, peak_mb = _call(with_words(command, words), output, {} if resume else {REPLACES: "1"})
    if code != 0:
        print(flush=True)
        tail = "\n  ".join(_last_lines(log, 5))
        raise ToolkitError(
            f"stage {stage.name} failed with exit code {code}; its log {log} ends with\n"
            f"  {tail}\n  Run the same command again to continue."
        )
    return time.monotonic() - began, peak_mb


def _call(words: list[str], output: TextIO, variables: dict[str, str]) -> tuple[int, int]:
    """Run a command with further environment variables; returns its exit code and peak memory in MB."""
    with subprocess.Popen(
        words, stdout=output, stderr=subprocess.STDOUT, env=os.environ | variables
    ) as process:
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:  # Ctrl-C also reaches the stage: wait for it to end
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss // 1024


def _last_lines(log: Path, count: int) -> list[str]:
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    return [line for line in text.splitlines() if line.strip()][-count:]


def _timings(done: dict[str, Any]) -> dict[str, float]:
    return {name: entry["seconds"] for name, entry in done.items() if entry.get("finished")}


def _read_state(file: Path) -> dict[str, Any]:
    try:
        state = read_json(file)
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _last_entry(entry: dict[str, Any], directory: Path, fingerprint: str) -> dict[str, Any]:
    """The state of a stage's run; the state before the last change if the changed stage did not begin."""
    before = entry.get("before")
    if not before or entry.get("finished") or entry.get("fingerprint") == fingerprint:
        return entry
    return entry if _has_begun(directory, entry["began"]) else dict(before)


def _has_begun(directory: Path, began: float) -> bool:
    """Whether the run in a directory started at or after `began`; an earlier run does not count."""
    try:
        return Run.load(directory).started >= began
    except CheckpointError:
        return False


def _is_stage(command: AnyCommand | None) -> bool:
    return isinstance(command, Recipe) or (command is not None and command.is_stage)


@cache
def _code() -> str:
    """A hash of this package, its assets, and the recipes."""
    digest = hashlib.sha256()
    package = Path(__file__).resolve().parent
    kinds = (".py", ".safetensors", ".json", ".jinja")
    own = [file for file in package.rglob("*") if file.suffix in kinds]
    for file in (*sorted(own), *files().values()):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _content(file: str) -> str:
    """A hash of a file, or "" for the name of a module."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if Path(file).is_file() else ""


def _named_files(config: str) -> list[str]:
    """Size and modification time of every local file that a config names, such as its dataset."""
    try:
        content = parse_yaml(config)
    except ValueError:  # the stage itself reports it
        content = None
    values = content.values() if isinstance(content, dict) else ()
    names = sorted(v for v in values if isinstance(v, str) and "\n" not in v and Path(v).is_file())
    return [f"{n}:{Path(n).stat().st_size}:{Path(n).stat().st_mtime_ns}" for n in names]
