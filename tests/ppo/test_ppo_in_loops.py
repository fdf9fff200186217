"""PPOTrainer's rollouts and minibatches against plain loops over one unpadded row at a time."""

import pytest
import torch

from tests.conftest import fresh_roles
from tests.ppo import slow_ppo
from tests.ppo.record import record
from toolkit.models.roles import POLICY, REFERENCE, REWARD, VALUE
from toolkit.ppo.roles import attach_ppo_roles

pytestmark = pytest.mark.slow

CLOSE = {"rel": 1e-5, "abs": 1e-5}
SETTINGS = {
    "seed": 4,  # with this seed some ratios are clipped, and lengths differ
    "temperature": 0.7,
    "kl_coef": 0.3,
    "gamma": 0.97,
    "lam": 0.9,
    "cliprange": 0.1,
    "cliprange_value": 0.1,
    "vf_coef": 0.3,
    "ent_coef": 0.02,
    "missing_eos_penalty": 0.5,
    # eight episodes: four minibatches of 2 × 2, scored three at a time
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "local_rollout_forward_batch_size": 3,
}


@pytest.fixture(params=["adapter", "head"])
def recording(request, model_config, sft_run, reward_run, tokenizer, tmp_path, monkeypatch):
    roles = fresh_roles(model_config)
    attach_ppo_roles(
        roles,
        policy=str(sft_run),
        rewards=[str(reward_run)],
        model=model_config,
        value=request.param,
    )
    whitened = request.param == "head"
    changes = SETTINGS | {"whiten_rewards": whitened, "kl_estimator": "k3" if whitened else "k1"}
    return record(roles, tokenizer, tmp_path / "run", monkeypatch, **changes)


def forward(roles, role, ids):
    """Logits and hidden states of one unpadded row, from the library's own forward."""
    with torch.no_grad(), roles.using(role) as model:
        out = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    return out.logits[0].tolist(), out.hidden_states[-1][0].tolist()


def head_of(roles, name, hidden):
    head = roles.heads[name]
    weight = head.weight[0].tolist()
    return sum(w * x for w, x in zip(weight, hidden, strict=True)) + head.bias.item()


def numbers_of(roles, prompt, completion):
    """Every role's numbers of a completion: logprobs, entropies, reference, values, score."""
    start, ids = len(prompt) - 1, prompt + completion
    logits, trunk = forward(roles, POLICY, ids)
    ref_logits, _ = forward(roles, REFERENCE, ids)
    _, value_trunk = forward(roles, VALUE, ids) if VALUE in roles.model.peft_config else (0, trunk)
    _, reward_trunk = forward(roles, REWARD, ids)
    positions = range(start, start + len(completion))  # a token is predicted one position earlier
    temperature = SETTINGS["temperature"]

    def logprobs_of(rows):
        tokens = zip(positions, completion, strict=True)
        return [slow_ppo.log_softmax(rows[at], temperature)[token] for at, token in tokens]

    return {
        "logprobs": logprobs_of(logits),
        "entropy": [slow_ppo.entropy(logits[at], temperature) for at in positions],
        "ref_logprobs": logprobs_of(ref_logits),
        "values": [head_of(roles, VALUE, value_trunk[at]) for at in positions],
        "score": head_of(roles, REWARD, reward_trunk[-1]),
    }


def test_rollout_and_minibatches_equal_plain_loops(recording):
    trainer, steps, roles = recording.trainer, recording.steps, recording.roles
    assert len(steps) == 8
    assert steps[3].experience is steps[0].experience is not steps[4].experience
    for first in (steps[0], steps[4]):
        recording.rewind(first)
        lengths = set(map(len, first.experience.completions))
        assert (
            len(lengths) > 2 and max(lengths) == 8
        )  # different lengths, and one completion without an end
        check_rollout(roles, first, trainer.args, trainer.rollouts.stop)
    # the first step, the last of the second epoch, and one of the second rollout
    checked = [(steps[at], check_minibatch(recording, steps[at])) for at in (0, 3, 5)]
    clipped = [(m.clip_fraction, m.value_clip_fraction) for _, m in checked]
    assert clipped[0] == (0, 0)
    assert all(0 < x < 1 for x in clipped[1])
    assert (
        sorted(steps[0].rows + steps[1].rows)
        == list(range(8))
        == sorted(steps[2].rows + steps[3].rows)
    )


