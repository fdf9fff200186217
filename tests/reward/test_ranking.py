"""The K-wise ranking loss equals a loop over its pairs, with one pass per completion."""

import itertools
import math
import time
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
    base_fingerprint = fingerprint(model_config, tokenizer)
    return scalar_adapter(base, base_fingerprint, parent=str(sft_run), model=model_config)


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


def test_library_errors_become_config_errors(adapted, tokenizer, tmp_path):
    with pytest.raises(
        ConfigError, match="RankingTrainer: the library rejects the options: You have set"
    ):
        trainer_of(adapted, tokenizer, pairs(2), tmp_path, eval_strategy="epoch")


def test_groups_contain_each_completion_once():
    rows = [*pairs(4), *pairs(2, group=None), *pairs(3, group=9)]
    groups = group_comparisons(Dataset.from_list(rows))
    assert [len(row["ids"]) for row in groups] == [4, 2, 3]
    assert [len(row["better"]) for row in groups] == [6, 1, 3]
    first = groups[0]
    for better, worse, pair in zip(first["better"], first["worse"], pairs(4), strict=True):
        assert first["ids"][better] == pair["chosen_ids"]
        assert first["ids"][worse] == pair["rejected_ids"]


def test_groups_collect_scattered_pairs():
    """More groups than one chunk; the pairs of a group are far apart, and each keeps its margin."""
    count = ranking.CHUNK + 500
    rows = [
        {"chosen_ids": [i, 1], "rejected_ids": [i, side], "group_id": i, "margin": i + side / 10}
        for side in (2, 3)
        for i in range(count)
    ]
    groups = group_comparisons(Dataset.from_list([*rows, rows[0] | {"group_id": None}]))
    assert groups.to_list() == [
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
def test_grouping_memory_does_not_grow_with_rows(group):
    def peak(count):
        tokens = pa.array([[token % 9999 for token in range(i, i + 100)] for i in range(count)])
        columns = {"chosen_ids": tokens, "rejected_ids": tokens[::-1]}
        if group == "together":
            columns["group_id"] = pa.array([i // 3 for i in range(count)])
        rows = Dataset(pa.table(columns))
        tracemalloc.start()
        group_comparisons(rows)
        traced = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return traced

    most = 1000 * (1 if group == "alone" else 3)
    assert peak(4 * most) < 1.5 * peak(most)


def test_ranking_loss_by_hand():
    # prompt A has three pairs, prompt B one; each prompt weighs a half
    scores = torch.tensor([2.0, 1.0, 0.0, 5.0, 4.0])
    loss = ranking_loss(
        scores,
        torch.tensor([0, 0, 1, 3]),
        torch.tensor([1, 2, 2, 4]),
        torch.tensor([0.0, 0.0, 0.0, 0.5]),
        torch.tensor([1 / 6, 1 / 6, 1 / 6, 1 / 2]),
    )

    def cost(difference):
        return math.log(1 + math.exp(-difference))

    expected = (cost(1) + cost(2) + cost(1)) / 6 + cost(0.5) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("extra", "options"),
    [({}, {}), ({"margin": 0.7}, {}), ({}, {"center_rewards_coefficient": 0.3})],
    ids=["plain", "margin", "centered"],
)
def test_loss_and_gradients_equal_trl_pairwise(extra, options, adapted, tokenizer, tmp_path):
    """One prompt, K = 5: five passes give the mean of TRL's ten rows."""
    ours = trainer_of(adapted, tokenizer, pairs(5, **extra), tmp_path / "ours", **options)
    batch = ours.data_collator(list(ours.train_dataset))
    loss = ours.compute_loss(adapted, batch)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in adapted.named_parameters() if p.grad is not None}
    adapted.zero_grad()
    trl = RewardTrainer(
        adapted,
        config(tmp_path / "trl", **options),
        train_dataset=Dataset.from_list(pairs(5, **extra)),
        processing_class=tokenizer,
    )
    expanded = trl.compute_loss(adapted, trl.data_collator(pairs(5, **extra)))
    expanded.backward()
    assert loss.item() == pytest.approx(expanded.item(), abs=1e-6)
    assert gradients
    for name, parameter in adapted.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_nine_completions_need_nine_passes(tokenizer):
    rows = group_comparisons(Dataset.from_list(pairs(9)))
    batch = RankingCollator(tokenizer.pad_token_id)(list(rows))
    assert len(batch["better"]) == 36
    assert len(batch["input_ids"]) == 9


def test_prompts_weigh_the_same_for_any_k(tokenizer):
    rows = group_comparisons(Dataset.from_list([*pairs(6), *pairs(2, group=8)]))
    weights = RankingCollator(tokenizer.pad_token_id)(list(rows))["weights"]
    assert weights[:15].sum().item() == pytest.approx(0.5)
    assert weights[15].item() == pytest.approx(0.5)


def test_score_is_read_at_last_token_despite_padding(adapted):
    """Padding on either side changes nothing, also if the pad token is EOS."""
    ids = [1, 20, 30, 2]
    alone = last_scores(adapted.eval(), torch.tensor([ids]), torch.ones(1, 4, dtype=torch.long))
    for left, right in ((0, 3), (3, 0), (2, 1)):
        padded = torch.tensor([[2] * left + ids + [2] * right])
        attention = torch.tensor([[0] * left + [1] * 4 + [0] * right])
        assert last_scores(adapted, padded, attention).item() == pytest.approx(
            alone.item(), abs=1e-5
        )


@pytest.mark.slow
def test_training_learns_the_ranking(adapted, tokenizer, tmp_path):
    trainer = trainer_of(adapted, tokenizer, pairs(4), tmp_path, max_steps=20, learning_rate=1e-2)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < 0.3 < losses[0]
    accuracy = [row["accuracy"] for row in trainer.state.log_history if "accuracy" in row]
    assert accuracy[-1] == 1.0


@pytest.mark.slow
def test_ranking_together_is_faster_than_pairs():
    """Eight times fewer passes, about seven times as fast on the embedded base, in time of this process."""
    measured = measure(completions=9, rounds=5, base="world:base", clock=time.process_time)
    assert (measured["passes_together"], measured["passes_pairs"]) == (9, 72)
    assert measured["times_as_fast"] >= 3


def test_no_pairs_give_no_rankings():
    pairs = Dataset.from_dict({"chosen_ids": [[1, 2]], "rejected_ids": [[1, 3]]})
    assert len(group_comparisons(pairs)) == 1
    assert len(group_comparisons(pairs.select([]))) == 0
