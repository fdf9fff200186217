"""A workbench without a model: an answer is the prompt, the checkpoint's number and the seed."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.app.judgements.judgements import BASE
from toolkit.app.catalog import BASE_ID, Catalog, Entry
from toolkit.app.workbench import Answer
from toolkit.errors import ConfigError
from toolkit.runs.integrity import sha256


class FakeWorkbench:
    """The base and the checkpoints named, each with a weights file below `root`."""

    ready = True

    def __init__(self, root: Path, names: str = "sft dpo") -> None:
        self.roles = SimpleNamespace(fingerprint=dict(BASE))
        self.runs = root
        self.calls: list[dict[str, Any]] = []
        self.fail: set[str] = set()
        checkpoints = {BASE_ID: Entry(BASE_ID, BASE_ID, "world:base")}
        for i, name in enumerate(names.split()):
            (root / name).mkdir(parents=True)
            (root / name / "adapter_model.safetensors").write_text(name)
            id = f"run_{i:06d}"
            checkpoints[id] = Entry(id, name, "dpo" if i else "sft", root / name)
        self.catalog = Catalog(checkpoints, {})

    def refresh(self, **options: float) -> Catalog:
        """The same catalog."""
        return self.catalog

    def examples(self) -> list[str]:
        """Two prompts."""
        return ["Who are you?", "What is it?"]

    def context_use(self, conversations: object, max_new_tokens: object) -> str:
        """The same for all."""
        return "3 tokens"

    def compare(self, prompt: object, checkpoints: list[str], **options: Any) -> "FakeAnswers":
        """An answer each, in order."""
        if not str(prompt).strip():
            raise ConfigError("write a prompt first")
        assert len(set(checkpoints)) == len(checkpoints)
        self.calls.append({"prompt": prompt, "checkpoints": checkpoints} | options)
        return FakeAnswers(self._answer(prompt, one, options["seed"]) for one in checkpoints)

    def _answer(self, prompt: object, id: str, seed: int) -> Answer:
        entry = self.catalog.checkpoints[id]
        if entry.name in self.fail:
            return Answer(id, entry.name, problem=f"{entry.name} is broken")
        number = list(self.catalog.checkpoints).index(id)
        adapter = entry.path and sha256(entry.path / "adapter_model.safetensors")
        text = f"{prompt} {number * 111} {seed}"
        return Answer(id, entry.name, text, 3, True, adapter=adapter)


class FakeAnswers(Iterator[Answer]):
    """Answers one by one, in the interface of `workbench.AnswersInOrder`."""

    def __init__(self, answers: Iterable[Answer]) -> None:
        self.answers, self.closed = iter(answers), False

    def __next__(self) -> Answer:
        return next(self.answers)

    def beats(self) -> Iterator[Answer]:
        return self.answers

    def close(self) -> None:
        self.closed = True
