"""A checkpoint whose JSON files were edited cannot be resumed; the message names the value."""

import json
import re
import shutil

import pytest

from tests.ppo.setup import make, prompts
from toolkit.errors import CheckpointError
from toolkit.ppo.checkpoints import STATE_FILE
from toolkit.runs.resuming import LOSS_FILE, list_contents

pytestmark = pytest.mark.slow


def edit(checkpoint, file, **values):
    """Change a file and its hash, as a careful user would."""
    content = json.loads((checkpoint / file).read_text())
    (checkpoint / file).write_text(json.dumps(content | values))
    list_contents(checkpoint)


@pytest.mark.parametrize(
    ("file", "values", "reason"),
    [
        ("trainer_state.json", {"global_step": 400}, "must be in 1…`max_steps` (8), got 400"),
        ("trainer_state.json", {"global_step": 400, "max_steps": 500}, "ends at step 8"),
        ("trainer_state.json", {"global_step": -4}, "got -4"),
        ("trainer_state.json", {"global_step": "4"}, "`global_step` must be int, got '4' (str)"),
        ("trainer_state.json", {"max_steps": None}, "`max_steps` must be int, got None"),
        ("trainer_state.json", {"log_history": 3}, "`log_history` must be list"),
        ("trainer_state.json", {"best_metric": "x"}, "`best_metric` must be float | None"),
        ("trainer_state.json", {"of_another_version": 3}, "of_another_version"),
        (LOSS_FILE, {"loss": "x"}, "`loss` must be float"),
        (LOSS_FILE, {"metrics": [1]}, "`metrics` must be dict"),
        (STATE_FILE, {"kl_coef": None}, "`kl_coef` must be float"),
        (STATE_FILE, {"metrics": {"a": 3}}, "`metrics` must be dict"),
    ],
)
def test_edited_state_is_named(
    finished_run, make_ppo_roles, tokenizer, tmp_path, file, values, reason
):
    run = shutil.copytree(finished_run, tmp_path / "run")
    edit(run / "checkpoint-4", file, **values)
    trainer = make(make_ppo_roles(), tokenizer, prompts(), run)
    with pytest.raises(CheckpointError, match=re.escape(reason)) as raised:
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-4"))
    assert "checkpoint-4" in str(raised.value)
