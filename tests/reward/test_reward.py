"""The reward model's adapter, head and calibration, from TRL's trainer to the role that scores."""

import random
from dataclasses import replace

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from datasets import Dataset
from trl import RewardConfig

from tests.conftest import fresh_roles
from tests.scores import score_rows
from toolkit.data.encoding import encode_prompt
from toolkit.errors import ConfigError
from toolkit.models.adapters import read_adapter
from toolkit.models.base import fingerprint, load_base, save_fingerprint
from toolkit.models.heads import ScalarHead
from toolkit.models.passes import scores
from toolkit.models.roles import REWARD, Roles
from toolkit.options.arguments import RewardArguments
from toolkit.reward import adapter as reward
from toolkit.reward import training as reward_training
from toolkit.reward.adapter import (
    encode_pairs,
    export,
    scalar_adapter,
    score_pairs,
    tokenize_pairs,
)
from toolkit.reward.ranking import RankingCollator, RankingTrainer, last_scores, score_layer
from toolkit.reward.training import Comparisons, RewardModelTrainer


def answer(text):
    return [{"role": "assistant", "content": text}]


ROWS = [
    ([{"role": "user", "content": question}], answer(text))
    for question, text in (
        ("Hello.", "Hello to you too."),
        ("What is 1 plus 2?", "It is 3."),
        ("Hi.", "No."),
    )
]
PRECISIONS: dict[str, dict] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "8bit": {"dtype": "bfloat16", "load_in_8bit": True},
    "4bit": {"dtype": "bfloat16", "load_in_4bit": True},
}


def more_rows(count=32):
    """Rows of random words, enough for a steady mean."""
    rng, words = random.Random(0), "Hello to you and one two three plus is the what no yes".split()

    def turn(role, most):
        return [{"role": role, "content": " ".join(rng.choices(words, k=rng.randint(1, most)))}]

    return [(turn("user", 9), turn("assistant", 12)) for _ in range(count)]


def preferences(lengths):
    """Rows whose rejected answers have about so many tokens."""
    return Dataset.from_list(
        [
            {"prompt": p, "chosen": c, "rejected": answer("x " * n)}
            for (p, c), n in zip(ROWS, lengths, strict=False)
        ]
    )


def prepare(splits, tokenizer, demonstrations, max_length=None):
    return Comparisons.prepare(
        splits, tokenizer, demonstrations, max_length=max_length, shuffle_pairs=False
    )