def check_rollout(roles, step, args, stop):
    """Check every tensor of the experience, and its metrics in the log."""
    experience = step.experience
    expected_rows = [
        numbers_of(roles, p, c)
        for p, c in zip(experience.prompts, experience.completions, strict=True)
    ]
    ended = [c[-1] in stop for c in experience.completions]
    scores = [s["score"] - 0.5 * (not e) for s, e in zip(expected_rows, ended, strict=True)]
    advantages, returns = slow_ppo.advantages_and_returns(
        scores,
        [s["logprobs"] for s in expected_rows],
        [s["ref_logprobs"] for s in expected_rows],
        [s["values"] for s in expected_rows],
        beta=SETTINGS["kl_coef"],
        estimator=args.kl_estimator,
        gamma=SETTINGS["gamma"],
        lam=SETTINGS["lam"],
        whiten_rewards=args.whiten_rewards,
    )
    for row, completion in enumerate(experience.completions):
        n = len(completion)
        expected = expected_rows[row] | {"advantages": advantages[row], "returns": returns[row]}
        for name in ("logprobs", "ref_logprobs", "values", "advantages", "returns"):
            tensor = getattr(experience, name)[row]
            assert tensor[:n].tolist() == pytest.approx(expected[name], **CLOSE), name
            assert not tensor[n:].any(), name
        assert experience.mask[row].tolist() == [t < n for t in range(8)]
    kl = [
        sum(
            slow_ppo.kl(*pq, args.kl_estimator)
            for pq in zip(s["logprobs"], s["ref_logprobs"], strict=True)
        )
        for s in expected_rows
    ]
    assert abs(mean(kl)) > 0.05
    for name, expected in {
        "objective/kl": mean(kl),
        "objective/scores": mean([s["score"] for s in expected_rows]),
        "objective/non_score_reward": -SETTINGS["kl_coef"] * mean(kl),
        "objective/penalised_scores": mean(scores),
        "objective/rlhf_reward": mean(scores) - SETTINGS["kl_coef"] * mean(kl),
        "objective/entropy": mean([-sum(s["logprobs"]) for s in expected_rows]),
        "objective/length": mean(list(map(len, experience.completions))),
        "objective/ended": mean(ended),
    }.items():
        assert step.logs[name] == pytest.approx(expected, **CLOSE), name


def check_minibatch(recording, step):
    """Check the logged losses and statistics of an optimizer step."""
    recording.rewind(step)
    tokens, experience = [], step.experience
    for row in step.rows:
        current = numbers_of(recording.roles, experience.prompts[row], experience.completions[row])
        for t in range(len(experience.completions[row])):
            old = (
                getattr(experience, n)[row, t].item()
                for n in ("logprobs", "advantages", "values", "returns")
            )
            tokens.append(
                slow_ppo.Token(
                    *old, current["logprobs"][t], current["values"][t], current["entropy"][t]
                )
            )
    expected = slow_ppo.minibatch(
        tokens, cliprange=SETTINGS["cliprange"], cliprange_value=SETTINGS["cliprange_value"]
    )
    for name, number in {
        "loss/policy_avg": expected.policy_loss,
        "loss/value_avg": expected.value_loss,
        "policy/entropy_avg": expected.entropy,
        "policy/approxkl_avg": expected.approx_kl,
        "policy/clipfrac_avg": expected.clip_fraction,
        "val/clipfrac_avg": expected.value_clip_fraction,
        "val/ratio": expected.ratio,
        "loss": expected.policy_loss - 0.02 * expected.entropy + 0.3 * expected.value_loss,
    }.items():
        assert step.logs[name] == pytest.approx(number, **CLOSE), name
    return expected


def mean(numbers):
    return sum(numbers) / len(numbers)
