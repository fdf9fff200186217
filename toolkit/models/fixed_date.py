"""The date in a chat template that writes today's: fixed when a run starts, and saved with the run.

Otherwise a model would read another prompt on each day, and a run could not be resumed on the next one.
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
    """The template with the date of `saved`, by default today's, in place of the current one.

    A macro at its start replaces the function `strftime_now` of transformers. A template with a fixed
    date, or whose formats are computed, is returned as it is.

    Args:
        saved: a template that was saved with a run that is resumed.
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
    """The macro of `fix_date`, and the rest."""
    match = _MACRO.match(template)
    end = match.end() if match else 0
    return template[:end], template[end:]
