"""Sampling settings. This module does not import torch, because the app needs it before torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """Length limit and temperature of completions; temperature 0 is greedy."""

    max_new_tokens: int = 64
    temperature: float = 1.0


@dataclass(frozen=True)
class Drawing(Sampling):
    """`Sampling` with further options of the app; training samples from the whole distribution π.

    Attributes:
        top_k: sample from this many most likely tokens; 0 means all.
        top_p: sample from the most likely tokens that together have this probability; 1 means all.
        beams: above 1, return the most likely answer of a beam search with this many beams.
        seed: seed of the row's own generator.
    """

    top_k: int = 0
    top_p: float = 1.0
    beams: int = 1
    seed: int = 0
