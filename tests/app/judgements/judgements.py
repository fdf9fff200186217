"""Judgements for tests."""

from typing import Any

from toolkit.app.judgements.judgement import BATTLE, RANKING, Judgement, Reply

BASE = {"id": "world:base", "quantization": "none", "weights": "w0"}


def reply(name: str, text: str = "", *, seed: int = 1) -> Reply:
    """An answer of the checkpoint of that name; the base has no adapter."""
    adapter = None if name == "base" else f"hash of {name}"
    return Reply(f"id_{name}", name, text or f"{name} says {seed}.", seed, adapter)


def battle(id: str, a: str, b: str, verdict: str | None, **changes: Any) -> Judgement:
    """A battle of two checkpoints."""
    return _judgement(id, BATTLE, (reply(a), reply(b)), changes | {"verdict": verdict})


def ranking(id: str, names: str, ranks: tuple[int, ...] | None, **changes: Any) -> Judgement:
    """A ranking of answers; `names` are the checkpoints, separated by blanks."""
    replies = tuple(reply(n, seed=i) for i, n in enumerate(names.split(), start=1))
    return _judgement(id, RANKING, replies, changes | {"ranks": ranks})


def _judgement(
    id: str, kind: str, replies: tuple[Reply, ...], changes: dict[str, Any]
) -> Judgement:
    prompt = changes.pop("prompt", "Why?")
    defaults = {
        "prompt": ({"role": "user", "content": prompt},),
        "replies": replies,
        "sampling": {"temperature": 0.7, "max_new_tokens": 64},
        "base": BASE,
        "time": "2026-01-02T03:04:05Z",
    }
    return Judgement(id=id, kind=kind, **(defaults | changes))