@pytest.fixture
def train(model_config, sft_run, tokenizer, tmp_path):
    """Train a reward model for two steps; returns the trainer and its results."""

    def train(demonstrations, config=model_config, folder="reward", bf16=False, **options):
        base, _ = load_base(config, scalar=True)
        base_fingerprint = fingerprint(config, tokenizer)
        save_fingerprint(sft_run, base_fingerprint)  # a parent of the same precision
        rows = [{"prompt": p, "chosen": c, "rejected": ROWS[0][1]} for p, c in ROWS[1:]]
        data = prepare({"train": Dataset.from_list(rows)}, tokenizer, demonstrations)
        training = RewardConfig(
            output_dir=str(tmp_path / folder),
            use_cpu=True,
            bf16=bf16,
            learning_rate=1e-3,
            max_steps=2,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        torch.manual_seed(0)
        trainer = RewardModelTrainer(base, tokenizer, base_fingerprint, config, most_tokens=0)
        start = RewardArguments(parent=str(sft_run), demonstrations="rows", **options)
        return trainer, trainer.train(data, training, start, resume=None)

    return train


def scores_from_disk(folder, config, tokenizer, rows):
    """Scores of the saved reward model in its role."""
    roles = fresh_roles(config)
    roles.attach(REWARD, folder, head=True)
    return torch.tensor(score_rows(roles, tokenizer, rows))


@pytest.mark.parametrize(
    ("precision", "bf16"), [*((name, False) for name in PRECISIONS), ("bfloat16", True)]
)
def test_exported_scores_equal_training_and_average_zero(
    precision, bf16, train, model_config, tmp_path, tokenizer
):
    """In every precision of the base: the head is float32 in training, export and role."""
    config = replace(model_config, **PRECISIONS[precision])
    trainer, _ = train(ROWS, config, bf16=bf16)
    pairs = encode_pairs(tokenizer, ROWS)
    in_trainer = torch.tensor(trainer.score(pairs))
    in_role = scores_from_disk(tmp_path / "reward", config, tokenizer, ROWS)
    # rounded to bfloat16, scores of this size would be 1e-3 off
    assert torch.allclose(in_role, in_trainer, atol=1e-5, rtol=0)
    assert in_role.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert score_layer(trainer.adapted).weight.dtype == torch.float32
    if precision == "8bit":  # outliers are separated per batch, so scores depend on the batch
        return
    with torch.no_grad():  # the training pass, a row at a time
        ids = [torch.tensor([prompt + completion]) for prompt, completion in pairs]
        trained = [last_scores(trainer.adapted, row, torch.ones_like(row)).item() for row in ids]
    alone = [trainer.score([pair])[0] for pair in pairs]
    bias = trainer.head.bias.item()
    assert [x + bias for x in trained] == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("four_bit", [False, True], ids=["bfloat16", "4bit"])
def test_score_layer_trains_in_float32(four_bit, model_config, sft_run, tmp_path, tokenizer):
    """PEFT copies it in the base's precision, and on a 4-bit base TRL casts it to bfloat16."""
    config = replace(model_config, dtype="bfloat16", load_in_4bit=four_bit)
    base, _ = load_base(config, scalar=True)
    base_fingerprint = fingerprint(config, tokenizer)
    save_fingerprint(sft_run, base_fingerprint)
    adapted = scalar_adapter(base, base_fingerprint, parent=str(sft_run), model=config)
    trainer = RankingTrainer(
        adapted,
        RewardConfig(output_dir=str(tmp_path), use_cpu=True, bf16=True, report_to=[]),
        data_collator=RankingCollator(tokenizer.pad_token_id),
        train_dataset=Dataset.from_list(
            [{"ids": [[1, 20, 2], [1, 30, 2]], "better": [0], "worse": [1], "margins": [0.0]}]
        ),
        processing_class=tokenizer,
    )
    trained = {p.dtype for n, p in adapted.named_parameters() if "lora_" in n and p.requires_grad}
    assert trained == {torch.bfloat16 if four_bit else torch.float32}
    batch = trainer.data_collator(list(trainer.train_dataset))
    loss, outputs = trainer.compute_loss(adapted, batch, return_outputs=True)
    loss.backward()
    assert outputs["scores"].dtype == torch.float32
    assert not torch.equal(outputs["scores"], outputs["scores"].bfloat16().float())
    weight = score_layer(adapted).weight
    assert weight.dtype == weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("precision", "like", "most"),
    [
        ("float32", None, 1e-6),
        ("bfloat16", "bfloat16", 0.04),
        ("8bit", None, 0.13),
        ("4bit", "4bit", 0.05),
    ],
)
def test_scores_in_another_precision_move_by_rounding_only(
    precision, like, most, model_config, reward_run, tokenizer
):
    """Against a float32 base, with equally rounded weights where rounding alone moves the scores.

    A random base has nothing to spare: 4-bit weights move its scores by 0.61 of their standard
    deviation (RMS), and the float32 base with the same weights shows that nothing else does. The
    bounds are about twice the measured values: 0.020 in bfloat16, 0.068 in 8 bit, 0.027 in 4 bit.
    """
    config = replace(model_config, **PRECISIONS[precision])
    plain, _ = load_base(model_config)
    if like is not None:
        copy_rounded(load_base(config)[0], plain)
    results = []
    for base_config, base in ((model_config, plain), (config, load_base(config)[0])):
        roles = Roles(base, fingerprint(base_config, tokenizer))
        roles.attach(REWARD, reward_run, head=True, any_precision=True)
        results.append(torch.tensor(score_rows(roles, tokenizer, more_rows())))
    moved = (results[1] - results[0]).pow(2).mean().sqrt().item() / results[0].std().item()
    assert moved <= most
    assert moved > 0 or precision == "float32"


