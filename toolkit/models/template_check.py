"""Render an untrusted chat template in its own process, with limits of time and memory.

    python -m toolkit.models.template_check < template.jinja

Jinja's sandbox keeps a template from running Python, but not from endless loops or huge numbers.
"""

import subprocess
import sys
from pathlib import Path

from toolkit.errors import CheckpointError

LIMIT_S = 20.0  # most of it is the import of transformers
MAX_MEMORY = 4 << 30  # bytes of address space
MAX_RENDERED = 100_000  # characters for a few words
TURNS = (
    {"role": "user", "content": "firstquestion"},
    {"role": "assistant", "content": "firstanswer"},
    {"role": "user", "content": "secondquestion"},
)


def check_rendering(template: str, place: Path) -> None:
    """Check that a template renders questions and answers within the limits.

    Args:
        place: the run's folder, for messages.

    Raises: CheckpointError with the reason.
    """
    words = [sys.executable, "-P", "-m", "toolkit.models.template_check"]
    try:
        result = subprocess.run(
            words, input=template.encode(), capture_output=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(
            f"{place}: rendering its chat template took longer than {LIMIT_S:.0f} s"
        ) from error
    if result.returncode != 0:
        lines = result.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = lines[-1][:300] if lines else "the process was killed"
        raise CheckpointError(f"{place}: its chat template cannot be used ({reason})")


def problem(template: str) -> str | None:
    """Why a template cannot be used, or None. The call may not end.

    Raises: the errors of Jinja.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    compiled = _compile_jinja_template(template)
    for count in (1, 2, 3):
        rendered = compiled.render(
            messages=[dict(turn) for turn in TURNS[:count]],
            add_generation_prompt=count != 2,
            bos_token="<s>",
            eos_token="</s>",
            pad_token="<pad>",
            unk_token="<unk>",
        )
        if len(rendered) > MAX_RENDERED:
            return f"it renders {len(rendered)} characters for {count} short messages"
        places = [rendered.find(turn["content"]) for turn in TURNS[:count]]
        if -1 in places or places != sorted(places):
            missing = TURNS[places.index(-1) if -1 in places else 0]["role"]
            return f"it leaves out or moves the text of the {missing}"
    return None


def limit_memory() -> None:
    """Limit the address space of this process to `MAX_MEMORY`."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))


def _main() -> int:
    template = sys.stdin.buffer.read().decode("utf-8")
    import transformers.utils.chat_template_utils  # noqa: F401  before the limit on memory

    limit_memory()
    try:
        reason = problem(template)
    except Exception as error:  # Jinja raises many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())
    if reason is not None:
        print(reason, file=sys.stderr)
    return int(reason is not None)


if __name__ == "__main__":
    sys.exit(_main())
