"""One base in memory and the adapters asked for: several checkpoints' answers to one conversation."""

import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.arena.answering.answers import Answer
from toolkit.arena.answering.changes import Changes, Examiner
from toolkit.arena.answering.engine import Engine
from toolkit.arena.answering.jobs import Column, Comparison, Job
from toolkit.arena.answering.measuring import Measurer
from toolkit.arena.answering.request import (
    DEFAULT_NEW_TOKENS,
    DEFAULT_TEMPERATURE,
    Message,
    Request,
    checked_request,
)
from toolkit.arena.answering.shelf import Shelf
from toolkit.arena.answering.tokens import Tokens
from toolkit.arena.catalog import Catalog, scan
from toolkit.config import is_local_path
from toolkit.errors import CheckpointError, ConfigError, ToolkitError
from toolkit.listing import list_runs
from toolkit.models.base import fingerprint, load_base, stop_ids
from toolkit.models.roles import Roles
from toolkit.models.templates import saved_template
from toolkit.world import BASE_NAME
from toolkit.world.questions import distinct

EXAMPLES, BASELINE_PROMPTS = 8, 32

__all__ = ["Answer", "Comparison", "Workbench"]


class Workbench:
    """Owns the base, its roles and the thread that runs them. Safe to use from several threads."""

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
            self.shelf, self.tokens, stop=self.stop, runs=runs, prompts=self._questions()
        )
        self.engine = Engine(self.measurer)
        self._scan_lock = threading.Lock()
        self._ids: dict[Path, str] = {}
        self.catalog = self.refresh()

    @classmethod
    def open(
        cls,
        model_name: str,
        runs: Path,
        *,
        load_in_4bit: bool = False,
        load_in_8bit: bool = False,
        trust_remote_code: bool = False,
    ) -> "Workbench":
        """Load the base once, on the GPU where there is one, quantized as the runs' base was.

        Raises: CheckpointError or ConfigError where there is no usable base of that name.
        """
        import torch
        from trl import ModelConfig

        cuda = torch.cuda.is_available()
        model = ModelConfig(
            model_name_or_path=model_name,
            dtype="bfloat16" if cuda else "float32",
            load_in_4bit=load_in_4bit,
            load_in_8bit=load_in_8bit,
        )
        base, tokenizer = load_base(
            model, parent=_first_sft(runs, model_name), trust_remote_code=trust_remote_code
        )
        return cls(base, tokenizer, fingerprint(model, tokenizer), runs)

    def refresh(self) -> Catalog:
        """Look at the runs folder again; ids of known runs stay what they were."""
        name = self.roles.fingerprint["id"]
        with self._scan_lock:
            self.catalog = scan(
                self.runs,
                base_name=Path(name).name if is_local_path(name) else name,
                fingerprint=self.roles.fingerprint,
                identify=self._identify,
                refused=self.shelf.refusal,
            )
            return self.catalog

    def examples(self) -> list[str]:
        """Prompts to try: questions no recipe trains on, where the base is the embedded world's."""
        return self._questions()[:EXAMPLES]

    def _questions(self) -> list[str]:
        if self.roles.fingerprint["id"] != BASE_NAME:
            return []
        return [q.prompt for q in distinct(random.Random(0), "test", BASELINE_PROMPTS)]

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
        *,
        reward: object = None,
        system: object = "",
        temperature: object = DEFAULT_TEMPERATURE,
        top_k: object = 0,
        top_p: object = 1.0,
        beams: object = 1,
        max_new_tokens: object = DEFAULT_NEW_TOKENS,
        seed: object = 0,
    ) -> Iterator[Answer]:
        """Each checkpoint's whole answer in the order asked for, one by one as they are made.

        A checkpoint that fails gives an answer with a `problem`; the others are not touched by it.

        Args:
            prompt: a text, or messages that end with the user's, or such messages by checkpoint id.

        Raises: CheckpointError for an unknown id, ConfigError for a prompt that cannot be used,
            BusyError where too many wait; all before anything is generated.
        """
        comparison = self.stream(
            prompt,
            checkpoints,
            reward=reward,
            system=system,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            beams=beams,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
        return _InOrder(comparison)

    def stream(
        self,
        prompt: object,
        checkpoints: object,
        *,
        reward: object = None,
        system: object = "",
        temperature: object = DEFAULT_TEMPERATURE,
        top_k: object = 0,
        top_p: object = 1.0,
        beams: object = 1,
        max_new_tokens: object = DEFAULT_NEW_TOKENS,
        seed: object = 0,
    ) -> Comparison:
        """As `compare`, with the answers as they grow."""
        catalog = self.catalog
        request = checked_request(
            prompt=prompt,
            checkpoints=checkpoints,
            reward=reward,
            system=system,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            beams=beams,
            max_new_tokens=max_new_tokens,
            seed=seed,
            known_checkpoints=catalog.checkpoints,
            known_rewards=catalog.rewards,
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


class _InOrder(Iterator[Answer]):
    """Whole answers one by one. Closed before its first, too, it gives up what is not done."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._answers = self._whole()

    def __next__(self) -> Answer:
        return next(self._answers)

    def _whole(self) -> Iterator[Answer]:
        given = 0
        for answers in self._comparison:
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
