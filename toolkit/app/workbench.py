"""The workbench: one base in memory, and the checkpoints' adapters on it, which answer conversations."""

import math
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.app.answering.adapter_cache import AdapterCache
from toolkit.app.answering.changes import Changes
from toolkit.app.answering.engine import Engine
from toolkit.app.answering.metrics import AnswerMetrics
from toolkit.app.answering.request import Answer, Message, Request, Settings, checked_request
from toolkit.app.answering.tokens import LockedTokenizer
from toolkit.app.answering.work_queue import AnswersInOrder, Column, Comparison, Job
from toolkit.app.bases import Base, base_key
from toolkit.app.catalog import Catalog, Inspector, scan
from toolkit.app.chat_template import choose_template, render_apart
from toolkit.app.choices import baseline_prompts, example_prompts
from toolkit.errors import CheckpointError, ConfigError, ToolkitError
from toolkit.models.arguments import ModelArguments
from toolkit.models.base import fingerprint, load_base
from toolkit.models.independence import context_of
from toolkit.models.roles import Roles
from toolkit.models.template_process import TemplateProcess
from toolkit.models.tokenizer import stop_ids
from toolkit.runs.run import Run
from toolkit.sampling.compatibility import check_supported

__all__ = ["Answer", "AnswersInOrder", "Comparison", "Workbench"]


