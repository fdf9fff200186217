"""The held-out prompts of a run: the test split of the dataset that its run.json records."""

import sys

from toolkit.app.answering.request import MAX_PROMPT_CHARACTERS
from toolkit.data.messages import Row
from toolkit.data.sources import WORLD
from toolkit.errors import ConfigError
from toolkit.evaluation.held_out import held_out_rows
from toolkit.options.config import is_local_path
from toolkit.runs.run import Run


def held_out_prompts(run: Run) -> list[str]:
    """The distinct prompts of the run's test split.

    Prompts with several messages, and too long prompts, are left out.

    Raises: ConfigError if the rows are on the hub, cannot be read, or are not those that the run recorded.
        So a manifest made elsewhere cannot make the app download a dataset or show the rows of other files.
    """
    remote = [
        name for name in _datasets(run) if not (name.startswith(WORLD) or is_local_path(name))
    ]
    if remote:
        raise ConfigError(
            f"{remote[0][:80]} is on the hub, and the app reads only local datasets: save its prompts "
            "to a file and open it"
        )
    try:
        rows = held_out_rows(run)
    except ConfigError as error:
        raise ConfigError(str(error).removeprefix(f"{run.path}: ")) from error
    except Exception as error:  # the manifest may hold anything; a message may contain rows
        print(f"{run.path}: held-out rows: {error}", file=sys.stderr, flush=True)
        reason = "the dataset of this run cannot be read; the app's terminal shows the reason"
        raise ConfigError(f"{reason}. Open a file with prompts instead") from error
    texts = [text for row in rows if (text := _text(row))]
    if not texts:
        raise ConfigError("this run has no held-out prompt of one message within the length limit")
    return list(dict.fromkeys(texts))


def _datasets(run: Run) -> list[str]:
    config = run.config
    if config.get("datasets"):
        return ["`datasets`"]
    sources = [source["dataset_name"] for source in config.get("sources") or []]
    return [str(name) for name in sources or [config.get("dataset_name")]]


def _text(row: Row) -> str:
    """The prompt's text; "" for a prompt that *Batch* cannot use."""
    prompt = row.get("prompt")
    if isinstance(prompt, list):
        roles = [message["role"] for message in prompt]
        prompt = prompt[0]["content"] if roles == ["user"] else ""
    text = prompt.strip() if isinstance(prompt, str) else ""
    return text if len(text) <= MAX_PROMPT_CHARACTERS else ""
