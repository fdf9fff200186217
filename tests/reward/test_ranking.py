"""The K-wise ranking loss: what a plain loop over the expanded pairs says, at one pass per completion."""

import itertools
import math
import tracemalloc

import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from benchmarks.ranking_loss import measure
from toolkit.errors import ConfigError
from toolkit.models.base import fingerprint, load_base
from toolkit.reward import ranking
from toolkit.reward.adapter import scalar_adapter
from toolkit.reward.ranking import (
    RankingCollator,
    RankingTrainer,
    group_comparisons,
    last_scores,
    ranking_loss,
)

ANSWERS = [[1, 20, 30, 40 + i, 2] if i % 2 else [1, 20, 30, 40 + i, 50 + i, 2] for i in range(9)]


def pairs(k, group=7, **extra):
    """All pairs of K answers, the first the best."""
    return [
        {"chosen_ids": ANSWERS[i], "rejected_ids": ANSWERS[j], "group_id": group, **extra}
        for i, j in itertools.combinations(range(k), 2)
    ]


@pytest.fixture
def adapted(model_config, tokenizer, sft_run):
    torch.manual_seed(0)
    base, _ = load_base(model_config, scalar=True)
    found = fingerprint(model_config, tokenizer)
    return scalar_adapter(base, found, parent=str(sft_run), model=model_config)


def config(folder, **changes):
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "per_device_train_batch_size": 4,
        "max_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    return RewardConfig(**(settings | changes))


def trainer_of(adapted, tokenizer, rows, folder, **changes):
    return RankingTrainer(
        adapted,
        config(folder, **changes),
        data_collator=RankingCollator(tokenizer.pad_token_id),
        train_dataset=group_comparisons(Dataset.from_list(rows)),
        processing_class=tokenizer,
    )


def test_options_that_the_library_refuses_are_an_error_of_ours(adapted, tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="RankingTrainer rejects its options: You have set"):
        trainer_of(adapted, tokenizer, pairs(2), tmp_path, eval_strategy="epoch")


def test_groups_hold_each_completion_once():
    rows = [*pairs(4), *pairs(2, group=None), *pairs(3, group=9)]
    found = group_comparisons(Dataset.from_list(rows))
    assert [len(row["ids"]) for row in found] == [4, 2, 3]
    assert [len(row["better"]) for row in found] == [6, 1, 3]
    first = found[0]
    for better, worse, pair in zip(first["better"], first["worse"], pairs(4), strict=True):
        assert first["ids"][better] == pair["chosen_ids"]
        assert first["ids"][worse] == pair["rejected_ids"]


def test_groups_are_found_wherever_their_pairs_stand():
    """More groups than are made at a time; pairs of one stand apart, and each keeps its margin."""
    count = ranking.AT_ONCE + 500
    rows = [
        {"chosen_ids": [i, 1], "rejected_ids": [i, side], "group_id": i, "margin": i + side / 10}
        for side in (2, 3)
        for i in range(count)
    ]
    found = group_comparisons(Dataset.from_list([*rows, rows[0] | {"group_id": None}]))
    assert found.to_list() == [
        *(
            {
                "ids": [[i, 1], [i, 2], [i, 3]],
                "better": [0, 0],
                "worse": [1, 2],
                "margins": [i + 0.2, i + 0.3],
            }
            for i in range(count)
        ),
        {"ids": [[0, 1], [0, 2]], "better": [0], "worse": [1], "margins": [0.2]},
    ]


