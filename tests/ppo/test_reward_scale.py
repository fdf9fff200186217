"""The reward model's scale: with `unit_variance` the demonstrations' scores have variance 1."""

import copy

import pytest
import torch
from datasets import Dataset
from trl import RewardConfig

from tests.conftest import fresh_roles
from tests.reward.test_reward import ROWS, more_rows
from toolkit.evaluation.judge import score_rows
from toolkit.models.base import fingerprint, load_base
from toolkit.models.roles import REWARD
from toolkit.options.arguments import RewardArguments
from toolkit.reward.training import Comparisons, RewardModelTrainer


@pytest.fixture
def trained(model_config, sft_run, tokenizer, tmp_path):
    """A reward model trained for two steps: its folder, its results, and its trainer."""

    def train(name, demonstrations, *, unit_variance):
        base, _ = load_base(model_config, scalar=True)
        torch.manual_seed(0)
        rows = [{"prompt": p, "chosen": c, "rejected": ROWS[0][1]} for p, c in ROWS[1:]]
        data = Comparisons.prepare(
            {"train": Dataset.from_list(rows)},
            tokenizer,
            copy.deepcopy(demonstrations),
            max_length=None,
            shuffle_pairs=False,
        )
        folder = tmp_path / name
        training = RewardConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            learning_rate=1e-3,
            max_steps=2,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        start = RewardArguments(
            parent=str(sft_run), demonstrations="these", unit_variance=unit_variance
        )
        base_fingerprint = fingerprint(model_config, tokenizer)
        member = RewardModelTrainer(base, tokenizer, base_fingerprint, model_config, most_tokens=0)
        return folder, member.train(data, training, start, resume=None), member

    return train


def scored(folder, model_config, tokenizer, rows):
    """Scores of another model loaded from disk."""
    roles = fresh_roles(model_config)
    roles.attach(REWARD, folder, head=True)
    return torch.tensor(score_rows(roles, tokenizer, rows))


@pytest.mark.slow
def test_unit_variance_scales_scores_and_keeps_their_order(trained, model_config, tokenizer):
    shown = more_rows()
    plain, plain_notes, _ = trained("plain", shown, unit_variance=False)
    scaled, notes, _ = trained("scaled", shown, unit_variance=True)
    before = scored(plain, model_config, tokenizer, shown)
    after = scored(scaled, model_config, tokenizer, shown)
    assert after.mean().item() == pytest.approx(0, abs=1e-4)
    assert after.std().item() == pytest.approx(1, abs=1e-4)
    assert before.std().item() == pytest.approx(plain_notes["score_std"], abs=1e-4)
    assert abs(before.std().item() - 1) > 0.1  # otherwise scaling would do nothing
    assert notes == plain_notes | {"score_std": 1.0, "bias": notes["bias"]}
    # other texts are scaled by the same factor
    others = more_rows(40)[32:]
    factor = 1 / before.std()
    assert torch.allclose(
        scored(scaled, model_config, tokenizer, others),
        factor * scored(plain, model_config, tokenizer, others),
        atol=1e-3,
    )


def test_member_scores_on_its_saved_scale(trained, model_config, tokenizer):
    from toolkit.sampling.generation import encode_completion, encode_prompt

    shown = more_rows()
    folder, _, member = trained("scaled", shown, unit_variance=True)
    ids = [(encode_prompt(tokenizer, p), encode_completion(tokenizer, p, c)) for p, c in ROWS]
    written = scored(folder, model_config, tokenizer, ROWS)
    assert torch.allclose(torch.tensor(member.score(ids)), written, atol=1e-4)


@pytest.mark.parametrize("shown", [more_rows(1), more_rows(1) * 3], ids=["one", "alike"])
def test_equal_scores_are_not_scaled(shown, trained, model_config, tokenizer, capsys):
    folder, notes, _ = trained("alike", shown, unit_variance=True)
    assert "scores do not differ, so they are not scaled" in capsys.readouterr().out
    assert notes["score_std"] == 0.0
    assert scored(folder, model_config, tokenizer, shown).tolist() == pytest.approx(
        [0.0] * len(shown), abs=1e-4
    )


def test_scores_that_differ_by_rounding_are_not_scaled(trained, monkeypatch):
    alike = torch.full((8,), 0.7) + 1e-7 * torch.arange(8)
    monkeypatch.setattr("toolkit.reward.training.score_texts", lambda *_, **__: alike)
    _, notes, member = trained("alike", more_rows(8), unit_variance=True)
    assert (member.scale, notes["score_std"]) == (1.0, 0.0)
    assert notes["bias"] == pytest.approx(-0.7, abs=1e-4)


def test_unit_variance_needs_demonstrations():
    with pytest.raises(ValueError, match="`unit_variance` needs `demonstrations`"):
        RewardArguments(unit_variance=True)
