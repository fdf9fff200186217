"""A placeholder for the workbench while the base loads, so that the page is served at once."""

import gc
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.app.bases import named_base
from toolkit.app.catalog import Catalog, only_base
from toolkit.app.choices import example_prompts
from toolkit.errors import CheckpointError

if TYPE_CHECKING:
    from toolkit.app.workbench import Workbench


class LoadingWorkbench:
    """Replaces a `Workbench` while it loads; calls that need the base wait until it is loaded."""

    def __init__(self, base_name: str, runs: Path) -> None:
        self.runs = runs
        self._base_name = base_name
        self._catalog = only_base(base_name)
        self._loaded = threading.Event()
        self._switching = threading.Lock()
        self._workbench: Workbench | None = None
        self._options: list[str] = []
        self._problem = ""

    @property
    def ready(self) -> bool:
        """Whether the base is loaded."""
        return self._workbench is not None

    @property
    def catalog(self) -> Catalog:
        """The workbench's catalog; until the workbench is loaded, a catalog of only the base."""
        workbench = self._workbench
        return self._catalog if workbench is None else workbench.catalog

    def examples(self) -> list[str]:
        """Prompts to try."""
        workbench = self._workbench
        return example_prompts(self._base_name) if workbench is None else workbench.examples()

    def load(self, make: "Callable[[], Workbench]") -> None:
        """Create the workbench with `make` and release everything that waits for it."""
        self._workbench = make()
        self._options = self._workbench.cli_options
        self._loaded.set()

    def switch(self, label: object) -> None:
        """Replace the base by another one of the runs; first its memory is freed.

        Raises: ConfigError for an unknown base; CheckpointError if it cannot be loaded. The old base is
            then loaded again.
        """
        from toolkit.app.workbench import Workbench

        with self._switching:
            bases, old = self.catalog.bases, self.catalog.base
            new = named_base(bases, label)
            if new.label == old and self.ready:
                return
            self._catalog = replace(only_base(new.id), bases=bases, base=old)
            self._loaded.clear()
            try:
                self._close()
                self._workbench = Workbench.open_base(new, self.runs)
            except Exception as error:
                self._problem = str(error)
                self._workbench = Workbench.open_base(named_base(bases, old), self.runs)
                raise
            finally:
                if self._workbench is not None:
                    self._workbench.cli_options = self._options
                self._loaded.set()

    def _close(self) -> None:
        workbench, self._workbench = self._workbench, None
        if workbench is not None:
            workbench.close()
        del workbench
        gc.collect()

    def __getattr__(self, name: str) -> Any:
        """Wait for the workbench, and return any other attribute of it."""
        if name.startswith("__"):
            raise AttributeError(name)
        self._loaded.wait()
        if self._workbench is None:
            raise CheckpointError(f"no base is loaded ({self._problem}); choose another base")
        return getattr(self._workbench, name)
