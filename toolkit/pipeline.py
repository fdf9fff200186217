"""Pipelines run the stages of a YAML file, each as its own command, and resume after an interruption."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from toolkit.errors import ConfigError, Interrupted, ToolkitError
from toolkit.options.config import check_output_dir, find_config, load_yaml, options_of
from toolkit.options.stage_options import (
    check_folders,
    check_size,
    check_word,
    each_stage,
    known_folders,
    read_values,
    require_keys,
    stage_options,
)
from toolkit.reading import check_types, read_bytes, read_mapping, read_text
from toolkit.recipe import AnyCommand, Recipe, commands, files, find, with_words
from toolkit.runs.code_files import files_of
from toolkit.runs.inputs import require_separate
from toolkit.runs.integrity import content_of
from toolkit.runs.locking import lock_folder
from toolkit.runs.replacing import REPLACES, has_finished, remove_leftovers
from toolkit.runs.run import MANIFEST, write_json
from toolkit.runs.signals import run_child as _call

STATE_FILE = "pipeline.json"
# the types of a stage's values in it
ENTRY = {"fingerprint": str, "finished": bool, "seconds": float | None, "replaces": str | None}


@dataclass(frozen=True)
class StageCall:
    """A stage of a pipeline: one call of a command; `options` override the config.

    `round` is 0 for a stage outside rounds.
    """

    name: str
    recipe: str
    config: str
    options: dict[str, Any]
    round: int = 0


@dataclass(frozen=True)
class Pipeline:
    """Stages in order, with all their outputs under one directory."""

    output_dir: Path
    seed: int
    stages: tuple[StageCall, ...]
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
        values: Sequence[str] = (),
    ) -> "Pipeline":
        """Read a pipeline's YAML and check it, including the existence of every stage's config.

        Args:
            trust_remote_code: for every stage; only the command line may set it.
            reward_funcs: for every stage that has this option; only the command line may set them.
            values: `NAME=TEXT` each, in place of the YAML's `values`.

        Raises: ConfigError that names the file, the key, the expected and the actual value.
        """
        file = find_config(file)
        content = load_yaml(file)
        types = {"output_dir": str, "seed": int, "rounds": int, "stages": dict, "values": dict}
        require_keys(content, types, file, {"rounds", "values"})
        check_word(content["output_dir"], f"{file}: `output_dir`")
        check_size(content, file)
        output_dir = content["output_dir"] if output_dir is None else output_dir
        check_output_dir(output_dir)
        directory = Path(output_dir).expanduser()
        texts: dict[str, Any] = {**read_values(content, values, file), "output_dir": str(directory)}
        stages: list[StageCall] = []
        done: list[tuple[str, int, str]] = []
        for base, number, stage in each_stage(content, file):
            name = f"{base}-{number}" if number else base
            place = f"{file}: stage `{name}`"
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
            known = texts | known_folders(done, number)
            options = stage_options(stage.get("options", {}), known, place)
            stages.append(StageCall(name, stage["recipe"], config_file, options, number))
            done.append((base, number, str(options.get("output_dir", directory / name))))
        if not stages:
            raise ConfigError(f"{file}: `stages` is empty; add at least one stage")
        seed = content["seed"] if seed is None else seed
        pipeline = cls(directory, seed, tuple(stages), trust_remote_code, tuple(reward_funcs))
        for call in stages:
            require_separate(
                pipeline.directory(call),
                load_yaml(call.config) | call.options,
                may_hold_runs=not isinstance(pipeline.command_of(call), Recipe),
            )
        check_folders({call.name: pipeline.directory(call) for call in stages}, file)
        if reward_funcs and not any(map(pipeline._takes_reward_functions, stages)):
            raise ConfigError(
                f"{file}: no stage has the option `reward_funcs`; remove --reward_funcs"
            )
        return pipeline

    def directory(self, stage: StageCall) -> Path:
        """The directory that a stage writes to: its option `output_dir`, by default its name."""
        return Path(stage.options.get("output_dir", self.output_dir / stage.name)).expanduser()

    def command_of(self, stage: StageCall) -> AnyCommand:
        """The command that a stage runs."""
        command = find(stage.recipe)
        assert command is not None
        return command

    def words(self, stage: StageCall) -> list[str]:
        """The options of a stage's command line."""
        words = ["--config", stage.config]
        seed = self.seed + max(0, stage.round - 1)  # a round has other prompts than the last one
        options = {"seed": seed} | stage.options | {"output_dir": self.directory(stage)}
        for key, value in options.items():
            words.append(f"--{key}")
            words += [str(v) for v in value] if isinstance(value, list) else [str(value)]
        if self.reward_funcs and self._takes_reward_functions(stage):
            words += ["--reward_funcs", *self.reward_funcs]
        return words + (["--trust_remote_code", "true"] if self.trust_remote_code else [])

    def _takes_reward_functions(self, stage: StageCall) -> bool:
        command = self.command_of(stage)
        if isinstance(command, Recipe):
            return "reward_funcs" in options_of(command.argument_classes())
        return command.arguments is not None and "reward_funcs" in options_of(command.arguments())

    def fingerprint(self, at: int) -> str:
        """A hash that changes with any stage up to `at`: its options, its config, the content of the
        files and folders that its options name, and the code and base of this package."""
        parts, home = [_code()], str(self.output_dir)
        for stage in self.stages[: at + 1]:
            config = read_text(Path(stage.config))
            words = [word.replace(home, "{output_dir}") for word in self.words(stage)[2:]]
            named = _texts(load_yaml(stage.config) | stage.options | {"output_dir": None})
            if "--reward_funcs" in words:
                named += [str(file) for name in self.reward_funcs for file in files_of(name)]
            inputs = content_of(named, written=self.output_dir)
            parts += [stage.recipe, *words, config, *inputs]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def run_pipeline(pipeline: Pipeline) -> dict[str, float]:
    """Run every stage that has not finished, with one line of progress per stage.

    A stage whose config changed runs again, and so do the stages after it. If the change is undone
    before the stage has begun, the stage's earlier result is used. An interrupted stage resumes
    from its last checkpoint.

    Returns: seconds per stage, including those of earlier calls.
    Raises: ToolkitError, with the end of the log, if a stage fails; CheckpointError if another
        process runs a pipeline in the directory.
    """
    # a name of its own, because a stage may write to the same folder
    lock = lock_folder(pipeline.output_dir, ".pipeline.lock")
    try:
        remove_leftovers(pipeline.output_dir)
        return _run_stages(pipeline)
    finally:
        lock.release()