def copy_rounded(low, plain):
    """Give a float32 base the weights with which a base of lower precision computes."""
    layers = dict(low.named_modules())
    with torch.no_grad():
        for name, module in plain.named_modules():
            if isinstance(weight := getattr(module, "weight", None), torch.Tensor):
                rounded = layers[name].weight
                if hasattr(rounded, "quant_state"):
                    rounded = dequantize_4bit(rounded.data, rounded.quant_state)
                weight.copy_(rounded)


def test_reward_model_starts_from_sft_adapter(model_config, sft_run, tokenizer, tmp_path):
    base, _ = load_base(model_config, scalar=True)
    base_fingerprint = fingerprint(model_config, tokenizer)
    adapted = scalar_adapter(base, base_fingerprint, parent=str(sft_run), model=model_config)
    export(adapted, tmp_path / "out", base_fingerprint)
    parent, start = read_adapter(sft_run)[1], read_adapter(tmp_path / "out")[1]
    assert parent.keys() == start.keys()
    assert all(torch.equal(parent[k], start[k]) for k in parent)


def test_new_adapter_without_use_peft_is_rejected(model_config, tokenizer):
    base, _ = load_base(model_config, scalar=True)
    with pytest.raises(ConfigError, match="use_peft"):
        scalar_adapter(base, fingerprint(model_config, tokenizer), parent=None, model=model_config)


def test_pairs_end_at_eos_and_long_pairs_are_counted(tokenizer, capsys):
    rows = preferences((1, 2, 400))
    pairs = tokenize_pairs(rows, tokenizer, max_length=64, place="train")
    assert len(pairs) == 2
    assert "1 of 3 pairs are longer than 64 tokens" in capsys.readouterr().out
    for row, (prompt, _) in zip(pairs, ROWS, strict=False):
        assert row["chosen_ids"][-1] == row["rejected_ids"][-1] == tokenizer.eos_token_id
        start = encode_prompt(tokenizer, prompt)
        assert row["chosen_ids"][: len(start)] == start
    with pytest.raises(ConfigError, match="raise `max_length`"):
        tokenize_pairs(rows, tokenizer, max_length=2, place="train")


@pytest.mark.parametrize("group", [7, "a document"])
def test_group_of_several_prompts_becomes_a_ranking_each(group, tokenizer, capsys):
    rows = [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected, "group_id": group_id}
        for prompt, chosen, rejected, group_id in (
            ("What is 1?", "one", "two", group),
            ("Hello.", "Hello.", "no", group),
            ("What is 1?", "one", "three", group),
            ("What is 1?", "one", "no", None),
        )
    ]
    data = prepare({"train": Dataset.from_list(rows)}, tokenizer, [])
    assert [len(row["ids"]) for row in data.train] == [3, 2, 2]
    assert (
        "train: some of the 1 values of `group_id` have several prompts" in capsys.readouterr().out
    )


def test_rows_beyond_max_length_are_not_scored(tokenizer, capsys):
    splits = {"train": preferences((1, 2)), "test": preferences((400, 3, 2))}
    long = (ROWS[0][0], answer("x " * 400))
    data = prepare(splits, tokenizer, [ROWS[0], long, ROWS[1]], max_length=64)
    assert data.test_rows == [dict(splits["test"][i]) for i in (1, 2)]
    assert data.demonstrations == [ROWS[0], ROWS[1]]
    output = capsys.readouterr().out
    assert "test: 1 of 3 pairs are longer than 64 tokens" in output
    assert "demonstrations: 1 of 3 rows are longer than 64 tokens" in output
    with pytest.raises(ConfigError, match=r"demonstrations: no row .* raise `max_length`"):
        prepare(splits, tokenizer, [long], max_length=64)


def test_step_tokens_is_the_average_batch():
    rows = [{"ids": [[1] * 3, [1] * 5]}, {"ids": [[1] * 4, [1] * 6, [1] * 10]}]
    data = Comparisons(Dataset.from_list(rows), None, [], [])
    assert data.step_tokens(4) == 4 * (8 + 20) // 2


