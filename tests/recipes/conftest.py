"""A launcher of processes for the tests that kill or interrupt a run."""

from collections.abc import Iterator

import pytest

from tests.recipes.forked import Launcher, launcher


@pytest.fixture(scope="session")
def processes() -> Iterator[Launcher]:
    """Starts processes that have done the imports."""
    with launcher() as launching:
        yield launching
