"""A chat template that writes today's date keeps the date at which its run started."""

from datetime import datetime

import pytest

from tests.conftest import fresh_roles
from toolkit.errors import ConfigError
from toolkit.models import fixed_date
from toolkit.models.base import fingerprint
from toolkit.models.fixed_date import fix_date, without_date
from toolkit.models.tokenizer import load_tokenizer

CHAT = [{"role": "user", "content": "Which day?"}]
DATED = (
    "{%- if strftime_now is defined %}{% set date = strftime_now('%d %b %Y') %}{% endif -%}"
    "{%- for message in messages -%}"
    "{{- date ~ '|' ~ strftime_now(\"%Y\") ~ '|' ~ message['content'] ~ eos_token -}}{%- endfor -%}"
)


@pytest.fixture
def day(monkeypatch):
    def set_day(number):
        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return cls(2026, 3, number)

        monkeypatch.setattr(fixed_date, "datetime", Clock)

    return set_day


@pytest.fixture
def template(tmp_path):
    file = tmp_path / "dated.jinja"
    file.write_text(DATED, encoding="utf-8")
    return str(file)


def rendered(tokenizer):
    return tokenizer.apply_chat_template(CHAT, tokenize=False)


def test_resumed_run_renders_the_date_of_its_start(day, tiny_base, template, tmp_path):
    day(1)
    first = load_tokenizer(str(tiny_base), chat_template=template)
    assert rendered(first) == f"01 Mar 2026|2026|Which day?{first.eos_token}"
    first.save_pretrained(tmp_path / "checkpoint-2")
    day(2)
    again = load_tokenizer(str(tiny_base), chat_template=template)
    assert rendered(again).startswith("02 Mar 2026")
    resumed = load_tokenizer(
        str(tiny_base), chat_template=template, resume=tmp_path / "checkpoint-2"
    )
    assert rendered(resumed) == rendered(first)


def test_child_renders_the_date_of_its_parent(day, tiny_base, template, tmp_path):
    day(1)
    parent = load_tokenizer(str(tiny_base), chat_template=template)
    parent.save_pretrained(tmp_path / "sft")
    day(2)
    for option in (None, template):
        child = load_tokenizer(str(tiny_base), chat_template=option, parent=tmp_path / "sft")
        assert rendered(child) == rendered(parent)
    with pytest.raises(ConfigError, match="is not the template that"):
        load_tokenizer(str(tiny_base), chat_template="plain", parent=tmp_path / "sft")


def test_fingerprint_ignores_the_date(day, tiny_base, template, model_config):
    prints = []
    for number in (1, 2):
        day(number)
        tokenizer = load_tokenizer(str(tiny_base), chat_template=template)
        prints.append(fingerprint(model_config, tokenizer))
    assert prints[0] == prints[1]
    assert prints[0] != fresh_roles(model_config).fingerprint


def test_other_templates_are_unchanged():
    for template in ("{{ messages }}", "{{ strftime_now(format) }}", ""):
        assert fix_date(template) == without_date(template) == template
    assert without_date(fix_date(DATED)) == DATED
    assert fix_date(fix_date(DATED)) == fix_date(DATED)
    changed = fix_date(DATED).replace("[format]", "[format] ~ 'more'")
    assert without_date(changed) == changed
