"""Scores of texts by a reward role, for tests."""

from toolkit.evaluation.judge import _pair
from toolkit.evaluation.scoring import score_ids
from toolkit.models.roles import REWARD


def score_rows(roles, tokenizer, rows, *, reward=REWARD):
    """The reward role's score of each (prompt, completion), in order."""
    pairs = [_pair(tokenizer, prompt, completion) for prompt, completion in rows]
    return score_ids(roles, pairs, reward=reward, pad_id=tokenizer.pad_token_id, batch_size=32)
