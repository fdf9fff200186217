"""Checks of a pipeline's YAML before it becomes command lines."""

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.errors import ConfigError
from toolkit.options.bounds import SEEDS
from toolkit.options.config import check_output_dir, code_option

# how a pipeline's user gives an option that runs code
_ADVICE = {
    "trust_remote_code": "run the pipeline with --trust_remote_code",
    "reward_funcs": "run the pipeline with --reward_funcs FILE.py:FUNCTION",
    "attn_implementation": "run the stage by itself with --attn_implementation OWNER/NAME",
}
MOST_STAGES, MOST_CHARACTERS = 100, 100_000
_NAME = r"\{((?:last\.|all\.)?\w+)\}"
_ROUND_FIX = {"last": "; in round 1 there is no earlier round: set the option in `first_round`"}
# options that the pipeline itself gives to its stages
_SET_BY_PIPELINE = ("config", "help", "resume_from_checkpoint", "timings")


def stage_options(
    options: Mapping[Any, Any], known: Mapping[str, str | list[str]], place: str
) -> dict[str, Any]:
    """A stage's options, in which `{name}` is replaced by its text in `known`.

    Args:
        known: the pipeline's `values`, and the directories of the earlier stages, by name. The text of
            `{all.name}` is a list, which takes the place of this item of a list.
        place: the stage, for messages.

    Raises: ConfigError for an unknown name, an option that runs code, or a name or value that the
        command line would read as another option.
    """
    filled = {}
    for name, value in options.items():
        value = _filled(value, known, place)
        _refuse_code(name, value, place)
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ConfigError(
                f"{place}: an option's name must consist of letters, digits and _, got {name!r}"
            )
        if name in _SET_BY_PIPELINE:
            raise ConfigError(f"{place}: `{name}` is set by the pipeline; remove it")
        if name == "output_dir" and not isinstance(value, str):
            raise ConfigError(f"{place}: `output_dir` must be text, got {value!r}")
        for word in value if isinstance(value, list) else [value]:
            check_word(word, f"{place}: `{name}`")
        filled[name] = value
    return filled


def each_stage(content: Mapping[str, Any], file: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Each stage's name, round and content; stages with `each_round` come once per round.

    Stages outside rounds have round 0. In round 1, `first_round` replaces options; null removes one.

    Raises: ConfigError for an unknown key, for stages with `each_round` that do not follow each other or
        without `rounds`, and for a stage's name.
    """
    keys = {"recipe": str, "config": str, "options": dict, "each_round": bool, "first_round": dict}
    stages = dict(content["stages"])
    for name, stage in stages.items():
        place = f"{file}: stage `{name}`"
        if not re.fullmatch(r"\w[\w-]*", str(name)) or not isinstance(name, str):
            raise ConfigError(f"{place}: a stage's name may only contain letters, digits, _, -")
        require_keys(stage, keys, place, {"options", "each_round", "first_round"})
        if "first_round" in stage and not stage.get("each_round"):
            raise ConfigError(f"{place}: `first_round` needs `each_round: true`")
    repeated = [name for name, stage in stages.items() if stage.get("each_round")]
    if bool(repeated) != ("rounds" in content):
        raise ConfigError(
            f"{file}: set `rounds`, and `each_round: true` in the stages to repeat; got "
            f"rounds {content.get('rounds')} and {len(repeated)} such stages"
        )
    names = list(stages)
    if repeated and repeated != names[names.index(repeated[0]) :][: len(repeated)]:
        raise ConfigError(f"{file}: the stages with `each_round: true` must follow each other")
    for name, stage in stages.items():
        if name not in repeated:
            yield name, 0, stage
        elif name == repeated[0]:
            for number in range(1, content["rounds"] + 1):
                for inner in repeated:
                    options = dict(stages[inner].get("options", {}))
                    if number == 1:
                        options |= stages[inner].get("first_round", {})
                    options = {k: v for k, v in options.items() if v is not None}
                    yield inner, number, stages[inner] | {"options": options}


def known_folders(done: Sequence[tuple[str, int, str]], number: int) -> dict[str, str | list[str]]:
    """The names that a stage's options may use, and their folders.

    `{name}` is the stage of this round or, after the rounds, of the last one; `{last.name}` is the stage of
    the round before; `{all.name}` are the stages of all rounds so far.

    Args:
        done: name in the YAML, round and folder of each earlier stage.
        number: the round of the stage.
    """
    known: dict[str, str | list[str]] = {}
    for name, at, folder in done:
        if not number or at in (0, number):
            known[name] = folder
        if at and at == number - 1:
            known[f"last.{name}"] = folder
        if at:
            earlier = known.get(f"all.{name}", [])
            known[f"all.{name}"] = [*earlier, folder]
    return known


def require_keys(
    content: Any, types: dict[str, type], place: str, optional: set[str] | None = None
) -> None:
    """Check the keys of a mapping in a YAML and the types of their values.

    Raises: ConfigError for an unknown or missing key, or a value of another type.
    """
    if not isinstance(content, dict):
        raise ConfigError(f"{place}: expected a mapping, got {type(content).__name__}")
    for key in content:
        if key not in types:
            raise ConfigError(f"{place}: unknown key `{key}`; known keys are {', '.join(types)}")
    for key, kind in types.items():
        if key not in content and key in (optional or set()):
            continue
        if not isinstance(content.get(key), kind):
            raise ConfigError(f"{place}: `{key}` must be {kind.__name__}, got {content.get(key)!r}")


def read_values(content: Mapping[str, Any], given: Sequence[str], file: str) -> dict[str, str]:
    """The texts that replace `{name}` in the stages' options: the YAML's `values`, or `NAME=TEXT`.

    Raises: ConfigError for a value that is not text, or a name that is unknown or a stage's.
    """
    values: dict[str, str] = content.get("values", {})
    for name, value in values.items():
        if not isinstance(value, str) or name in content["stages"] or name == "output_dir":
            raise ConfigError(
                f"{file}: `values` must map names, which no stage has, to texts; got {name!r}: {value!r}"
            )
    changed = {}
    for word in given:
        name, equals, value = word.partition("=")
        if not equals or name not in values:
            known = ", ".join(map(str, values)) or "none"
            raise ConfigError(
                f"--values: expected NAME=TEXT with a name that {file} lists in `values` ({known}), "
                f"got {word!r}"
            )
        changed[name] = value
    return values | changed


def pipeline_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--values`, and the options that run code, which a pipeline's YAML must not set."""
    parser.add_argument(
        "--values",
        nargs="+",
        default=(),
        metavar="NAME=TEXT",
        help="texts in place of the YAML's `values`",
    )
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run Python that comes with the model"
    )
    parser.add_argument(
        "--reward_funcs",
        nargs="+",
        default=(),
        metavar="FILE.py:FUNCTION",
        help="reward functions for each stage that has this option",
    )


