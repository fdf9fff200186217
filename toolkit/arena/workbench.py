"""One base in memory and the adapters asked for: several checkpoints' answers to one prompt."""

import logging
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.arena.catalog import (
    Catalog,
    Entry,
    require_inside,
    require_unchanged,
    scan,
    tidy,
)
from toolkit.arena.request import (
    DEFAULT_NEW_TOKENS,
    DEFAULT_TEMPERATURE,
    Request,
    checked_request,
)
from toolkit.config import is_local_path
from toolkit.errors import ConfigError, ToolkitError
from toolkit.models.base import fingerprint, load_base, stop_ids
from toolkit.models.generation import Prompt, complete, encode_prompt
from toolkit.models.heads import HEAD_FILE, ScalarHead
from toolkit.models.passes import Batch, collate, completion_logprobs, scores
from toolkit.models.roles import Roles
from toolkit.models.templates import saved_template
from toolkit.runs import ADAPTER_FILES, MANIFEST, list_runs
from toolkit.world import BASE_NAME
from toolkit.world.questions import distinct

ATTACHED_AT_MOST = 12  # adapters kept in memory; the one unused for longest makes room


@dataclass(frozen=True)
class Answer:
    """What one checkpoint answered.

    `score` is the reward model's scalar at the last token; `kl` is Σ over the completion's tokens
    of log π − log π_ref, in nats, one sample's estimate that may be negative; `reference` is the
    name of π_ref. `tokens` counts the end token too. `notes` say why a number is missing, and
    `problem` why there is no answer at all.
    """

    checkpoint: str
    name: str
    text: str = ""
    tokens: int = 0
    ended: bool = False
    score: float | None = None
    kl: float | None = None
    reference: str = ""
    notes: tuple[str, ...] = ()
    problem: str | None = None


