"""The app starts with a chat template that works; a run whose template does not is broken alone."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import _compile_jinja_template

from tests.app.conftest import edit_json
from toolkit.app import chat_template
from toolkit.app.workbench import Workbench
from toolkit.errors import CheckpointError, ConfigError
from toolkit.models.base import check_template
from toolkit.models.template_process import check_rendering, problem
from toolkit.models.tokenizer import load_tokenizer

ECHO = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
POWER = "{% if 9 ** (9 ** 9) %}{% endif %}"
FIXED = "{{ '<|im_start|>always the same<|im_end|>' }}"


def digest(template: str) -> str:
    return hashlib.sha256(template.encode()).hexdigest()[:16]


@pytest.fixture
def runs(runs: Path, tiny_base: str) -> Path:
    """Two SFT runs, `a_sft` before `sft`, and others, with the tokenizer's files that recipes write."""
    template = (Path(tiny_base) / "chat_template.jinja").read_text()
    for name in ("sft", "dpo", "ppo", "reward"):
        for file in ("tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(Path(tiny_base) / file, runs / name / file)
        assert json.loads((runs / name / "base.json").read_text())["chat_template"] == digest(
            template
        )
    shutil.copytree(runs / "sft", runs / "a_sft")
    return runs


def rendering(template: str) -> Callable[..., str]:
    """Renders messages in this process: quick."""
    compiled = _compile_jinja_template(template)
    return lambda messages, **options: compiled.render(messages=messages, **options)


def replace_template(run: Path, content: bytes, *, consistent: bool = False) -> None:
    """Write a template; with `consistent` as if the run had been trained with it."""
    (run / "chat_template.jinja").write_bytes(content)
    if consistent:
        edit_json(run / "base.json", chat_template=digest(content.decode()))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:300])


def huge(file: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(1 << 40)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "was changed after the run was trained"),
        (Path.unlink, "its chat template is missing"),
        (lambda f: f.write_bytes(b""), "its chat template is empty"),
        (lambda f: f.write_bytes(b"\xff\xfe"), "damaged tokenizer files"),
        (huge, "larger than 1 MiB"),
        (lambda f: f.write_text("{{ raise_exception('no') }}"), "was changed"),
    ],
)
def test_damaged_template_breaks_only_its_run(
    tiny_base: str, runs: Path, damage: Callable[[Path], Any], reason: str
) -> None:
    good = Workbench.open(tiny_base, runs)
    damage(runs / "a_sft" / "chat_template.jinja")
    workbench = Workbench.open(tiny_base, runs)
    broken = dict(workbench.catalog.broken)
    assert set(broken) == {"a_sft", "damaged"}
    assert reason in broken["a_sft"]
    assert workbench.tokenizer.chat_template == good.tokenizer.chat_template
    names = {e.name for e in workbench.catalog.checkpoints.values()}
    assert {"sft", "dpo", "ppo"} <= names
    with pytest.raises(CheckpointError, match=reason):  # recipes refuse it as a parent, too
        check_template(runs / "a_sft")


def test_repaired_template_is_used_again(tiny_base: str, runs: Path) -> None:
    file = runs / "a_sft" / "chat_template.jinja"
    whole = file.read_bytes()
    truncate(file)
    workbench = Workbench.open(tiny_base, runs)
    assert "a_sft" in dict(workbench.catalog.broken)
    file.write_bytes(whole)
    assert "a_sft" not in dict(workbench.refresh().broken)


def test_failing_template_breaks_only_its_run(
    tiny_base: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(template: str, place: Path) -> None:
        if (reason := problem(rendering(template))) is not None:
            raise CheckpointError(f"{place}: its chat template cannot be used ({reason})")

    monkeypatch.setattr(chat_template, "check_rendering", check)
    replace_template(runs / "a_sft", FIXED.encode(), consistent=True)
    workbench = Workbench.open(tiny_base, runs)
    broken = dict(workbench.catalog.broken)
    assert set(broken) == {"a_sft", "damaged"}
    assert "leaves out or moves the text of the user" in broken["a_sft"]


def test_template_of_most_runs_comes_first(tiny_base: str, runs: Path) -> None:
    replace_template(runs / "a_sft", ECHO.encode(), consistent=True)
    edit_json(runs / "a_sft" / "run.json", base=json.loads((runs / "a_sft/base.json").read_text()))
    workbench = Workbench.open(tiny_base, runs)
    assert set(dict(workbench.catalog.broken)) == {"a_sft", "damaged"}


def test_base_template_is_used_without_a_working_template(tiny_base: str, runs: Path) -> None:
    own = load_tokenizer(tiny_base).chat_template
    for name in ("a_sft", "sft"):
        replace_template(runs / name, b"")
    workbench = Workbench.open(tiny_base, runs)
    assert workbench.tokenizer.chat_template == own
    assert set(dict(workbench.catalog.broken)) == {"a_sft", "sft", "damaged"}


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (ECHO, None),
        (FIXED, "leaves out or moves the text of the user"),
        ("{{ messages[0]['content'] }}", "leaves out or moves the text of the assistant"),
        ("{% for m in messages %}{{ m.content[0].text }}{% endfor %}", "text of the user"),
        ("{% for m in messages|reverse %}{{ m.content }}{% endfor %}", "leaves out or moves"),
        ("{{ 'x' * 200000 }}" + ECHO, "renders 2000"),
    ],
)
def test_templates_are_rendered_with_a_conversation(template: str, reason: str | None) -> None:
    result = problem(rendering(template))
    assert result is None if reason is None else reason in (result or "")


@pytest.mark.slow
@pytest.mark.parametrize("template", [LOOP, POWER, "{{ 'x' * 10 ** 11 }}"])
def test_rendering_has_limits_of_time_and_memory(template: str, tmp_path: Path) -> None:
    reason = r"cannot be used \((rendering took longer than 2 s|MemoryError)\)"
    with pytest.raises(CheckpointError, match=reason):
        check_rendering(template + ECHO, tmp_path)


@pytest.mark.slow
def test_rendering_in_a_process_accepts_working_templates(tmp_path: Path) -> None:
    check_rendering(ECHO, tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot be used \(unexpected .*end of template"):
        check_rendering("{% for", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("bomb", [LOOP, "{{ 9 ** (9 ** (messages | length * 2)) }}"])
def test_hanging_template_does_not_stop_other_conversations(
    bomb: str, tiny_base: str, runs: Path
) -> None:
    own = (Path(tiny_base) / "chat_template.jinja").read_text()
    hidden = f"{own}{{% if messages | length > 4 %}}{bomb}{{% endif %}}"
    for name in ("a_sft", "sft"):
        replace_template(runs / name, hidden.encode(), consistent=True)
    workbench = Workbench.open(tiny_base, runs)
    assert workbench.tokenizer.chat_template == hidden
    turns = [{"role": r, "content": "Hello."} for r in ("user", "assistant") * 3][:5]
    with pytest.raises(ConfigError, match="rendering took longer than 2 s"):
        workbench.compare(turns, ["base"], max_new_tokens=2)
    plain = Workbench.open(tiny_base, runs.parent / "none").compare(
        "Hello.", ["base"], max_new_tokens=2
    )
    answers = workbench.compare("Hello.", ["base"], max_new_tokens=2)
    assert [a.text for a in answers] == [a.text for a in plain]
