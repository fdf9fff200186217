"""Comparisons of the embedded world."""

import json

from toolkit.cli import main


def rows(folder):
    return [json.loads(line) for line in (folder / "train.jsonl").open(encoding="utf-8")]


def test_earlier_comparisons_come_with_the_new_ones(sft_run, tmp_path, capsys):
    sizes = ["--train_prompts", "3", "--test_prompts", "2", "--max_new_tokens", "8"]
    words = ["label", "--parent", str(sft_run), *sizes]
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*words, "--output_dir", str(first)]) == 0
    words += ["--output_dir", str(second), "--seed", "1", "--earlier"]
    assert main([*words, str(first)]) == 0
    old, both = rows(first), rows(second)
    assert [row for row in both if row in old] and len(both) > len(old)
    assert all(row in both for row in old)
    groups = {row["group_id"]: {} for row in both}
    for row in both:
        groups[row["group_id"]][row["prompt"][0]["content"]] = True
    assert all(len(prompts) == 1 for prompts in groups.values()) and len(groups) == 6
    (first / "train.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    capsys.readouterr()
    assert main([*words, str(first)]) == 2
    assert "must name comparisons of `toolkit label`" in capsys.readouterr().err
