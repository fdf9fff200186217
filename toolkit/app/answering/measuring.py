"""The numbers under an answer: the reward model's score with its z, and KL to the reference."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from toolkit.app.answering.adapter_cache import Shelf, Stamp, stamp_of
from toolkit.app.answering.answers import Answer
from toolkit.app.answering.request import Request
from toolkit.app.answering.tokens import Tokens
from toolkit.app.catalog import Catalog, Entry, tidy
from toolkit.errors import ToolkitError
from toolkit.models.heads import ScalarHead
from toolkit.models.passes import Batch, collate, completion_logprobs, scores
from toolkit.runs.run import Run
from toolkit.sampling.row_batch import Row, RowBatch
from toolkit.sampling.settings import Drawing

OUT_OF_MEMORY = "out of memory: ask fewer checkpoints at once, or for fewer tokens"


@dataclass(frozen=True)
class Baseline:
    """Mean and standard deviation of a reward model's scores over some known answers."""

    mean: float
    std: float
    of: str


class Measurer:
    """Measures answers. Used by the engine's thread only.

    Args:
        stop: ids that end an answer.
        prompts: on which SFT's answers are scored once, to say what a score is worth.
    """

    def __init__(
        self, shelf: Shelf, tokens: Tokens, *, stop: Sequence[int], runs: Path, prompts: list[str]
    ) -> None:
        self.shelf, self.roles, self.tokens, self.runs = shelf, shelf.roles, tokens, runs
        self.stop, self.prompts = stop, prompts
        assert isinstance(tokens.tokenizer.pad_token_id, int)
        self.pad_id = tokens.tokenizer.pad_token_id
        self._baselines: dict[tuple[Path, Stamp, Path | None, Stamp], Baseline | None] = {}

    def measured(
        self,
        answer: Answer,
        prompt: list[int],
        request: Request,
        catalog: Catalog,
        in_use: Collection[str | None] = (),
    ) -> Answer:
        """The answer with score, z and KL, or with a note on why there is none."""
        entry, batch = catalog.checkpoints[answer.checkpoint], self.batch(prompt, answer.ids)
        if request.reward is not None:
            reward = catalog.rewards[request.reward]
            try:
                answer = replace(answer, score=self.score(reward, batch, in_use)[0])
                answer = self._compared(answer, self.baseline(reward, catalog, in_use))
            except Exception as error:
                answer = _noted(answer, f"no score: {self.explain(error)}")
        if entry.reference is None:
            return _noted(answer, f"no KL: {entry.no_reference}")
        try:
            reference = catalog.checkpoints[entry.reference]
            answer = replace(answer, reference=reference.name)
            kl = self._kl(entry, reference, batch, request.kl_temperature, in_use)
            return replace(answer, kl=kl)
        except Exception as error:
            return _noted(answer, f"no KL: {self.explain(error)}")

    def batch(self, prompt: list[int], completion: Sequence[int]) -> Batch:
        """One row."""
        return collate([prompt], [list(completion)], self.pad_id, self.roles.base.device)

    def score(
        self, reward: Entry, batch: Batch, in_use: Collection[str | None] = ()
    ) -> list[float]:
        """The reward model's scalar of each row."""
        role = self.shelf.ready(reward, in_use)
        assert role is not None
        head = self.roles.heads[role]
        assert isinstance(head, ScalarHead)
        with self.roles.using(role) as model:
            return [float(s) for s in scores(model, head, batch)]

    def _kl(
        self,
        entry: Entry,
        reference: Entry,
        batch: Batch,
        temperature: float,
        in_use: Collection[str | None],
    ) -> float:
        sums = []
        for side in (entry, reference):
            with self.roles.using(self.shelf.ready(side, in_use)) as model:
                logprobs, _ = completion_logprobs(model, batch, temperature=temperature)
                sums.append(logprobs.double().sum().item())
        return sums[0] - sums[1]

    def baseline(
        self, reward: Entry, catalog: Catalog, in_use: Collection[str | None] = ()
    ) -> Baseline | None:
        """What SFT's answers to known prompts score, or demonstrations did; None where neither is known."""
        assert reward.path is not None
        sft = catalog.checkpoints.get(reward.reference or "")
        folder = None if sft is None else sft.path
        stamps = (stamp_of(reward.path), () if folder is None else stamp_of(folder))
        key = (reward.path, stamps[0], folder, stamps[1])
        if key not in self._baselines:
            if self.prompts and sft is not None and sft.recipe == "sft":
                self._baselines[key] = self._of_answers(reward, sft, in_use)
            else:
                self._baselines[key] = _of_demonstrations(reward.path)
        return self._baselines[key]

    def _of_answers(self, reward: Entry, sft: Entry, in_use: Collection[str | None]) -> Baseline:
        role = self.shelf.ready(sft, in_use)
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
        found = torch.tensor(self.score(reward, batch, {*in_use, role}))
        of = f"{len(rows)} answers of {sft.name}"
        return Baseline(found.mean().item(), found.std().item(), of)

    def _compared(self, answer: Answer, baseline: Baseline | None) -> Answer:
        assert answer.score is not None
        if baseline is None or not baseline.std > 0:
            return _noted(
                answer, "no z: what SFT's answers score is not known for this reward model"
            )
        z = (answer.score - baseline.mean) / baseline.std
        return replace(answer, z=z, z_of=baseline.of)

    def explain(self, error: BaseException) -> str:
        """One line for the page. What nobody foresaw is logged whole on the server."""
        if out_of_memory(error):
            return OUT_OF_MEMORY
        if not isinstance(error, ToolkitError):
            logging.getLogger(__name__).error("an answer failed", exc_info=error)
        return tidy(str(error), self.runs) or type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory, on a GPU or on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = ("not enough memory", "out of memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)


def _noted(answer: Answer, note: str) -> Answer:
    return replace(answer, notes=(*answer.notes, note))


def _of_demonstrations(folder: Path) -> Baseline | None:
    """From the run's own record: demonstrations score 0 on average, with this spread."""
    std = Run.load(folder).results.get("score_std")
    if not isinstance(std, int | float) or isinstance(std, bool):
        return None
    return Baseline(0.0, float(std), "the demonstrations")
