"""`toolkit choose` hands on the checkpoint whose answers have the highest score."""

import pytest

from tests.recipes.test_in_process import STEPS, call
from toolkit.cli import run
from toolkit.recipe import find, holds, is_supervised
from toolkit.runs.parents import require_adapter
from toolkit.runs.run import Run


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 4])
def test_best_checkpoint_becomes_a_run(step, tiny_base, tmp_path, capsys):
    sft, folder, code = tmp_path / "sft", tmp_path / "chosen", tmp_path / "mine.py"
    options = {"model_name_or_path": tiny_base, "max_rows": 16, "lora_r": 4, "learning_rate": 0.01}
    call("sft", sft, eval_strategy="steps", eval_steps=2, **options, **STEPS)
    # all answers are scored in one call: after the five of step 2, those that only step 4 gives
    sign = 1 if step == 4 else -1
    code.write_text(
        f"def later(prompts, **_):\n    return [{sign} * (i >= 5) for i in range(len(prompts))]\n"
    )
    words = ["--parent", str(sft), "--output_dir", str(folder), "--max_new_tokens", "6"]
    words += ["--max_prompts", "5", "--reward_funcs", f"{code}:later"]
    assert run(find("choose"), words) == 0
    assert f"{step:>6} " in next(
        line for line in capsys.readouterr().out.splitlines() if line.endswith("chosen")
    )
    chosen, expected = folder / "adapter_model.safetensors", sft / f"checkpoint-{step}"
    assert chosen.read_bytes() == (expected / chosen.name).read_bytes()
    result = Run.load(folder)
    require_adapter(str(folder), "parent")
    assert (holds(result), is_supervised(result)) == ("policy", True)
    assert result.results["chosen"] == f"checkpoint-{step}"
    rows = result.results["checkpoints"]
    logged = {
        row["step"]: row["eval_loss"] for row in Run.load(sft).metrics() if "eval_loss" in row
    }
    assert {row["step"]: row["eval_loss"] for row in rows} == logged
    assert logged.keys() == {2, 4}


def test_run_with_one_checkpoint_is_rejected(sft_run, reward_run, tmp_path, capsys):
    Run(sft_run, "sft", state="finished").save()
    words = ["--parent", str(sft_run), "--reward_model", str(reward_run)]
    assert run(find("choose"), [*words, "--output_dir", str(tmp_path / "chosen")]) == 2
    assert "a policy with two or more checkpoints, but" in capsys.readouterr().err
