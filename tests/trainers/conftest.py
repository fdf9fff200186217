"""A finished training with checkpoints, for the tests that damage or resume a copy."""

import pytest

from tests.ppo.setup import make, prompts
from toolkit.models.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def finished_run(build_ppo_roles, tiny_base, tmp_path_factory):
    """A training of eight steps with checkpoints 4 and 8; do not change."""
    folder = tmp_path_factory.mktemp("finished")
    saving = {"save_strategy": "steps", "save_steps": 4}
    make(build_ppo_roles(), load_tokenizer(str(tiny_base)), prompts(), folder, **saving).train()
    return folder