@pytest.mark.slow
@pytest.mark.parametrize("group", ["alone", "together"])
def test_grouping_holds_some_groups_as_python_lists_and_never_all(group):
    def peak(count):
        tokens = pa.array([[token % 9999 for token in range(i, i + 300)] for i in range(count)])
        columns = {"chosen_ids": tokens, "rejected_ids": tokens[::-1]}
        if group == "together":
            columns["group_id"] = pa.array([i // 3 for i in range(count)])
        rows = Dataset(pa.table(columns))
        tracemalloc.start()
        group_comparisons(rows)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    most = 1000 * (1 if group == "alone" else 3)
    assert peak(4 * most) < 1.5 * peak(most)


def test_the_loss_by_hand():
    # prompt A: three pairs at a third each; prompt B: one pair; the prompts at a half each
    scores = torch.tensor([2.0, 1.0, 0.0, 5.0, 4.0])
    found = ranking_loss(
        scores,
        torch.tensor([0, 0, 1, 3]),
        torch.tensor([1, 2, 2, 4]),
        torch.tensor([0.0, 0.0, 0.0, 0.5]),
        torch.tensor([1 / 6, 1 / 6, 1 / 6, 1 / 2]),
    )

    def cost(difference):
        return math.log(1 + math.exp(-difference))

    expected = (cost(1) + cost(2) + cost(1)) / 6 + cost(0.5) / 2
    assert found.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("extra", "options"),
    [({}, {}), ({"margin": 0.7}, {}), ({}, {"center_rewards_coefficient": 0.3})],
    ids=["plain", "margin", "centred"],
)
def test_it_equals_trls_pairwise_loss_over_the_expanded_pairs(
    extra, options, adapted, tokenizer, tmp_path
):
    """One prompt, K = 5: the mean over ten pairs, read once each, is TRL's mean over ten rows."""
    ours = trainer_of(adapted, tokenizer, pairs(5, **extra), tmp_path / "ours", **options)
    batch = ours.data_collator(list(ours.train_dataset))
    found = ours.compute_loss(adapted, batch)
    found.backward()
    gradients = {n: p.grad.clone() for n, p in adapted.named_parameters() if p.grad is not None}
    adapted.zero_grad()
    theirs = RewardTrainer(
        adapted,
        config(tmp_path / "theirs", **options),
        train_dataset=Dataset.from_list(pairs(5, **extra)),
        processing_class=tokenizer,
    )
    expanded = theirs.compute_loss(adapted, theirs.data_collator(pairs(5, **extra)))
    expanded.backward()
    assert found.item() == pytest.approx(expanded.item(), abs=1e-6)
    assert gradients
    for name, parameter in adapted.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_nine_answers_cost_nine_passes_and_not_seventy_two(tokenizer):
    rows = group_comparisons(Dataset.from_list(pairs(9)))
    batch = RankingCollator(tokenizer.pad_token_id)(list(rows))
    assert len(batch["better"]) == 36
    assert len(batch["input_ids"]) == 9


def test_a_prompt_counts_once_however_many_pairs_it_makes(tokenizer):
    rows = group_comparisons(Dataset.from_list([*pairs(6), *pairs(2, group=8)]))
    weights = RankingCollator(tokenizer.pad_token_id)(list(rows))["weights"]
    assert weights[:15].sum().item() == pytest.approx(0.5)
    assert weights[15].item() == pytest.approx(0.5)


def test_the_score_is_read_at_the_last_token_though_pad_is_eos(adapted):
    """Padding on either side changes nothing, and an end token that equals the pad token is read."""
    ids = [1, 20, 30, 2]
    alone = last_scores(adapted.eval(), torch.tensor([ids]), torch.ones(1, 4, dtype=torch.long))
    for left, right in ((0, 3), (3, 0), (2, 1)):
        padded = torch.tensor([[2] * left + ids + [2] * right])
        attention = torch.tensor([[0] * left + [1] * 4 + [0] * right])
        assert last_scores(adapted, padded, attention).item() == pytest.approx(
            alone.item(), abs=1e-5
        )


@pytest.mark.slow
def test_training_learns_the_order(adapted, tokenizer, tmp_path):
    trainer = trainer_of(adapted, tokenizer, pairs(4), tmp_path, max_steps=20, learning_rate=1e-2)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < 0.3 < losses[0]
    accuracy = [row["accuracy"] for row in trainer.state.log_history if "accuracy" in row]
    assert accuracy[-1] == 1.0


@pytest.mark.slow
def test_ranking_nine_answers_together_is_faster_than_their_pairs(tiny_base):
    """Eight times fewer passes; of what they save, this machine's noise may take some."""
    found = measure(completions=9, rounds=5, base=str(tiny_base))
    assert (found["passes_together"], found["passes_pairs"]) == (9, 72)
    assert found["times_as_fast"] >= 3


def test_no_pairs_are_no_rankings():
    pairs = Dataset.from_dict({"chosen_ids": [[1, 2]], "rejected_ids": [[1, 3]]})
    assert len(group_comparisons(pairs)) == 1
    assert len(group_comparisons(pairs.select([]))) == 0
