"""One base in memory and the adapters asked for: several checkpoints' answers to one conversation."""

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.app.answering.adapter_cache import Shelf
from toolkit.app.answering.answers import Answer
from toolkit.app.answering.changes import Changes
from toolkit.app.answering.engine import Engine
from toolkit.app.answering.examining import Examiner
from toolkit.app.answering.jobs import Column, Comparison, Job
from toolkit.app.answering.measuring import Measurer
from toolkit.app.answering.request import (
    Message,
    Request,
    Settings,
    checked_request,
)
from toolkit.app.answering.tokens import Tokens
from toolkit.app.catalog import Catalog, scan
from toolkit.app.choices import baseline_questions, questions_to_try
from toolkit.app.inspection import Inspector
from toolkit.errors import CheckpointError, ConfigError, ToolkitError
from toolkit.models.base import fingerprint, load_base
from toolkit.models.roles import Roles
from toolkit.models.tokenizer import saved_template, stop_ids
from toolkit.runs.listing import list_runs
from toolkit.sampling.compatibility import check_supported

__all__ = ["Answer", "Comparison", "Workbench"]


class Workbench:
    """Owns the base, its roles and the thread that runs them. Safe to use from several threads."""

    ready = True  # the base is there; an `Opening` that stands in its place may still wait

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        base_fingerprint: dict[str, str],
        runs: Path,
    ) -> None:
        self.tokenizer = tokenizer
        self.runs = runs
        self.options: list[str] = []  # of the app's command line, for commands that the page offers
        self.roles = Roles(base.eval(), base_fingerprint)
        self.stop = stop_ids(base, tokenizer)
        self.context = getattr(base.config.get_text_config(), "max_position_embeddings", None)
        self.tokens = Tokens(tokenizer)
        self.shelf = Shelf(self.roles, runs)
        self.measurer = Measurer(
            self.shelf,
            self.tokens,
            stop=self.stop,
            runs=runs,
            prompts=baseline_questions(base_fingerprint["id"]),
        )
        self.engine = Engine(self.measurer)
        self._scan_lock = threading.Lock()
        self._looked = -math.inf
        self._ids: dict[Path, str] = {}
        self._inspector = Inspector(self.roles.fingerprint)
        self.catalog = self.refresh()

    @classmethod
    def open(
        cls,
        model_name: str,
        runs: Path,
        *,
        revision: str = "main",
        load_in_4bit: bool = False,
        load_in_8bit: bool = False,
    ) -> "Workbench":
        """Load the base once, on the GPU where there is one, quantized as the runs' base was.

        Python that comes with a base is never run here, nor offered to be.

        Raises: CheckpointError or ConfigError where there is no usable base of that name.
        """
        import torch
        from trl import ModelConfig

        cuda = torch.cuda.is_available()
        model = ModelConfig(
            model_name_or_path=model_name,
            model_revision=revision,
            dtype="bfloat16" if cuda else "float32",
            load_in_4bit=load_in_4bit,
            load_in_8bit=load_in_8bit,
        )
        base, tokenizer = load_base(model, parent=_first_sft(runs, model_name))
        check_supported(base)
        return cls(base, tokenizer, fingerprint(model, tokenizer), runs)

    def refresh(self, *, unless_within: float = 0.0) -> Catalog:
        """Look at the runs folder again; ids of known runs stay what they were.

        Args:
            unless_within: seconds; what was found in the last of them is told again.
        """
        with self._scan_lock:
            if time.monotonic() - self._looked < unless_within:
                return self.catalog
            self.catalog = scan(
                self.runs,
                base_name=self.roles.fingerprint["id"],
                problem=self._inspector.problem,
                identify=self._identify,
                refused=self.shelf.refusal,
            )
            self._looked = time.monotonic()
            return self.catalog

    def examples(self) -> list[str]:
        """Prompts to try, where the base is the embedded world's."""
        return questions_to_try(self.roles.fingerprint["id"])

    def warm(self) -> None:
        """Score SFT's answers once, so that no visitor waits for what a score is worth."""
        catalog = self.catalog
        for reward in list(catalog.rewards.values())[:1]:
            try:
                self.engine.call(lambda r=reward: self.measurer.baseline(r, catalog))  # type: ignore[misc]
            except Exception as error:  # said again under the answer that needs it
                self.measurer.explain(error)

    def compare(
        self,
        prompt: object,
        checkpoints: object,
        **settings: Unpack[Settings],
    ) -> "InOrder":
        """Each checkpoint's whole answer in the order asked for, one by one as they are made.

        A checkpoint that fails gives an answer with a `problem`; the others are not touched by it.

        Args:
            prompt: a text, or messages that end with the user's, or such messages by checkpoint id.

        Raises: CheckpointError for an unknown id, ConfigError for a prompt that cannot be used,
            BusyError where too many wait; all before anything is generated.
        """
        return InOrder(self.stream(prompt, checkpoints, **settings))

    def stream(
        self,
        prompt: object,
        checkpoints: object,
        **settings: Unpack[Settings],
    ) -> Comparison:
        """As `compare`, with the answers as they grow."""
        catalog = self.catalog
        request = checked_request(
            prompt=prompt,
            checkpoints=checkpoints,
            known_checkpoints=catalog.checkpoints,
            known_rewards=catalog.rewards,
            **settings,
        )
        prompts = [self.tokens.prompt(messages) for messages in request.conversations]
        request = self._fitted(request, prompts)
        columns = [
            Column(catalog.checkpoints[c], ids)
            for c, ids in zip(request.checkpoints, prompts, strict=True)
        ]
        return self.engine.submit(Job(request, catalog, columns))

    def changes(
        self, checkpoint: object, messages: object, answer: object, *, ids: tuple[int, ...] = ()
    ) -> Changes:
        """What one checkpoint thinks of an answer, token by token, and what its reference does.

        Args:
            messages: the conversation before the answer, as in `compare`.
            answer: its text; `ids` are its tokens where they are known.

        Raises: as `compare`, and BusyError where others take too long.
        """
        catalog = self.catalog
        request = checked_request(
            prompt=messages,
            checkpoints=[checkpoint],
            known_checkpoints=catalog.checkpoints,
            known_rewards=catalog.rewards,
        )
        conversation = request.conversations[0]
        prompt = self.tokens.prompt(conversation)
        given = list(ids) or self.tokens.completion(conversation, _answer_text(answer))
        if self.context is not None and len(prompt) + len(given) > self.context:
            raise ConfigError(
                f"prompt and answer have {len(prompt) + len(given)} tokens; the base reads "
                f"{self.context}"
            )
        examiner = Examiner(self.measurer)
        entry = catalog.checkpoints[request.checkpoints[0]]
        try:
            return self.engine.call(
                lambda: examiner.examine(entry, catalog, prompt, given, self.engine.in_use())
            )
        except ToolkitError:
            raise
        except Exception as error:  # such as no memory, or an adapter that does not load
            raise CheckpointError(self.measurer.explain(error)) from error

    def _fitted(self, request: Request, prompts: list[list[int]]) -> Request:
        """The request with room for prompt and answer in the base's context.

        Raises: ConfigError where a prompt alone fills it.
        """
        if self.context is None:
            return request
        used = max(map(len, prompts))
        room = self.context - used
        if room < 1:
            raise ConfigError(f"the prompt has {used} tokens; the base reads {self.context}")
        tokens = min(request.sampling.max_new_tokens, room)
        return replace(request, sampling=replace(request.sampling, max_new_tokens=tokens))

    def _identify(self, path: Path) -> str:
        return self._ids.setdefault(path, f"run_{len(self._ids):06d}")