def check_word(word: Any, place: str) -> None:
    """Check a value that becomes one word of a command line.

    Raises: ConfigError for a value that is not text, a number or a boolean, or that starts like an option.
    """
    if not isinstance(word, str | int | float):
        raise ConfigError(
            f"{place} must be text, a number, a boolean or a list of these, got {word!r}; set it in the "
            "stage's config"
        )
    if isinstance(word, str) and ("\0" in word or len(word) > MOST_CHARACTERS):
        raise ConfigError(
            f"{place} must have at most {MOST_CHARACTERS:,} characters and no NUL character; set it in the "
            "stage's config"
        )
    if isinstance(word, str) and word.startswith("-") and not _is_number(word):
        raise ConfigError(f"{place} would be read as another option, got {word!r}; remove the dash")


def check_size(content: Mapping[str, Any], file: str) -> None:
    """Check the seed, the number of rounds and stages, and the stages' names.

    Raises: ConfigError that names the fault.
    """
    seed, stages, rounds = content["seed"], content["stages"], content.get("rounds", 1)
    if isinstance(seed, bool) or not 0 <= seed <= SEEDS:
        raise ConfigError(f"{file}: `seed` must be an integer in 0…{SEEDS}, got {seed}")
    if isinstance(rounds, bool) or not 1 <= rounds <= MOST_STAGES:
        raise ConfigError(f"{file}: `rounds` must be an integer in 1…{MOST_STAGES}, got {rounds}")
    if len(stages) * rounds > MOST_STAGES:
        many = f"{len(stages)} stages" + (f" and {rounds} rounds" if rounds > 1 else "")
        raise ConfigError(f"{file}: has {many}; at most {MOST_STAGES} are supported")
    if "output_dir" in stages:
        raise ConfigError(
            f"{file}: a stage's name cannot be `output_dir`, which stands for the pipeline's folder"
        )


def check_folders(folders: Mapping[str, Path], file: str) -> None:
    """Check that each stage has a folder of its own, not inside an earlier stage's folder.

    Args:
        folders: the folder that each stage writes to. A report may be in the pipeline's own folder.

    Raises: ConfigError that names the stages.
    """
    resolved: dict[str, Path] = {}
    for name, folder in folders.items():
        check_output_dir(str(folder))
        own = folder.resolve()
        for other, taken in resolved.items():
            if own == taken or taken in own.parents:
                raise ConfigError(
                    f"{file}: stage `{name}`: its folder {folder} is or lies in the folder of stage "
                    f"`{other}`; choose another `output_dir`"
                )
        resolved[name] = own


def _refuse_code(name: Any, value: Any, place: str) -> None:
    """Raises: ConfigError for an option that runs code, also if it is a word inside a value."""
    words = value if isinstance(value, list) else [value]
    as_options = [w for w in (name, *words) if isinstance(w, str) and (w is name or w[:1] == "-")]
    option = code_option(name, value)
    for word in as_options:
        key, _, rest = word.lstrip("-").partition("=")
        option = option or code_option(key.strip().replace("-", "_"), rest or value)
    if option is not None:
        raise ConfigError(
            f"{place}: `{option}` cannot be set in a file, because it runs code; if you trust that "
            f"code, {_ADVICE[option]}"
        )


def _filled(value: Any, known: Mapping[str, str | list[str]], place: str) -> Any:
    """Replace `{name}` by its text in `known`."""
    if isinstance(value, list):
        items: list[Any] = []
        for item in value:
            new = _filled(item, known, place)
            items += new if isinstance(item, str) and isinstance(new, list) else [new]
        return items
    if not isinstance(value, str):
        return value
    texts: dict[str, str] = {}
    for name in re.findall(_NAME, value):
        text = known.get(name)
        if text is None:
            raise ConfigError(
                f"{place}: {value!r} names `{name}`, which is neither an earlier stage nor in `values`"
                + _ROUND_FIX.get(name.split(".")[0] if "." in name else "", "")
            )
        if not isinstance(text, list):
            texts[name] = text
        elif value == f"{{{name}}}":
            return text
        else:
            raise ConfigError(f"{place}: `{{{name}}}` is a list; it cannot be a part of {value!r}")
    return re.sub(_NAME, lambda m: texts[m[1]], value)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
