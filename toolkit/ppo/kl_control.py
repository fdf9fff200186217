"""The coefficient of the KL penalty: fixed, or steered towards a target."""

from dataclasses import dataclass


@dataclass
class KLController:
    """β, in reward units per nat. Without a target it stays what it is.

    Args:
        coef: β at the start.
        target: wanted KL of policy and reference, nats per completion; None keeps β fixed.
        horizon: episodes over which β may change by a factor of about 1.2 at most.

    Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2.
    """

    coef: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, kl: float, episodes: int) -> None:
        """Steer by the mean KL (nats per completion) that a rollout of some episodes had."""
        if self.target is None:
            return
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * episodes / self.horizon
