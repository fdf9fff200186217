"""The numbers of an answer, computed with the model: score, z, KL, and the metrics of each token."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from toolkit.app.answering.adapter_cache import AdapterCache
from toolkit.app.answering.changes import Alternative, Changes, Token
from toolkit.app.answering.request import Answer, Request
from toolkit.app.answering.tokens import LockedTokenizer
from toolkit.app.catalog import Catalog, Entry, Stamp, file_stamp
from toolkit.app.texts import tidy
from toolkit.errors import ToolkitError
from toolkit.kernels.chunked_logprobs import VocabularyHead
from toolkit.models.heads import HEAD_FILE, ScalarHead
from toolkit.models.passes import (
    Batch,
    collate,
    completion_logprobs,
    policy_pass,
    scores,
    state_values,
)
from toolkit.runs.run import WEIGHTS_FILE, Run
from toolkit.sampling.row_batch import Row, RowBatch
from toolkit.sampling.settings import Drawing

ALTERNATIVES = 5  # most likely tokens kept at each position
OUT_OF_MEMORY = "out of memory: choose fewer checkpoints or fewer new tokens"


@dataclass(frozen=True)
class Baseline:
    """Mean and standard deviation of a reward model's scores for known answers, and the answers' source."""

    mean: float
    std: float
    source: str


class AnswerMetrics:
    """Computes the numbers of answers. Only the engine's thread may use it."""

    def __init__(
        self,
        adapters: AdapterCache,
        tokens: LockedTokenizer,
        *,
        stop: Sequence[int],
        runs: Path,
        prompts: list[str],
    ) -> None:
        """`stop` holds the stop token ids; the SFT run's answers to `prompts` give the baseline for z."""
        self.adapters, self.roles, self.tokens, self.runs = adapters, adapters.roles, tokens, runs
        self.stop, self.prompts = stop, prompts
        assert isinstance(tokens.tokenizer.pad_token_id, int)
        self.pad_id = tokens.tokenizer.pad_token_id
        self._baselines: dict[tuple[Path, Stamp, Path | None, Stamp], Baseline | None] = {}

    def add_to(
        self, answer: Answer, prompt: list[int], request: Request, catalog: Catalog
    ) -> Answer:
        """Add score, z and KL to an answer, and a note for each missing number."""
        entry, batch = catalog.checkpoints[answer.checkpoint], self._batch(prompt, answer.ids)
        if request.reward is not None:
            reward = catalog.rewards[request.reward]
            try:
                answer = replace(answer, score=self._scores(reward, batch)[0])
                answer = _with_z(answer, self.baseline(reward, catalog))
            except Exception as error:
                answer = _with_note(answer, f"no score: {self.explain(error)}")
        if entry.reference is None:
            return _with_note(answer, f"no KL: {entry.no_reference}")
        try:
            reference = catalog.checkpoints[entry.reference]
            answer = replace(answer, reference=reference.name)
            return replace(answer, kl=self._kl(entry, reference, batch, request.kl_temperature))
        except Exception as error:
            return _with_note(answer, f"no KL: {self.explain(error)}")

    def changes(
        self, entry: Entry, catalog: Catalog, prompt: list[int], answer: list[int]
    ) -> Changes:
        """The metrics of each token of an answer; `prompt` and `answer` are token ids."""
        batch, notes = self._batch(prompt, answer), []
        tokens, reference_name = self._tokens(entry, batch, answer), ""
        if entry.reference is None:
            notes.append(f"no reference: {entry.no_reference}")
        else:
            reference = catalog.checkpoints[entry.reference]
            reference_name = reference.name
            pairs = zip(tokens, self._tokens(reference, batch, answer), strict=True)
            tokens = [replace(t, ref_logprob=r.logprob, reference=r.policy) for t, r in pairs]
        values = self._values(entry, batch, notes)
        if values is not None:
            tokens = [replace(t, value=v) for t, v in zip(tokens, values, strict=True)]
        return Changes(entry.name, reference_name, tuple(tokens), tuple(notes))

    def baseline(self, reward: Entry, catalog: Catalog) -> Baseline | None:
        """The baseline for z: the scores of the SFT run's answers or else of the demonstrations.

        Returns: None if both are unknown. The result is cached until the files of a run change.
        """
        assert reward.path is not None
        sft = catalog.checkpoints.get(reward.reference or "")
        folder = None if sft is None else sft.path
        stamps = (file_stamp(reward.path), () if folder is None else file_stamp(folder))
        key = (reward.path, stamps[0], folder, stamps[1])
        if key not in self._baselines:
            if self.prompts and sft is not None and sft.is_sft:
                self._baselines[key] = self._baseline_of_answers(reward, sft)
            else:
                self._baselines[key] = _baseline_of_demonstrations(reward.path)
        return self._baselines[key]

    def explain(self, error: BaseException) -> str:
        """Explain an error in one line for the page; log the traceback of an unexpected error."""
        if out_of_memory(error):
            return OUT_OF_MEMORY
        if not isinstance(error, ToolkitError):
            logging.getLogger(__name__).error("an answer failed", exc_info=error)
        return tidy(str(error), self.runs) or type(error).__name__

    def _batch(self, prompt: list[int], completion: Sequence[int]) -> Batch:
        return collate([prompt], [list(completion)], self.pad_id, self.roles.base.device)

    def _scores(self, reward: Entry, batch: Batch) -> list[float]:
        role = self.adapters.load(reward)
        assert role is not None
        head = self.roles.heads[role]
        assert isinstance(head, ScalarHead)
        with self.roles.using(role) as model:
            return [float(s) for s in scores(model, head, batch)]

    def _kl(self, entry: Entry, reference: Entry, batch: Batch, temperature: float) -> float:
        sums = []
        for side in (entry, reference):
            with self.roles.using(self.adapters.load(side)) as model:
                logprobs, _ = completion_logprobs(model, batch, temperature=temperature)
                sums.append(logprobs.double().sum().item())
        return sums[0] - sums[1]

    def _baseline_of_answers(self, reward: Entry, sft: Entry) -> Baseline:
        role = self.adapters.load(sft)
        prompts = [self.tokens.prompt([{"role": "user", "content": p}]) for p in self.prompts]
        drawing = Drawing(max_new_tokens=96, temperature=1.0)
        rows = [Row(p, role, drawing) for p in prompts]
        for number, row in enumerate(rows):
            row.generator = torch.Generator(self.roles.base.device).manual_seed(number)
        decoding = RowBatch(self.roles, stop=self.stop, pad_id=self.pad_id)
        try:
            decoding.join(rows)
            while decoding.rows:
                decoding.step()
        finally:
            decoding.pause()
        batch = collate(prompts, [r.ids for r in rows], self.pad_id, self.roles.base.device)
        known = torch.tensor(self._scores(reward, batch))
        source = f"{len(rows)} answers of {sft.name}"
        return Baseline(known.mean().item(), known.std().item(), source)

    def _tokens(self, entry: Entry, batch: Batch, answer: list[int]) -> list[Token]:
        """The tokens of an answer with the numbers of one checkpoint."""
        with self.roles.using(self.adapters.load(entry)) as model:
            output = policy_pass(model, batch, temperature=1.0, entropy=True)
            probs = VocabularyHead.of(self.roles.base).logits(output.states).softmax(-1)
        assert output.entropy is not None
        top: tuple[Tensor, Tensor] = probs.topk(min(ALTERNATIVES, probs.shape[-1]))
        likeliest = [
            tuple(map(Alternative, self.tokens.pieces(ids), probabilities))
            for probabilities, ids in zip(top[0].tolist(), top[1].tolist(), strict=True)
        ]
        numbers = (output.logprobs[0].tolist(), output.entropy[0].tolist(), likeliest)
        return list(map(Token, self.tokens.pieces(answer), *numbers))

    def _values(self, entry: Entry, batch: Batch, notes: list[str]) -> list[float] | None:
        """V(s_t) of each token, or None with a note if the run has no value."""
        folder = None if entry.path is None else entry.path / "value"
        if folder is None or not (folder / HEAD_FILE).is_file():
            notes.append("no values: only PPO runs store a value role (in value/)")
            return None
        if (folder / WEIGHTS_FILE).is_file():
            role: str | None = self.adapters.load_folder(folder, head=True)
            head = self.roles.heads[role]  # type: ignore[index]
            assert isinstance(head, ScalarHead)
        else:  # the value shares the policy's adapter
            role = self.adapters.load(entry)
            head = ScalarHead.load(folder).to(self.roles.base.device)
        with self.roles.using(role) as model:
            return [float(v) for v in state_values(model, head, batch)[0]]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the GPU or the CPU has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = ("not enough memory", "out of memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)


def _with_note(answer: Answer, note: str) -> Answer:
    return replace(answer, notes=(*answer.notes, note))


def _with_z(answer: Answer, baseline: Baseline | None) -> Answer:
    assert answer.score is not None
    if baseline is None or not baseline.std > 0:
        return _with_note(answer, "no z: no baseline scores are known for this reward model")
    z = (answer.score - baseline.mean) / baseline.std
    return replace(answer, z=z, z_source=baseline.source)


def _baseline_of_demonstrations(folder: Path) -> Baseline | None:
    """The baseline in a run's results: demonstrations score 0 on average, with `score_std`."""
    std = Run.load(folder).results.get("score_std")
    if not isinstance(std, int | float) or isinstance(std, bool):
        return None
    return Baseline(0.0, float(std), "the demonstrations")
