"""Reads one answer as policy, reference and critic: what `changes.py` describes, from the model."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from toolkit.app.answering.changes import Alternative, Changes, Token
from toolkit.app.answering.measuring import Measurer
from toolkit.app.catalog import Catalog, Entry
from toolkit.kernels.chunked_logprobs import VocabularyHead
from toolkit.models.heads import HEAD_FILE, ScalarHead
from toolkit.models.passes import Batch, policy_pass, state_values
from toolkit.runs.run import WEIGHTS_FILE

ALTERNATIVES = 5  # of each token


class Examiner:
    """Reads an answer as policy, reference and critic. Used by the engine's thread only."""

    def __init__(self, measurer: Measurer) -> None:
        self.measurer, self.shelf = measurer, measurer.shelf
        self.roles, self.tokens = measurer.roles, measurer.tokens

    def examine(
        self,
        entry: Entry,
        catalog: Catalog,
        prompt: list[int],
        answer: list[int],
        in_use: Collection[str | None] = (),
    ) -> Changes:
        """Every token of a given answer to a given prompt, both as ids."""
        batch = self.measurer.batch(prompt, answer)
        pieces, notes = self.tokens.pieces(answer), []
        ours = self._read(self.shelf.ready(entry, in_use), batch)
        theirs, reference = None, ""
        if entry.reference is None:
            notes.append(f"no reference: {entry.no_reference}")
        else:
            other = catalog.checkpoints[entry.reference]
            reference = other.name
            theirs = self._read(self.shelf.ready(other, in_use), batch)
        values = self._values(entry, batch, notes, in_use)
        tokens = []
        for t, text in enumerate(pieces):
            tokens.append(
                Token(
                    text,
                    ours.logprobs[t],
                    ours.entropy[t],
                    ours.top[t],
                    None if theirs is None else theirs.logprobs[t],
                    () if theirs is None else theirs.top[t],
                    None if values is None else values[t],
                )
            )
        return Changes(entry.name, reference, tuple(tokens), tuple(notes))

    def _read(self, role: str | None, batch: Batch) -> "_Reading":
        with self.roles.using(role) as model:
            found = policy_pass(model, batch, temperature=1.0, entropy=True)
            probs = VocabularyHead.of(self.roles.base).logits(found.states).softmax(-1)
        assert found.entropy is not None
        best: tuple[Tensor, Tensor] = probs.topk(min(ALTERNATIVES, probs.shape[-1]))
        return _Reading(
            found.logprobs[0].tolist(),
            found.entropy[0].tolist(),
            [
                tuple(map(Alternative, self.tokens.pieces(ids), shares))
                for shares, ids in zip(best[0].tolist(), best[1].tolist(), strict=True)
            ],
        )

    def _values(
        self, entry: Entry, batch: Batch, notes: list[str], in_use: Collection[str | None]
    ) -> list[float] | None:
        folder = None if entry.path is None else entry.path / "value"
        if folder is None or not (folder / HEAD_FILE).is_file():
            notes.append("no values: only runs of PPO keep a critic (in value/)")
            return None
        role, head = self._critic(entry, folder, in_use)
        with self.roles.using(role) as model:
            return [float(v) for v in state_values(model, head, batch)[0]]

    def _critic(
        self, entry: Entry, folder: Path, in_use: Collection[str | None]
    ) -> tuple[str | None, ScalarHead]:
        """Whose trunk the critic reads, and its head: an adapter's own, or the policy's trunk."""
        if not (folder / WEIGHTS_FILE).is_file():
            head = ScalarHead.load(folder).to(self.roles.base.device)
            return self.shelf.ready(entry, in_use), head
        role = self.shelf.ready_folder(folder, head=True, in_use=in_use)
        found = self.roles.heads[role]
        assert isinstance(found, ScalarHead)
        return role, found


@dataclass(frozen=True)
class _Reading:
    logprobs: list[float]
    entropy: list[float]
    top: list[tuple[Alternative, ...]]
