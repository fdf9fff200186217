"""The reward model's adapter, head and bias, from TRL's trainer to the role that scores."""

import random
from dataclasses import replace

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from datasets import Dataset
from trl import RewardConfig

from tests.conftest import fresh_roles
from toolkit.errors import ConfigError
from toolkit.evaluation.judge import score_rows
from toolkit.models.adapters import read_adapter
from toolkit.models.base import fingerprint, load_base, save_fingerprint
from toolkit.models.passes import scores
from toolkit.models.roles import REWARD, Roles
from toolkit.options.arguments import RewardArguments
from toolkit.reward import adapter as reward
from toolkit.reward import training as reward_training
from toolkit.reward.adapter import export, scalar_adapter, score_texts, tokenize_pairs
from toolkit.reward.ranking import RankingCollator, RankingTrainer, last_scores, score_layer
from toolkit.reward.training import Comparisons, RewardModelTrainer
from toolkit.sampling.generation import encode_completion, encode_prompt

ROWS = [
    ([{"role": "user", "content": q}], [{"role": "assistant", "content": a}])
    for q, a in (("Hello.", "Hello to you too."), ("What is 1 plus 2?", "It is 3."), ("Hi.", "No."))
]


PRECISIONS: dict[str, dict] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "8bit": {"dtype": "bfloat16", "load_in_8bit": True},
    "4bit": {"dtype": "bfloat16", "load_in_4bit": True},
}


def more_rows(count=32):
    """Rows of random words, so that a mean over them is steady."""
    rng, words = random.Random(0), "Hello to you and one two three plus is the what no yes".split()

    def said(role, most):
        return [{"role": role, "content": " ".join(rng.choices(words, k=rng.randint(1, most)))}]

    return [(said("user", 9), said("assistant", 12)) for _ in range(count)]


