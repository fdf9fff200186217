"""The reward model's adapter, head and bias, from TRL's trainer to the role that scores."""

from dataclasses import replace

import pytest
import torch
from datasets import Dataset

from tests.conftest import fresh_roles
from toolkit.errors import ConfigError
from toolkit.evaluation.judge import score_rows
from toolkit.models.adapters import read_adapter
from toolkit.models.base import fingerprint, load_base
from toolkit.models.generation import encode_completion, encode_prompt
from toolkit.models.passes import collate, scores
from toolkit.models.roles import REWARD, Roles
from toolkit.trainers.reward import export, scalar_adapter, score_texts, tokenize_pairs

ROWS = [
    ([{"role": "user", "content": q}], [{"role": "assistant", "content": a}])
    for q, a in (("Hello.", "Hello to you too."), ("What is 1 plus 2?", "It is 3."), ("Hi.", "No."))
]


def test_exported_scores_are_those_of_training_and_average_zero(
    model_config, sft_run, tmp_path, tokenizer
):
    base, _ = load_base(model_config, scalar=True)
    found = fingerprint(model_config, tokenizer)
    adapted = scalar_adapter(base, found, parent=str(sft_run), model=model_config)
    raw = score_texts(adapted, tokenizer, ROWS)
    export(adapted, tmp_path / "out", found, bias=-raw.mean().item())
    roles = fresh_roles(model_config)
    roles.attach(REWARD, tmp_path / "out", head=True)
    prompts = [encode_prompt(tokenizer, p) for p, _ in ROWS]
    completions = [encode_completion(tokenizer, p, c) for p, c in ROWS]
    with roles.using(REWARD) as model, torch.no_grad():
        got = scores(
            model, roles.heads[REWARD], collate(prompts, completions, tokenizer.pad_token_id)
        )
    assert torch.allclose(got, raw - raw.mean(), atol=1e-5)
    assert got.mean().item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("there", "most"),
    [
        ({"dtype": "float32"}, 1e-6),
        ({"dtype": "bfloat16"}, 0.15),
        ({"dtype": "bfloat16", "load_in_4bit": True}, 1.0),
    ],
)
def test_scores_on_the_same_base_in_another_precision(
    there, most, model_config, reward_run, tokenizer
):
    """The same precision gives the same scores; a coarser one moves them, and by how much is bound."""
    found = []
    for precision in ({"dtype": "float32"}, there):
        config = replace(model_config, **precision)
        base, _ = load_base(config)
        roles = Roles(base, fingerprint(config, tokenizer))
        roles.attach(REWARD, reward_run, head=True, any_precision=True)
        found.append(torch.tensor(score_rows(roles, tokenizer, ROWS)))
    moved = (found[0] - found[1]).abs().max().item()
    assert moved <= most * found[0].std().item()
    assert moved > 0 or there == {"dtype": "float32"}


def test_it_starts_from_the_sft_adapter(model_config, sft_run, tokenizer, tmp_path):
    base, _ = load_base(model_config, scalar=True)
    found = fingerprint(model_config, tokenizer)
    export(
        scalar_adapter(base, found, parent=str(sft_run), model=model_config),
        tmp_path / "out",
        found,
        bias=0.0,
    )
    theirs, ours = read_adapter(sft_run)[1], read_adapter(tmp_path / "out")[1]
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[k], ours[k]) for k in theirs)


def test_pairs_end_at_eos_and_long_ones_are_counted(tokenizer, capsys):
    rows = Dataset.from_list(
        [
            {"prompt": p, "chosen": c, "rejected": [{"role": "assistant", "content": "x " * n}]}
            for (p, c), n in zip(ROWS, (1, 2, 400), strict=True)
        ]
    )
    found = tokenize_pairs(rows, tokenizer, max_length=64, place="train")
    assert len(found) == 2
    assert "1 of 3 pairs are longer than 64 tokens" in capsys.readouterr().out
    for row, (prompt, _) in zip(found, ROWS, strict=False):
        assert row["chosen_ids"][-1] == row["rejected_ids"][-1] == tokenizer.eos_token_id
        start = encode_prompt(tokenizer, prompt)
        assert row["chosen_ids"][: len(start)] == start
    with pytest.raises(ConfigError, match="raise `max_length`"):
        tokenize_pairs(rows, tokenizer, max_length=2, place="train")


def test_without_parent_and_peft_it_says_what_to_set(model_config, tokenizer):
    base, _ = load_base(model_config, scalar=True)
    with pytest.raises(ConfigError, match="use_peft"):
        scalar_adapter(base, fingerprint(model_config, tokenizer), parent=None, model=model_config)
