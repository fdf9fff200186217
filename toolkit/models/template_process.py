"""Render an untrusted chat template in its own process, with limits of time and memory.

    python -m toolkit.models.template_process  # reads the template, then one conversation per line

Jinja's sandbox keeps a template from running Python, but not from endless loops or huge numbers.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from toolkit.errors import CheckpointError, ConfigError

START_S = 20.0  # most of it is the import of transformers
RENDER_S = 2.0  # per conversation
MAX_MEMORY = 4 << 30  # bytes of address space
MAX_TEXT = 1 << 20  # characters of a rendered conversation
MAX_RENDERED = 100_000  # characters for a few words
TURNS = (
    {"role": "user", "content": "firstquestion"},
    {"role": "assistant", "content": "firstanswer"},
    {"role": "user", "content": "secondquestion"},
)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def check_rendering(template: str, place: Path) -> None:
    """Check that a template renders questions and answers within the limits.

    Args:
        place: the run's folder, for messages.

    Raises: CheckpointError with the reason.
    """
    process = TemplateProcess(template, TOKENS)
    try:
        reason = problem(process)
    except ConfigError as error:
        reason = str(error)
    finally:
        process.close()
    if reason is not None:
        raise CheckpointError(f"{place}: its chat template cannot be used ({reason})")


def problem(render: Callable[..., str]) -> str | None:
    """Why a template cannot be used, or None.

    Args:
        render: returns the text of messages; see `TemplateProcess`.
    """
    for count in (1, 2, 3):
        rendered = render([dict(t) for t in TURNS[:count]], add_generation_prompt=count != 2)
        if len(rendered) > MAX_RENDERED:
            return f"it renders {len(rendered)} characters for {count} short messages"
        places = [rendered.find(turn["content"]) for turn in TURNS[:count]]
        if -1 in places or places != sorted(places):
            missing = TURNS[places.index(-1) if -1 in places else 0]["role"]
            return f"it leaves out or moves the text of the {missing}"
    return None


class TemplateProcess:
    """Replaces a tokenizer's `apply_chat_template`; only one thread at a time may use it.

    Args:
        template: the Jinja text.
        variables: the tokenizer's special tokens by name.
    """

    def __init__(self, template: str, variables: Mapping[str, Any]) -> None:
        self._first_line = json.dumps({"template": template, "variables": dict(variables)})
        self._process = self._start()

    def __call__(
        self, messages: Any, *, tokenize: bool = False, add_generation_prompt: bool = False
    ) -> str:
        """The rendered conversation.

        Raises: ConfigError with the template's own message, or if the rendering does not end in time.
        """
        assert not tokenize
        request = {"messages": messages, "add_generation_prompt": add_generation_prompt}
        line = self._ask(json.dumps(request))
        if not line:
            self.close()
            self._process = self._start()
            raise ConfigError(f"rendering took longer than {RENDER_S:.0f} s")
        answer = json.loads(line)
        if "error" in answer:
            raise ConfigError(str(answer["error"]))
        return str(answer["text"])

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _start(self) -> "subprocess.Popen[str]":
        words = [sys.executable, "-P", "-m", "toolkit.models.template_process"]
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        self._write(process, self._first_line)
        return process

    def _ask(self, request: str) -> str:
        """Send a request, and return the line of the answer; "" if the process has ended."""
        self._write(self._process, request)
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    @staticmethod
    def _write(process: "subprocess.Popen[str]", line: str) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        except OSError:  # the process has ended, which reading reports
            pass


def _main() -> None:
    """Answer requests until the input ends. An alarm signal ends a rendering that takes too long."""
    _set_alarm(START_S)
    first = json.loads(sys.stdin.readline())
    from transformers.utils.chat_template_utils import _compile_jinja_template

    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    for line in sys.stdin:
        _set_alarm(RENDER_S)
        try:
            compiled = _compile_jinja_template(first["template"])
            text = compiled.render(**first["variables"] | json.loads(line))
            if len(text) > MAX_TEXT:
                raise ValueError(f"it renders {len(text)} characters")
            answer = {"text": text}
        except Exception as error:  # Jinja raises many kinds
            answer = {"error": " ".join(str(error).split())[:300] or type(error).__name__}
        _set_alarm(0.0)
        print(json.dumps(answer), flush=True)


def _set_alarm(seconds: float) -> None:
    """End this process after this many seconds, even inside one operation; 0 means never."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    _main()
