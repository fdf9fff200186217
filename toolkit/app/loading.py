"""Stands for a workbench that is still loading, so that the page is served before the base is loaded."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.app.catalog import Catalog, only_base
from toolkit.app.choices import example_prompts

if TYPE_CHECKING:
    from toolkit.app.workbench import Workbench


class LoadingWorkbench:
    """Replaces a `Workbench` while it loads; calls that need the base wait until `load` has finished."""

    def __init__(self, base_name: str, runs: Path) -> None:
        self.runs = runs
        self._base_name = base_name
        self._catalog = only_base(base_name)
        self._loaded = threading.Event()
        self._workbench: Workbench | None = None

    @property
    def ready(self) -> bool:
        """Whether the base is loaded."""
        return self._loaded.is_set()

    @property
    def catalog(self) -> Catalog:
        """The workbench's catalog; until the workbench is loaded, a catalog of only the base."""
        return self._catalog if self._workbench is None else self._workbench.catalog

    def examples(self) -> list[str]:
        """Prompts to try."""
        return example_prompts(self._base_name)

    def load(self, make: "Callable[[], Workbench]") -> None:
        """Create the workbench with `make` and release everything that waits for it."""
        self._workbench = make()
        self._loaded.set()

    def __getattr__(self, name: str) -> Any:
        """Wait for the workbench, and return any other attribute of it."""
        if name.startswith("__"):
            raise AttributeError(name)
        self._loaded.wait()
        return getattr(self._workbench, name)