@pytest.mark.parametrize("most", [1, 60, 100_000])
def test_scores_do_not_depend_on_most_tokens(most, model_config, sft_run, tokenizer, monkeypatch):
    base, _ = load_base(model_config, scalar=True)
    base_fingerprint = fingerprint(model_config, tokenizer)
    adapted = scalar_adapter(base, base_fingerprint, parent=str(sft_run), model=model_config)
    head, pairs = ScalarHead(64), encode_pairs(tokenizer, more_rows())
    pad_id = tokenizer.pad_token_id
    whole = score_pairs(adapted, head, pairs, pad_id=pad_id, most_tokens=100_000)
    batches = []

    def recorded(model, head, batch):
        batches.append(batch.attention.sum(1).tolist())
        return scores(model, head, batch)

    monkeypatch.setattr(reward, "scores", recorded)
    again = score_pairs(adapted, head, pairs, pad_id=pad_id, most_tokens=most)
    assert torch.allclose(again, whole, atol=1e-5, rtol=0)
    assert sum(map(len, batches)) == len(pairs)
    assert all(len(rows) == 1 or len(rows) * max(rows) <= most for rows in batches)
    assert len(batches) == {1: 32, 100_000: 1}.get(most, len(batches))


def test_adapter_is_saved_before_scoring(train, model_config, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(reward_training, "score_pairs", fail)
    with pytest.raises(torch.OutOfMemoryError):
        train(ROWS)
    fresh_roles(model_config).attach(REWARD, tmp_path / "reward", head=True)


@pytest.mark.slow
def test_unit_variance_scales_scores_without_reordering(train, model_config, tokenizer, tmp_path):
    rows = more_rows()
    _, plain_results = train(rows, folder="plain")
    trainer, results = train(rows, folder="scaled", unit_variance=True)
    plain, scaled = (
        lambda rows, name=name: scores_from_disk(tmp_path / name, model_config, tokenizer, rows)
        for name in ("plain", "scaled")
    )
    before, after = plain(rows), scaled(rows)
    assert after.mean().item() == pytest.approx(0, abs=1e-4)
    assert after.std().item() == pytest.approx(1, abs=1e-4)
    assert before.std().item() == pytest.approx(plain_results["score_std"], abs=1e-4)
    assert abs(before.std().item() - 1) > 0.1  # otherwise nothing would be scaled
    assert results == plain_results | {"score_std": 1.0, "bias": results["bias"]}
    # other rows: the same scores times one factor, in the trainer as on disk
    others = more_rows(40)[32:]
    assert torch.allclose(scaled(others), plain(others) / before.std(), atol=1e-3)
    in_trainer = torch.tensor(trainer.score(encode_pairs(tokenizer, others)))
    assert torch.allclose(in_trainer, scaled(others), atol=1e-4)


@pytest.mark.parametrize("rows", [more_rows(1), more_rows(1) * 3], ids=["one", "equal"])
def test_equal_scores_are_not_scaled(rows, train, model_config, tokenizer, tmp_path, capsys):
    _, results = train(rows, unit_variance=True)
    assert "have the same score, so scores are not scaled" in capsys.readouterr().out
    assert results["score_std"] == 0.0
    scores = scores_from_disk(tmp_path / "reward", model_config, tokenizer, rows)
    assert scores.tolist() == pytest.approx([0.0] * len(rows), abs=1e-4)


def test_rounding_differences_are_not_scaled(train, monkeypatch):
    equal = torch.full((8,), 0.7) + 1e-7 * torch.arange(8)
    monkeypatch.setattr(reward_training, "score_pairs", lambda *_, **__: equal)
    trainer, results = train(more_rows(8), unit_variance=True)
    assert torch.equal(trainer.head.weight, score_layer(trainer.adapted).weight)
    assert results["score_std"] == 0.0
    assert results["bias"] == pytest.approx(-0.7, abs=1e-4)


def test_unit_variance_needs_demonstrations():
    with pytest.raises(ValueError, match="`unit_variance` needs `demonstrations`"):
        RewardArguments(unit_variance=True)