class Workbench:
    """Owns the base and its roles. Safe to use from several threads: one answer at a time."""

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        base_fingerprint: dict[str, str],
        runs: Path,
    ) -> None:
        self.tokenizer = tokenizer
        self.runs = runs
        self.roles = Roles(base.eval(), base_fingerprint)
        self.stop = stop_ids(base, tokenizer)
        self.context = getattr(base.config.get_text_config(), "max_position_embeddings", None)
        self._lock = threading.Lock()  # adapters switch globally: nobody else may run meanwhile
        self._scan_lock = threading.Lock()
        self._ids: dict[Path, str] = {}
        self._attached: dict[str, tuple[float, ...]] = {}  # id -> stamp, oldest use first
        self._refused: dict[Path, tuple[tuple[float, ...], str]] = {}  # stamp, reason
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
                refused=self._refusal,
            )
            return self.catalog

    def examples(self) -> list[str]:
        """Prompts to try: questions no recipe trains on, where the base is the embedded world's."""
        if self.roles.fingerprint["id"] != BASE_NAME:
            return []
        return [q.prompt for q in distinct(random.Random(0), "test", 8)]

    def compare(
        self,
        prompt: object,
        checkpoints: object,
        *,
        reward: object = None,
        temperature: object = DEFAULT_TEMPERATURE,
        max_new_tokens: object = DEFAULT_NEW_TOKENS,
        seed: object = 0,
    ) -> Iterator[Answer]:
        """Each checkpoint's answer in the order asked for, one by one as they are made.

        A checkpoint that fails gives an answer with a `problem`; the others are not touched by it.

        Raises: CheckpointError for an unknown id, ConfigError for a prompt that cannot be used;
            both before anything is generated.
        """
        catalog = self.catalog
        request = checked_request(
            prompt=prompt,
            checkpoints=checkpoints,
            reward=reward,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
            known_checkpoints=catalog.checkpoints,
            known_rewards=catalog.rewards,
        )
        request = self._fitted(request)
        return (self._answer(c, request, catalog) for c in request.checkpoints)

    def _fitted(self, request: Request) -> Request:
        """The request with room for prompt and answer in the base's context.

        Raises: ConfigError where the prompt alone fills it.
        """
        if self.context is None:
            return request
        used = len(encode_prompt(self.tokenizer, self._rendered(request.prompt)))
        room = self.context - used
        if room < 1:
            raise ConfigError(f"the prompt has {used} tokens; the base reads {self.context}")
        tokens = min(request.sampling.max_new_tokens, room)
        return replace(request, sampling=replace(request.sampling, max_new_tokens=tokens))

    def _rendered(self, prompt: str) -> Prompt:
        if self.tokenizer.chat_template is None:
            return prompt
        return [{"role": "user", "content": prompt}]

    def _answer(self, checkpoint: str, request: Request, catalog: Catalog) -> Answer:
        entry = catalog.checkpoints[checkpoint]
        prompt = self._rendered(request.prompt)
        # a visitor's seed shall not decide what anything else in the process draws
        with self._lock, torch.no_grad(), torch.random.fork_rng():
            try:
                with self.roles.using(self._ready(entry)) as model:
                    torch.manual_seed(request.seed)
                    said = complete(
                        model, self.tokenizer, [prompt], sampling=request.sampling, stop=self.stop
                    )[0]
            except Exception as error:  # one bad checkpoint must not take the others down
                return Answer(checkpoint, entry.name, problem=self._explain(error))
            answer = Answer(checkpoint, entry.name, said.text, len(said.ids), said.ended)
            return self._measured(answer, entry, self._batch(prompt, said.ids), request, catalog)

    def _measured(
        self, answer: Answer, entry: Entry, batch: Batch, request: Request, catalog: Catalog
    ) -> Answer:
        """The answer with score and KL, or with a note on why there is none."""
        if request.reward is not None:
            try:
                answer = replace(answer, score=self._score(catalog.rewards[request.reward], batch))
            except Exception as error:
                answer = replace(answer, notes=(*answer.notes, f"no score: {self._explain(error)}"))
        if entry.reference is None:
            return replace(answer, notes=(*answer.notes, f"no KL: {entry.no_reference}"))
        try:
            reference = catalog.checkpoints[entry.reference]
            answer = replace(answer, reference=reference.name)
            return replace(answer, kl=self._kl(entry, reference, batch, request.kl_temperature))
        except Exception as error:
            return replace(answer, notes=(*answer.notes, f"no KL: {self._explain(error)}"))

    def _score(self, reward: Entry, batch: Batch) -> float:
        with self.roles.using(self._ready(reward)) as model:
            head = self.roles.heads[reward.id]
            assert isinstance(head, ScalarHead)
            return scores(model, head, batch).item()

    def _kl(self, entry: Entry, reference: Entry, batch: Batch, temperature: float) -> float:
        sums = []
        for side in (entry, reference):
            with self.roles.using(self._ready(side)) as model:
                logprobs, _ = completion_logprobs(model, batch, temperature=temperature)
                sums.append(logprobs.double().sum().item())
        return sums[0] - sums[1]

    def _batch(self, prompt: Prompt, completion: list[int]) -> Batch:
        ids = encode_prompt(self.tokenizer, prompt)
        assert isinstance(self.tokenizer.pad_token_id, int)
        return collate([ids], [completion], self.tokenizer.pad_token_id, self.roles.base.device)

    def _ready(self, entry: Entry) -> str | None:
        """Attach a run's adapter unless it is; read it again where its files have changed."""
        if entry.path is None:
            return None
        stamp = _stamp(entry.path)
        if self._attached.pop(entry.id, None) != stamp:
            self.roles.detach(entry.id)
            while len(self._attached) >= ATTACHED_AT_MOST:
                oldest = next(iter(self._attached))
                del self._attached[oldest]
                self.roles.detach(oldest)
            try:
                require_inside(entry.path, self.runs)
                self.roles.attach(entry.id, entry.path, head=entry.recipe == "reward")
                require_unchanged(entry.path)
            except BaseException as error:
                self.roles.detach(entry.id)
                if isinstance(error, ToolkitError):
                    self._refused[entry.path] = (stamp, str(error))
                raise
            (
                self.roles.model or self.roles.base
            ).eval()  # an adapter's dropout arrives in train mode
        self._attached[entry.id] = stamp
        return entry.id

    def _identify(self, path: Path) -> str:
        # of one length, so that no adapter's name is the beginning of another's
        return self._ids.setdefault(path, f"run_{len(self._ids):06d}")

    def _refusal(self, path: Path) -> str | None:
        """Why a run could not be loaded, as long as its files are the same."""
        stamp, reason = self._refused.get(path, (None, None))
        return reason if stamp == _stamp(path) else None

    def _explain(self, error: Exception) -> str:
        """One line for the page. What nobody foresaw is logged whole on the server."""
        if not isinstance(error, ToolkitError):
            logging.getLogger(__name__).exception("an answer failed")
        return tidy(str(error), self.runs) or type(error).__name__


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


def _stamp(folder: Path) -> tuple[float, ...]:
    """What changes when a run is trained again in the same place."""
    files = [folder / name for name in (*ADAPTER_FILES, HEAD_FILE, MANIFEST)]
    return tuple(f.stat().st_mtime_ns if f.is_file() else 0 for f in files)
