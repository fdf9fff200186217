"""Expected numbers of a rollout: each row alone, unpadded, with the library's own forward pass."""

import torch

from tests.conftest import randomise
from tests.ppo.record import STOPS
from toolkit.models.roles import POLICY, REFERENCE
from toolkit.ppo import rollout as module


def make_ragged(roles):
    """Make completions differ in length, some without an end, and the policy differ from the reference."""
    roles.base.generation_config.eos_token_id = STOPS
    randomise(roles, POLICY, seed=11)


def logprobs_of(roles, name, prompt, completion, temperature):
    """Log-probabilities of a completion's tokens under a role, `(T,)`."""
    with torch.no_grad(), roles.using(name) as model:
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[
            0, len(prompt) - 1 : -1
        ]
    return (logits / temperature).log_softmax(-1)[range(len(completion)), completion]


def kls_of(roles, rollout, temperature):
    """KL of the current policy per completion, from the log-ratio of the sampled tokens, `(B,)`, nats."""
    rows = zip(rollout.prompts, rollout.completions, strict=True)
    return torch.stack(
        [
            (
                logprobs_of(roles, POLICY, *row, temperature)
                - logprobs_of(roles, REFERENCE, *row, temperature)
            ).sum()
            for row in rows
        ]
    )


def scores_of(roles, name, rollout):
    """Score of each completion by a reward role, `(B,)`."""
    head, scores = roles.heads[name], []
    for prompt, completion in zip(rollout.prompts, rollout.completions, strict=True):
        with torch.no_grad(), roles.using(name) as model:
            ids = torch.tensor([prompt + completion])
            hidden = model.get_base_model().model(input_ids=ids).last_hidden_state[0, -1]
        scores.append(head.weight[0].detach() @ hidden + head.bias[0].detach())
    return torch.stack(scores)


def unended(rollout):
    """1 for a completion without a stop token, `(B,)`."""
    return torch.tensor([float(completion[-1] not in STOPS) for completion in rollout.completions])


def lengths_of(rollout):
    return torch.tensor([float(len(completion)) for completion in rollout.completions])


def keep_rollouts(monkeypatch, *, scores=()):
    """A list to which every new rollout is added.

    `scores` are pairs of a row and the reward model's score that replaces its own.
    """
    rollouts, plain = [], module.read_by_roles

    def read_and_keep(*args, **kwargs):
        rollout, model_scores = plain(*args, **kwargs)
        rollouts.append(rollout)
        for row, score in scores:
            model_scores[0, row] = score
        return rollout, model_scores

    monkeypatch.setattr(module, "read_by_roles", read_and_keep)
    return rollouts
