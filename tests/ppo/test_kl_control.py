"""The KL coefficient β: fixed, or adapted to a target KL."""

import pytest

from toolkit.ppo.experience import KLController


def test_coefficient_without_target_is_constant():
    control = KLController(0.1)
    control.update(50.0, 128)
    assert control.coef == 0.1


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.2),  # at the target
        (6.6, 0.2 * (1 + 0.1 * 500 / 10_000)),  # a tenth above
        (60.0, 0.2 * (1 + 0.2 * 500 / 10_000)),  # far above: the error is clipped at 0.2
        (0.0, 0.2 * (1 - 0.2 * 500 / 10_000)),
    ],
)
def test_by_hand(kl, expected):
    control = KLController(0.2, target=6.0, horizon=10_000)
    control.update(kl, 500)
    assert control.coef == pytest.approx(expected, rel=1e-12)


def test_coefficient_moves_kl_towards_target():
    """A simulated policy with KL 1/β: the loop converges to the target."""
    control = KLController(0.01, target=4.0, horizon=2_000)
    for _ in range(2_000):
        kl = 1.0 / control.coef
        control.update(kl, 128)
    assert 1.0 / control.coef == pytest.approx(4.0, rel=0.01)
