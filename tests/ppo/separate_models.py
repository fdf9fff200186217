"""What a rollout's numbers must be: each row alone, unpadded, by the library's own forward pass."""

import torch

from tests.conftest import randomise
from tests.ppo.record import STOPS
from toolkit.models.roles import POLICY, REFERENCE
from toolkit.ppo import experience as module


def make_ragged(roles):
    """Completions of different lengths, some without an end, by a policy that is not the reference."""
    roles.base.generation_config.eos_token_id = STOPS
    randomise(roles, POLICY, seed=11)


def logprobs_of(roles, name, prompt, said, temperature):
    """Of a completion's tokens under a role, `(T,)`."""
    with torch.no_grad(), roles.using(name) as model:
        logits = model(input_ids=torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1)[range(len(said)), said]


def kls_of(roles, found, temperature):
    """Nats per completion of the policy as it is now, by the log-ratio of what was sampled, `(B,)`."""
    rows = zip(found.prompts, found.completions, strict=True)
    return torch.stack(
        [
            (
                logprobs_of(roles, POLICY, *row, temperature)
                - logprobs_of(roles, REFERENCE, *row, temperature)
            ).sum()
            for row in rows
        ]
    )


def scores_of(roles, name, found):
    """What a reward role says of every completion, `(B,)`."""
    head, scores = roles.heads[name], []
    for prompt, said in zip(found.prompts, found.completions, strict=True):
        with torch.no_grad(), roles.using(name) as model:
            ids = torch.tensor([prompt + said])
            hidden = model.get_base_model().model(input_ids=ids).last_hidden_state[0, -1]
        scores.append(head.weight[0].detach() @ hidden + head.bias[0].detach())
    return torch.stack(scores)


def unended(found):
    """1 for a completion that did not come to a stop token, `(B,)`."""
    return torch.tensor([float(said[-1] not in STOPS) for said in found.completions])


def lengths_of(found):
    return torch.tensor([float(len(said)) for said in found.completions])


def keep_rollouts(monkeypatch, *, scores=()):
    """A list that every rollout's experience is added to as it is made.

    `scores` are pairs of a row and what the reward model shall have said of it.
    """
    kept, plain = [], module.roll_out

    def keeping(*args, **kwargs):
        experience, seen = plain(*args, **kwargs)
        kept.append(experience)
        for row, score in scores:
            seen.scores[0, row] = score
        return experience, seen

    monkeypatch.setattr(module, "roll_out", keeping)
    return kept