class InOrder(Iterator[Answer]):
    """Whole answers one by one. Closed before its first, too, it gives up what is not done."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._answers = self.beats()

    def __next__(self) -> Answer:
        return next(answer for answer in self._answers if answer is not None)

    def beats(self) -> Iterator[Answer | None]:
        """The same with None in between, several times a second: whoever passes it on to a page is
        ended at such a moment once the page is closed, and need not wait for an answer."""
        given = 0
        for answers in self._comparison:
            yield None
            while given < len(answers) and answers[given].done:
                yield answers[given]
                given += 1

    def close(self) -> None:
        """Nobody waits for the rest."""
        self._comparison.close()


def _answer_text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError("there is no answer to look at: ask first, or write one")
    message: Message = {"role": "user", "content": value}
    checked = checked_request(
        prompt=[message], checkpoints=["any"], known_checkpoints=["any"], known_rewards=[]
    )
    return checked.conversations[0][0]["content"]


def _first_sft(folder: Path, base_name: str) -> Path | None:
    """A run of SFT on this base, whose chat template the others have too."""
    for run in list_runs(folder)[0]:
        if run.recipe == "sft" and isinstance(run.base, dict) and run.base.get("id") == base_name:
            try:
                saved_template(run.path)
            except ToolkitError:  # its own trouble, which the page will show
                continue
            return run.path
    return None
