"""Chooses the run whose chat template the app uses, because all checkpoints get the same prompts."""

from collections import Counter
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from toolkit.errors import ToolkitError
from toolkit.models.base import check_template
from toolkit.models.template_process import TemplateProcess, check_rendering
from toolkit.models.tokenizer import BUILT_IN, has_tokenizer, load_tokenizer, saved_template
from toolkit.recipe import is_supervised
from toolkit.runs.listing import list_runs
from toolkit.world import resolve_base


def choose_template(
    folder: Path, base_name: str, *, revision: str = "main"
) -> tuple[Path | None, dict[Path, str]]:
    """The first SFT run on this base with a chat template that works.

    Runs with the most common template come first. Each template is checked separately, so that a damaged
    template affects only its own run.

    Returns: the run, or None; and the reason for each run whose template does not work.
    """
    runs = [run for run in list_runs(folder)[0] if run.base.get("id") == base_name]
    uses = Counter(str(run.base.get("chat_template")) for run in runs)
    candidates = [run for run in runs if is_supervised(run) and has_tokenizer(run.path)]
    candidates.sort(key=lambda run: -uses[str(run.base.get("chat_template"))])
    rejected: dict[Path, str] = {}
    for run in candidates:
        try:
            _check(run.path, base_name, revision)
        except ToolkitError as error:
            rejected[run.path] = str(error)
        except Exception as error:  # a tokenizer's libraries raise many kinds
            rejected[run.path] = f"its chat template cannot be used ({error})"
        else:
            return run.path, rejected
    return None, rejected


def render_apart(tokenizer: PreTrainedTokenizerBase, base_name: str) -> None:
    """Let a tokenizer render a template that is not the base's own in a process with limits."""
    template = tokenizer.chat_template
    if isinstance(template, str) and not _is_trusted(template, base_name):
        process = TemplateProcess(template, tokenizer.special_tokens_map)
        tokenizer.apply_chat_template = process


def _is_trusted(template: str, base_name: str) -> bool:
    """Whether a template is built in or belongs to a base on this disk."""
    base = Path(resolve_base(base_name))
    return template in {*BUILT_IN.values(), saved_template(base) if base.is_dir() else None}


def _check(run: Path, base_name: str, revision: str) -> None:
    """Raise ToolkitError or another error for a template that cannot be used."""
    check_template(run)
    template = saved_template(run)
    if template is not None and not _is_trusted(template, base_name):
        check_rendering(template, run)
    load_tokenizer(str(resolve_base(base_name)), revision=revision, parent=run)
