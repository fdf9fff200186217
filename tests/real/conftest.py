"""The real model of these tests: SmolLM2-135M-Instruct, downloaded once into build/."""

import pytest

from benchmarks.real_model import obtain
from tests.conftest import ROOT
from toolkit.errors import ConfigError


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The folder with the model in bfloat16."""
    pytest.importorskip("gguf")
    try:
        return str(obtain(ROOT / "build" / "smollm2-135m"))
    except ConfigError as error:
        pytest.skip(f"the real model cannot be had: {error}")
