"""Fixes the date that a chat template writes: it is set when a run starts, and saved with the run.

Otherwise the model would read other prompts each day, and a run could not resume on the next day.
"""

import json
import re
from datetime import datetime

_CALL = re.compile(r"""strftime_now\(\s*(["'])([^"'\\{}]*)\1\s*\)""")
_START = "{%- macro strftime_now(format) -%}"
_END = "{%- endmacro -%}"
_PAIR = r'"[^"\\{}]*": "[^"\\{}]*"'  # a format and its text
_MACRO = re.compile(
    re.escape(_START + "{{- {") + f"{_PAIR}(?:, {_PAIR})*" + re.escape("}[format] -}}" + _END)
)


def fix_date(template: str, *, saved: str | None = None) -> str:
    """The template with a fixed date: the date of `saved`, or else today's date.

    A macro at the template's start replaces transformers' function `strftime_now`. A template with
    a fixed date, or with computed date formats, is returned unchanged.

    Args:
        saved: the template saved with the run that is resumed.
    """
    formats = {match[2] for match in _CALL.finditer(template)}
    if _split(template)[0] or not formats:
        return template
    if template.count("strftime_now(") != len(_CALL.findall(template)):
        return template
    date, _ = _split(saved or "")
    if not date:
        now = datetime.now()
        texts = json.dumps(
            {name: now.strftime(name) for name in sorted(formats)}, ensure_ascii=False
        )
        date = f"{_START}{{{{- {texts}[format] -}}}}{_END}"
    return date + template


def without_date(template: str) -> str:
    """The template without the date that `fix_date` added."""
    return _split(template)[1]


def _split(template: str) -> tuple[str, str]:
    """Split a template into the macro of `fix_date` and the rest."""
    match = _MACRO.match(template)
    end = match.end() if match else 0
    return template[:end], template[end:]