class Workbench:
    """Owns the base, its roles and the thread that runs them. Thread-safe."""

    ready = True  # the base is loaded; see `LoadingWorkbench`

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        base_fingerprint: dict[str, str],
        runs: Path,
        unusable: Mapping[Path, str] | None = None,
        choice: Base | None = None,
    ) -> None:
        """`unusable` holds the reason for each run that is already known to be unusable.

        `choice` is the base among those of the runs; None if the user named it, and no other is offered.
        """
        self.tokenizer = tokenizer
        self.runs = runs
        self.choice = choice and replace(choice, key=base_key(base_fingerprint))
        self.cli_options: list[str] = []  # the app's options, for the commands that the page shows
        self.roles = Roles(base.eval(), base_fingerprint)
        self.stop = stop_ids(base, tokenizer)
        self.context = context_of(base.config.get_text_config())
        self.tokens = LockedTokenizer(tokenizer)
        self.adapters = AdapterCache(self.roles, runs)
        for folder, reason in (unusable or {}).items():
            self.adapters.remember_error(folder, reason)
        self.metrics = AnswerMetrics(
            self.adapters,
            self.tokens,
            stop=self.stop,
            runs=runs,
            prompts=baseline_prompts(base_fingerprint["id"]),
        )
        self.engine = Engine(self.metrics)
        self._scan_lock = threading.Lock()
        self._scanned = -math.inf
        self._inspector = Inspector(self.roles.fingerprint)
        self.catalog = self.refresh()

    @classmethod
    def open(cls, model_name: str, runs: Path, **options: Any) -> "Workbench":
        """Load the base that a user names, by default in full precision or, on a GPU, in bfloat16.

        Args:
            options: further options of `ModelArguments`. The quantization must equal the runs'.

        Raises: CheckpointError or ConfigError if the base cannot be loaded.
        """
        return cls._open(ModelArguments(model_name, **{"dtype": _dtype()} | options), runs)

    @classmethod
    def open_base(cls, base: Base, runs: Path) -> "Workbench":
        """Load a base that the manifests of runs name, in their precision; or the embedded base.

        Raises: CheckpointError or ConfigError if the base cannot be loaded or has changed.
        """
        default = ModelArguments(base.id, dtype=_dtype())
        return cls._open(base.options() if base.config else default, runs, base)

    @classmethod
    def _open(cls, model: ModelArguments, runs: Path, base: Base | None = None) -> "Workbench":
        """Load a base. Python code that comes with it is never run."""
        name = str(model.model_name_or_path)
        run, unusable = choose_template(runs, name, revision=model.model_revision)
        try:
            loaded, tokenizer = load_base(model, parent=run)
        except ToolkitError:
            raise
        except Exception as error:  # an option from a file can have any value
            raise CheckpointError(f"{name}: cannot load the base model ({error})") from error
        check_supported(loaded)
        found = fingerprint(model, tokenizer)
        if base is not None and base.key not in (None, base_key(found)):
            raise CheckpointError(
                f"{base}: the base has changed since its runs were trained: {base.id} had the weights "
                f"and quantization {base.key}, and now has {base_key(found)}"
            )
        render_apart(tokenizer, name)
        return cls(loaded, tokenizer, found, runs, unusable, base)

    def close(self) -> None:
        """End all answers, which keep their text, and free the base's memory."""
        self.engine.close()
        for tensor in (*self.roles.base.parameters(), *self.roles.base.buffers()):
            tensor.data = tensor.data.new_empty(0)
        if isinstance(self.tokenizer.apply_chat_template, TemplateProcess):
            self.tokenizer.apply_chat_template.close()

    @property
    def base(self) -> str:
        """Weights and quantization of the base, as text."""
        return " ".join(base_key(self.roles.fingerprint) or ())

    @property
    def command_options(self) -> list[str]:
        """The options of a command that uses the same base and runs."""
        several = len(self.catalog.bases) > 1
        return [*self.cli_options, *(["--base", self.catalog.base] if several else [])]

    def refresh(self, *, max_age_s: float = 0.0) -> Catalog:
        """Scan the runs folder. The ids of known runs stay the same.

        Args:
            max_age_s: the result of a scan that is not older, in seconds, is used again.
        """
        with self._scan_lock:
            if time.monotonic() - self._scanned < max_age_s:
                return self.catalog
            self.catalog = scan(
                self.runs,
                base_name=self.roles.fingerprint["id"],
                base=self.choice,
                problem=self._inspector.problem,
                load_error=self.adapters.load_error,
            )
            self._scanned = time.monotonic()
            return self.catalog

    def examples(self) -> list[str]:
        """Prompts to try on the embedded world's base; none on another."""
        return example_prompts(self.roles.fingerprint["id"])

    def held_out_prompts(self, id: object) -> list[str]:
        """The held-out prompts of a run; see `toolkit.app.answering.held_out`.

        Raises: CheckpointError for an unknown id; ConfigError if the rows cannot be used.
        """
        from toolkit.app.answering.held_out import held_out_prompts  # reading rows imports much

        entry = self.catalog.with_test_rows.get(str(id))
        if entry is None or entry.path is None:
            raise CheckpointError("this run has no held-out prompts; reload the page")
        return held_out_prompts(Run.load(entry.path))

    def warm_up(self) -> None:
        """Compute the baseline of the first reward model, so that no visitor waits for it."""
        catalog = self.catalog
        for reward in list(catalog.rewards.values())[:1]:
            try:
                self.engine.call(lambda r=reward: self.metrics.baseline(r, catalog))  # type: ignore[misc]
            except Exception as error:  # reported again under the first answer with a score
                self.metrics.explain(error)

    def compare(
        self, prompt: object, checkpoints: object, **settings: Unpack[Settings]
    ) -> AnswersInOrder:
        """The complete answer of each checkpoint, in the requested order.

        If a checkpoint fails, its answer has a `problem`; the other answers are not affected.

        Args:
            prompt: a text, or messages that end with a user message, or such messages by checkpoint id.
            checkpoints: ids of the catalog.

        Raises: CheckpointError for an unknown id, ConfigError for an invalid prompt, BusyError if the queue
            is full. All are raised before generation starts.
        """
        return AnswersInOrder(self.stream(prompt, checkpoints, **settings))

    def stream(
        self, prompt: object, checkpoints: object, **settings: Unpack[Settings]
    ) -> Comparison:
        """The answers as they grow. Arguments and errors as for `compare`."""
        catalog = self.catalog
        request = checked_request(
            prompt=prompt,
            checkpoints=checkpoints,
            known_checkpoints=catalog.checkpoints,
            known_rewards=catalog.rewards,
            **settings,
        )
        prompts = [self.tokens.prompt(messages) for messages in request.conversations]
        request = self._within_context(request, prompts)
        columns = [
            Column(catalog.checkpoints[c], ids)
            for c, ids in zip(request.checkpoints, prompts, strict=True)
        ]
        return self.engine.submit(Job(request, catalog, columns))

    def changes(
        self, checkpoint: object, messages: object, answer: object, *, ids: tuple[int, ...] = ()
    ) -> Changes:
        """The metrics of each token of an answer, computed with the checkpoint and its reference.

        Args:
            checkpoint: id of the checkpoint.
            messages: the conversation before the answer.
            answer: text of the answer.
            ids: token ids of the answer, if known.

        Raises: the errors of `compare`, and BusyError if the model is busy for too long.
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
        answer_ids = list(ids) or self.tokens.completion(conversation, _answer_text(answer))
        length = len(prompt) + len(answer_ids)
        if self.context is not None and length > self.context:
            raise ConfigError(
                f"prompt and answer have {length} tokens; the context of the base is {self.context}"
            )
        entry = catalog.checkpoints[request.checkpoints[0]]
        try:
            return self.engine.call(
                lambda: self.metrics.changes(entry, catalog, prompt, answer_ids)
            )
        except ToolkitError:
            raise
        except Exception as error:  # out of memory, or an adapter that cannot be loaded
            raise CheckpointError(self.metrics.explain(error)) from error

    def context_use(self, conversations: Mapping[str, object], max_new_tokens: object) -> str:
        """The tokens of the longest conversation, and the room that the context leaves for the answer.

        Args:
            conversations: messages that end with a user message, by checkpoint id.

        Raises: ConfigError if a conversation is not valid or too long.
        """
        ids = list(conversations)
        request = checked_request(
            prompt=conversations,
            checkpoints=ids,
            max_new_tokens=max_new_tokens,
            known_checkpoints=ids,
            known_rewards=[],
        )
        different = {str(messages): messages for messages in request.conversations}
        longest = max(len(self.tokens.prompt(messages)) for messages in different.values())
        if self.context is None:
            return f"{longest:,} tokens"
        use = f"{longest:,} of {self.context:,} tokens"
        wanted, room = request.sampling.max_new_tokens, _room(self.context, longest)
        return use if room >= wanted else f"{use}; room for {room} of {wanted} new tokens"

    def _within_context(self, request: Request, prompts: list[list[int]]) -> Request:
        """The request with `max_new_tokens` reduced to the room that the longest prompt leaves.

        Raises: ConfigError if there is no room.
        """
        if self.context is None:
            return request
        room = _room(self.context, max(map(len, prompts)))
        tokens = min(request.sampling.max_new_tokens, room)
        return replace(request, sampling=replace(request.sampling, max_new_tokens=tokens))


def _dtype() -> str:
    return "bfloat16" if torch.cuda.is_available() else "float32"


def _room(context: int, length: int) -> int:
    """The tokens that the context leaves after a prompt of this length.

    Raises: ConfigError if there are none.
    """
    if length >= context:
        raise ConfigError(
            f"the conversation has {length} tokens; the context of the base is {context}: shorten the "
            "prompt or, on Compare, start a new chat"
        )
    return context - length


def _answer_text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError("there is no answer to show: ask on Compare first, or write one")
    message: Message = {"role": "user", "content": value}
    checked = checked_request(
        prompt=[message], checkpoints=["any"], known_checkpoints=["any"], known_rewards=[]
    )
    return checked.conversations[0][0]["content"]