def _run_stages(pipeline: Pipeline) -> dict[str, float]:
    state_file = pipeline.output_dir / STATE_FILE
    done: dict[str, Any] = _read_state(state_file)
    width = max(12, *(len(stage.name) for stage in pipeline.stages))
    run_again = False  # once a stage runs, all stages after it run again
    for at, stage in enumerate(pipeline.stages):
        fingerprint = pipeline.fingerprint(at)
        label = f"[{at + 1}/{len(pipeline.stages)}] {stage.name:<{width}}"
        entry = _last_entry(done.get(stage.name, {}), pipeline.directory(stage), fingerprint)
        same = entry.get("fingerprint") == fingerprint and not run_again
        if same and entry.get("finished") and has_finished(pipeline.directory(stage)):
            print(f"{label} finished before ({entry['seconds']:.0f} s)", flush=True)
            done[stage.name] = entry
            continue
        run_again = True
        directory = pipeline.directory(stage)
        replaces = entry.get("replaces") if same else _manifest_hash(directory)
        done[stage.name] = {"fingerprint": fingerprint, "finished": False, "replaces": replaces}
        before = entry.get("before") if same else {k: v for k, v in entry.items() if k != "before"}
        if before:
            done[stage.name]["before"] = before
        write_json(state_file, done)
        print(f"{label} running …", end="", flush=True)
        resume = same and _has_begun(directory, replaces)
        seconds, peak_mb = _run_stage(pipeline, stage, resume=resume, timings=_timings(done))
        seconds = round(seconds, 1)
        done[stage.name] |= {"finished": True, "seconds": seconds, "peak_mb": peak_mb}
        done[stage.name].pop("before", None)
        write_json(state_file, done)
        print(f"\r{label} finished in {seconds:.0f} s, at most {peak_mb} MB", flush=True)
        if pipeline.fingerprint(at) != fingerprint:
            print(
                f"warning: a config or an input of {stage.name} or of an earlier stage changed while "
                "it ran; start the pipeline again to repeat the changed stages",
                flush=True,
            )
    return _timings(done)


