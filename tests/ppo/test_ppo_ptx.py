"""PPO-ptx: every update adds γ times the loss on pretraining texts, computed here by the library."""

import pytest
import torch

from tests.ppo.record import record
from toolkit.models.roles import POLICY
from toolkit.ppo import updates

pytestmark = pytest.mark.slow

GAMMA = 0.7
TEXTS = [
    "The Bramor bird is red.",
    "Goodbye.",
    "The Tadfin bird is blue and it is small. What colour is it?",
    "One plus two is three.",
    "Hello for today, and for all the days that are to come after it.",
    "What is two plus one?",
    "The bird is not here.",
    "Say what you like.",
]
# learning rate 0: all steps have the same weights, so the steps of two runs are comparable
SETTINGS = {
    "temperature": 0.6,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "ptx_batch_size": 3,  # two texts in the first micro-batch, one in the second
    "ptx_texts": TEXTS,
    "learning_rate": 0.0,
    "max_grad_norm": 0.0,
}


@pytest.fixture
def drawn(monkeypatch):
    """The token ids of each pretraining text that was used, in order."""
    texts, plain = [], updates.collate

    def collate(starts, rests, *others):
        texts.extend([*start, *rest] for start, rest in zip(starts, rests, strict=True))
        return plain(starts, rests, *others)

    monkeypatch.setattr(updates, "collate", collate)
    return texts


@pytest.fixture
def runs(make_ppo_roles, tokenizer, tmp_path, monkeypatch, drawn):
    """Two runs, without and with texts, of two rollouts × two epochs × two minibatches."""
    return [
        record(
            make_ppo_roles(),
            tokenizer,
            tmp_path / str(gamma),
            monkeypatch,
            ptx_coef=gamma,
            **SETTINGS,
        )
        for gamma in (0.0, GAMMA)
    ]


def nll_and_gradients(roles, texts):
    """Mean loss over the tokens of all texts at temperature 1, and its gradients by parameter name."""
    total = 0.0
    with roles.using(POLICY) as model:
        for ids in texts:
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
            chosen = torch.tensor(ids[1:])
            total = total + torch.nn.functional.cross_entropy(logits, chosen, reduction="sum")
        nll = total / sum(len(ids) - 1 for ids in texts)
        named = [(n, p) for n, p in model.named_parameters() if f".{POLICY}." in n]
        gradients = torch.autograd.grad(nll, [p for _, p in named])
    return nll.item(), dict(zip([n for n, _ in named], gradients, strict=True))


def test_ptx_adds_weighted_pretraining_gradient(runs, drawn, tokenizer):
    plain, mixed = runs
    assert len(plain.steps) == len(mixed.steps) == 8
    steps = [str(drawn[at : at + 3]) for at in range(0, len(drawn), 3)]
    assert len(steps) == len(set(steps)) == 8  # each step draws other texts
    known = [tokenizer(text)["input_ids"] for text in TEXTS]
    for number, (without, step) in enumerate(zip(plain.steps, mixed.steps, strict=True)):
        texts = drawn[3 * number : 3 * number + 3]
        assert all(ids in known for ids in texts)
        nll, expected = nll_and_gradients(mixed.roles, texts)
        assert nll > 1
        assert set(step.gradients) == set(without.gradients) > set(expected)
        for name, gradient in step.gradients.items():
            if name in expected:
                added = gradient - without.gradients[name]
                torch.testing.assert_close(added, GAMMA * expected[name], atol=2e-6, rtol=1e-4)
            else:  # the value
                assert torch.equal(gradient, without.gradients[name]), name
        assert step.logs["loss/ptx_avg"] == pytest.approx(nll, rel=1e-5)
        assert "loss/ptx_avg" not in without.logs
        added = step.logs["loss"] - without.logs["loss"]
        assert added == pytest.approx(GAMMA * nll, rel=1e-4)
