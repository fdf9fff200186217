"""PPO's mathematics again, in plain loops over floats, sharing no code with the toolkit.

A row is one completion, a list with a number per real token; there is no padding and no mask.
"""

import math
from dataclasses import dataclass

Row = list[float]
EPS = 1e-8  # added to a variance under the root


def log_softmax(logits: Row, temperature: float) -> Row:
    """log softmax(logits / temperature)."""
    scaled = [x / temperature for x in logits]
    top = max(scaled)
    normaliser = top + math.log(math.fsum(math.exp(x - top) for x in scaled))
    return [x - normaliser for x in scaled]


def entropy(logits: Row, temperature: float) -> float:
    """−Σ p·log p, nats."""
    return -math.fsum(math.exp(x) * x for x in log_softmax(logits, temperature))


def kl(logprob: float, ref_logprob: float, estimator: str) -> float:
    """One token's estimate of KL(policy ‖ reference): with r = q/p, −log r or r − 1 − log r."""
    log_r = ref_logprob - logprob
    return -log_r if estimator == "k1" else math.exp(log_r) - 1 - log_r


def rewards(score: float, kls: Row, beta: float) -> Row:
    """−β·kl per token, plus the score at the last token."""
    per_token = [-beta * x for x in kls]
    if per_token:
        per_token[-1] += score
    return per_token


def gae(row: Row, values: Row, gamma: float, lam: float) -> Row:
    """Σ_k (γλ)^k·δ_{t+k}, each advantage summed separately; the value after the last token is 0."""
    ahead = [*values[1:], 0.0]
    deltas = [r + gamma * v1 - v0 for r, v0, v1 in zip(row, values, ahead, strict=False)]
    return [
        math.fsum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:]))
        for t in range(len(deltas))
    ]


def whiten(rows: list[Row], *, shift_mean: bool) -> list[Row]:
    """Scale to variance 1 (unbiased, n − 1), over all tokens of all rows together."""
    flat = [x for row in rows for x in row]
    if not flat:
        return rows
    mean = math.fsum(flat) / len(flat)
    variance = math.fsum((x - mean) ** 2 for x in flat) / max(len(flat) - 1, 1)
    kept = 0.0 if shift_mean else mean
    return [[(x - mean) / math.sqrt(variance + EPS) + kept for x in row] for row in rows]


def advantages_and_returns(
    scores: Row,
    logprobs: list[Row],
    ref_logprobs: list[Row],
    values: list[Row],
    *,
    beta: float,
    estimator: str,
    gamma: float,
    lam: float,
    whiten_rewards: bool,
) -> tuple[list[Row], list[Row]]:
    """Whitened advantages of a whole rollout, and returns from the advantages before whitening."""
    per_token = [
        rewards(score, [kl(p, q, estimator) for p, q in zip(new, ref, strict=True)], beta)
        for score, new, ref in zip(scores, logprobs, ref_logprobs, strict=True)
    ]
    if whiten_rewards:
        per_token = whiten(per_token, shift_mean=False)
    raw = [gae(row, v, gamma, lam) for row, v in zip(per_token, values, strict=True)]
    returns = [
        [a + v for a, v in zip(*pair, strict=True)] for pair in zip(raw, values, strict=True)
    ]
    return whiten(raw, shift_mean=True), returns


@dataclass
class Minibatch:
    """Means over all tokens of a minibatch."""

    policy_loss: float
    value_loss: float
    entropy: float
    approx_kl: float
    clip_fraction: float
    value_clip_fraction: float
    ratio: float


@dataclass
class Token:
    """One real token: its numbers at rollout time and at the update."""

    old_logprob: float
    advantage: float
    old_value: float
    target: float
    logprob: float
    value: float
    entropy: float


def minibatch(tokens: list[Token], *, cliprange: float, cliprange_value: float) -> Minibatch:
    """Clipped losses and statistics, case by case as in the papers."""
    total = Minibatch(0, 0, 0, 0, 0, 0, 0)
    for t in tokens:
        ratio = math.exp(t.logprob - t.old_logprob)
        # the ratio is bounded at 1 + ε for a positive advantage and at 1 − ε for a negative one
        too_good = t.advantage > 0 and ratio > 1 + cliprange
        too_bad = t.advantage < 0 and ratio < 1 - cliprange
        bound = 1 + cliprange if too_good else 1 - cliprange if too_bad else ratio
        total.policy_loss -= t.advantage * bound
        total.clip_fraction += too_good or too_bad
        moved = t.value - t.old_value
        far = abs(moved) > cliprange_value
        held = t.old_value + math.copysign(cliprange_value, moved) if far else t.value
        error, held_error = (t.value - t.target) ** 2, (held - t.target) ** 2
        total.value_loss += 0.5 * max(error, held_error)
        total.value_clip_fraction += held_error > error
        total.entropy += t.entropy
        total.approx_kl += 0.5 * (t.logprob - t.old_logprob) ** 2
        total.ratio += ratio
    return Minibatch(*(x / len(tokens) for x in vars(total).values()))