def _run_stage(
    pipeline: Pipeline, stage: StageCall, *, resume: bool, timings: dict[str, float]
) -> tuple[float, int]:
    command, words = pipeline.command_of(stage), pipeline.words(stage)
    if isinstance(command, Recipe) or command.resumes:
        words += ["--resume_from_checkpoint", str(resume).lower()]
    elif command.takes_timings:
        words += ["--timings", json.dumps(timings)]
    log = pipeline.output_dir / f"{stage.name}.log"
    began = time.monotonic()
    with log.open("a" if resume else "w", encoding="utf-8") as output:
        # without resume, unfinished work of an earlier config is replaced when this run begins
        try:
            variables = {} if resume else {REPLACES: "1"}
            code, peak_mb = _call(with_words(command, words), output, variables)
        except Interrupted:
            print(flush=True)
            raise
    if code != 0:
        print(flush=True)
        tail = "\n  ".join(_last_lines(log, 5))
        raise ToolkitError(
            f"stage {stage.name} failed with exit code {code}; its log {log} ends with\n"
            f"  {tail}\n  Run the same command again to continue."
        )
    return time.monotonic() - began, peak_mb


def _last_lines(log: Path, count: int) -> list[str]:
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    return [line for line in text.splitlines() if line.strip()][-count:]


def _timings(done: dict[str, Any]) -> dict[str, float]:
    return {name: entry["seconds"] for name, entry in done.items() if entry.get("finished")}


def _read_state(file: Path) -> dict[str, Any]:
    """The entries of the stages; a stage whose entry is damaged runs again."""
    try:
        return {name: entry for name, entry in read_mapping(file).items() if _is_entry(entry)}
    except (OSError, ValueError):
        return {}


def _is_entry(entry: Any) -> bool:
    """Whether a value is the entry of a stage, with values of the right types."""
    if not isinstance(entry, dict) or (entry.get("finished") and entry.get("seconds") is None):
        return False
    try:
        check_types(entry, ENTRY)
    except ValueError:
        return False
    return entry.get("before") is None or _is_entry(entry["before"])


def _last_entry(entry: dict[str, Any], directory: Path, fingerprint: str) -> dict[str, Any]:
    """A stage's last entry; the entry before it if the stage was changed but has not begun."""
    before = entry.get("before")
    if not before or entry.get("finished") or entry.get("fingerprint") == fingerprint:
        return entry
    return entry if _has_begun(directory, entry.get("replaces")) else dict(before)


def _has_begun(directory: Path, replaces: str | None) -> bool:
    """Whether a directory's manifest differs from an earlier one, whose hash is `replaces`.

    The content is compared and not the time, because a clock can be set back.
    """
    return _manifest_hash(directory) not in (None, replaces)


def _manifest_hash(directory: Path) -> str | None:
    """The sha256 of a run's manifest; None if it is missing or cannot be read."""
    try:
        return hashlib.sha256(read_bytes(directory / MANIFEST)).hexdigest()
    except (OSError, ValueError):
        return None


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


def _texts(value: Any) -> list[str]:
    """Every text in nested mappings and lists of options."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [text for v in inner for text in _texts(v)]
    return [value] if isinstance(value, str) else []