@pytest.mark.parametrize(
    ("precision", "bf16"), [*((name, False) for name in PRECISIONS), ("bfloat16", True)]
)
def test_exported_scores_are_those_of_training_and_average_zero(
    precision, bf16, model_config, sft_run, tmp_path, tokenizer
):
    """In every precision of the base: the head is float32 in training, export and role."""
    config = replace(model_config, **PRECISIONS[precision])
    base, _ = load_base(config, scalar=True)
    found = fingerprint(config, tokenizer)
    save_fingerprint(sft_run, found)  # a parent of the same precision
    rows = Dataset.from_list(
        [{"prompt": p, "chosen": c, "rejected": ROWS[0][1]} for p, c in ROWS[1:]]
    )
    data = Comparisons.prepare(
        {"train": rows}, tokenizer, ROWS, max_length=None, shuffle_pairs=False
    )
    training = RewardConfig(
        output_dir=str(tmp_path / "out"),
        use_cpu=True,
        bf16=bf16,
        learning_rate=1e-3,
        max_steps=2,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    member = RewardModelTrainer(base, tokenizer, found, config, most_tokens=0)
    member.train(data, training, RewardArguments(parent=str(sft_run)), resume=None)
    pairs = [(encode_prompt(tokenizer, p), encode_completion(tokenizer, p, c)) for p, c in ROWS]
    here = torch.tensor(member.score(pairs))
    roles = fresh_roles(config)
    roles.attach(REWARD, tmp_path / "out", head=True)
    there = torch.tensor(score_rows(roles, tokenizer, ROWS))
    # rounded to bfloat16, scores of this size would be 1e-3 off
    assert torch.allclose(there, here, atol=1e-5, rtol=0)
    assert there.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert score_layer(member.adapted).weight.dtype == torch.float32
    if precision == "8bit":  # its layers take outliers out per batch, so another batch is another
        return
    with torch.no_grad():  # the pass that is trained, a row at a time
        ids = [torch.tensor([prompt + said]) for prompt, said in pairs]
        trained = [last_scores(member.adapted, row, torch.ones_like(row)).item() for row in ids]
    alone = [member.score([pair])[0] for pair in pairs]
    assert [x + member.bias for x in trained] == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("four_bit", [False, True], ids=["bfloat16", "4bit"])
def test_the_score_layer_is_trained_in_float32(
    four_bit, model_config, sft_run, tmp_path, tokenizer
):
    """PEFT copies it in the base's precision, and on a 4-bit base TRL casts it to bfloat16."""
    config = replace(model_config, dtype="bfloat16", load_in_4bit=four_bit)
    base, _ = load_base(config, scalar=True)
    found = fingerprint(config, tokenizer)
    save_fingerprint(sft_run, found)
    adapted = scalar_adapter(base, found, parent=str(sft_run), model=config)
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
    loss, told = trainer.compute_loss(adapted, batch, return_outputs=True)
    loss.backward()
    assert told["scores"].dtype == torch.float32
    assert not torch.equal(told["scores"], told["scores"].bfloat16().float())
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
def test_scores_on_the_same_base_in_another_precision(
    precision, like, most, model_config, reward_run, tokenizer
):
    """Against a float32 base, with weights rounded alike where those alone move this base's scores.

    A random base has nothing to spare: 4-bit weights move its scores by 0.61 of their standard
    deviation (RMS), and the float32 base with the same weights shows that nothing else does. What
    is bound is about twice what was measured: 0.020 in bfloat16, 0.068 in 8 bit, 0.027 in 4 bit.
    """
    config = replace(model_config, **PRECISIONS[precision])
    plain, _ = load_base(model_config)
    if like is not None:
        copy_rounded(load_base(config)[0], plain)
    found = []
    for on, base in ((model_config, plain), (config, load_base(config)[0])):
        roles = Roles(base, fingerprint(on, tokenizer))
        roles.attach(REWARD, reward_run, head=True, any_precision=True)
        found.append(torch.tensor(score_rows(roles, tokenizer, more_rows())))
    moved = (found[1] - found[0]).pow(2).mean().sqrt().item() / found[0].std().item()
    assert moved <= most
    assert moved > 0 or precision == "float32"


def copy_rounded(low, plain):
    """Give a float32 base the weights that one of lower precision computes with."""
    layers = dict(low.named_modules())
    with torch.no_grad():
        for name, module in plain.named_modules():
            if isinstance(weight := getattr(module, "weight", None), torch.Tensor):
                rounded = layers[name].weight
                if hasattr(rounded, "quant_state"):
                    rounded = dequantize_4bit(rounded.data, rounded.quant_state)
                weight.copy_(rounded)


def test_it_starts_from_the_sft_adapter(model_config, sft_run, tokenizer, tmp_path):
    base, _ = load_base(model_config, scalar=True)
    found = fingerprint(model_config, tokenizer)
    export(
        scalar_adapter(base, found, parent=str(sft_run), model=model_config),
        tmp_path / "out",
        found,
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


@pytest.mark.parametrize("name", [7, "a document"])
def test_a_group_of_several_prompts_is_a_ranking_of_each(name, tokenizer, capsys):
    def row(asked, better, worse, group):
        return {"prompt": asked, "chosen": better, "rejected": worse, "group_id": group}

    rows = [
        row("What is 1?", "one", "two", name),
        row("Hello.", "Hello.", "no", name),
        row("What is 1?", "one", "three", name),
        row("What is 1?", "one", "no", None),
    ]
    data = Comparisons.prepare(
        {"train": Dataset.from_list(rows)}, tokenizer, [], max_length=None, shuffle_pairs=False
    )
    assert [len(group["ids"]) for group in data.train] == [3, 2, 2]
    said = "train: 1 values of `group_id` stand at 2 prompts: each prompt is a ranking of its own"
    assert said in capsys.readouterr().out


def preferences(lengths):
    """Rows whose rejected answers have about so many tokens."""
    return Dataset.from_list(
        [
            {"prompt": p, "chosen": c, "rejected": [{"role": "assistant", "content": "x " * n}]}
            for (p, c), n in zip(ROWS, lengths, strict=False)
        ]
    )


def test_what_is_longer_than_max_length_is_not_scored_either(tokenizer, capsys):
    splits = {"train": preferences((1, 2)), "test": preferences((400, 3, 2))}
    long = (ROWS[0][0], [{"role": "assistant", "content": "x " * 400}])
    asked = {"max_length": 64, "shuffle_pairs": False}
    data = Comparisons.prepare(splits, tokenizer, [ROWS[0], long, ROWS[1]], **asked)
    assert data.test_rows == [dict(splits["test"][i]) for i in (1, 2)]
    assert data.demonstrations == [ROWS[0], ROWS[1]]
    told = capsys.readouterr().out
    assert "test: 1 of 3 pairs are longer than 64 tokens" in told
    assert "demonstrations: 1 of 3 rows are longer than 64 tokens" in told
    with pytest.raises(ConfigError, match=r"demonstrations: no row .* raise `max_length`"):
        Comparisons.prepare(splits, tokenizer, [long], **asked)


def test_a_training_batch_has_so_many_tokens_on_average():
    rows = [{"ids": [[1] * 3, [1] * 5]}, {"ids": [[1] * 4, [1] * 6, [1] * 10]}]
    data = Comparisons(Dataset.from_list(rows), None, [], [])
    assert data.step_tokens(4) == 4 * (8 + 20) // 2


@pytest.mark.parametrize("most", [1, 60, 100_000])
def test_scoring_keeps_to_its_tokens_and_gives_the_same_scores(
    most, model_config, sft_run, tokenizer, monkeypatch
):
    base, _ = load_base(model_config, scalar=True)
    found = fingerprint(model_config, tokenizer)
    adapted = scalar_adapter(base, found, parent=str(sft_run), model=model_config)
    whole = score_texts(adapted, tokenizer, more_rows(), most_tokens=100_000)
    seen = []

    def watched(model, head, batch):
        seen.append(batch.attention.sum(1).tolist())
        return scores(model, head, batch)

    monkeypatch.setattr(reward, "scores", watched)
    again = score_texts(adapted, tokenizer, more_rows(), most_tokens=most)
    assert torch.allclose(again, whole, atol=1e-5, rtol=0)
    assert sum(map(len, seen)) == len(more_rows())
    assert all(len(rows) == 1 or len(rows) * max(rows) <= most for rows in seen)
    assert len(seen) == {1: 32, 100_000: 1}.get(most, len(seen))


def test_the_adapter_is_written_before_anything_is_scored(
    model_config, sft_run, tokenizer, tmp_path, monkeypatch
):
    def fails(*_, **__):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(reward_training, "score_texts", fails)
    base, _ = load_base(model_config, scalar=True)
    found = fingerprint(model_config, tokenizer)
    data = Comparisons.prepare(
        {"train": preferences((1, 2))}, tokenizer, ROWS, max_length=None, shuffle_pairs=False
    )
    training = RewardConfig(
        output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, max_steps=1, report_to=[]
    )
    member = RewardModelTrainer(base, tokenizer, found, model_config, most_tokens=0)
    with pytest.raises(torch.OutOfMemoryError):
        member.train(data, training, RewardArguments(parent=str(sft_run)), resume=None)
    fresh_roles(model_config).attach(REWARD, tmp_path / "out", head=True)


def test_without_parent_and_peft_it_says_what_to_set(model_config, tokenizer):
    base, _ = load_base(model_config, scalar=True)
    with pytest.raises(ConfigError, match="use_peft"):
        scalar_adapter(base, fingerprint(model_config, tokenizer), parent=None, model=model_config)
