"""The numbers of an evaluation during training do not depend on the size of its batches."""

import pytest
from datasets import Dataset

from tests.models.methods import call
from toolkit.runs.run import Run

PAIRS = ("prompt", "chosen", "rejected", "group_id")
TIMES = ("runtime", "per_second")  # parts of the names of measured times
ANSWERS = ["a red fox", "no", "I do not know what the colour of that animal is", "blue, of course"]


def write(folder, columns):
    """Rows to train on and rows to hold out, whose answers differ in number and length."""
    folder.mkdir()
    for name, numbers in (("train", range(8)), ("test", range(100, 110))):
        rows = []
        for i, other in ((n, k) for n in numbers for k in range(1, 2 + (n % 4 == 0))):
            prompt, chosen = f"What colour has animal {i}?", ANSWERS[i % 4] * (1 + i % 2)
            row = {"prompt": prompt, "chosen": chosen, "rejected": ANSWERS[(i + other) % 4]}
            rows.append(row | {"group_id": i, "text": prompt + chosen})
        Dataset.from_list(rows).select_columns(columns).to_json(folder / f"{name}.jsonl")


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("sft", {}),
        ("sft", {"packing": True, "max_length": 64}),
        ("sft", {"peft_method": "prompt"}),  # on texts
        ("reward", {}),
        ("dpo", {}),
        ("dpo", {"precompute_ref_log_probs": True}),
        ("kto", {"loss_type": "apo_zero_unpaired"}),
        ("kto", {}),
    ],
)
def test_evaluation_does_not_depend_on_batch_size(recipe, options, tiny_base, sft_run, tmp_path):
    columns = ["text"] if options.get("peft_method") else [*PAIRS]
    write(tmp_path / "data", columns)
    options = {"dataset_name": tmp_path / "data", "eval_strategy": "steps", **options}
    if recipe != "sft":
        options["parent"] = sft_run
    measured = []
    for size in (2, 8):
        folder = tmp_path / f"run-{size}"
        options["per_device_eval_batch_size"] = size
        assert call(recipe, folder, tiny_base, max_steps=2, eval_steps=2, **options) == 0
        last = [row for row in Run.load(folder).metrics() if "eval_loss" in row][-1]
        measured.append({n: x for n, x in last.items() if not any(t in n for t in TIMES)})
        if (recipe, options.get("loss_type")) == ("kto", None):
            del measured[-1]["eval_kl"], measured[-1]["eval_loss"]  # made of the batch's KL
    small, large = measured
    assert small == pytest.approx(large, rel=1e-4)
