"""A workbench on its way, so that the page is up while torch is imported and the base is read."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.app.catalog import Catalog, only_base
from toolkit.app.choices import questions_to_try

if TYPE_CHECKING:
    from toolkit.app.workbench import Workbench


class Opening:
    """Stands in the place of a `Workbench`: what needs the base waits until `open` has brought it.

    What the page is built from is there at once; the lists of runs are filled in later.
    """

    def __init__(self, base_name: str, runs: Path) -> None:
        self.runs = runs
        self._base_name = base_name
        self._catalog = only_base(base_name)
        self._there = threading.Event()
        self._workbench: Workbench | None = None

    @property
    def ready(self) -> bool:
        """Whether nothing waits any more."""
        return self._there.is_set()

    @property
    def catalog(self) -> Catalog:
        """The workbench's, or the base alone before it is there."""
        return self._catalog if self._workbench is None else self._workbench.catalog

    def examples(self) -> list[str]:
        """As the workbench's, which are known before it is."""
        return questions_to_try(self._base_name)

    def open(self, make: "Callable[[], Workbench]") -> None:
        """Make the workbench and let everybody in. What `make` raises is the caller's."""
        self._workbench = make()
        self._there.set()

    def __getattr__(self, name: str) -> Any:
        """Anything else is the workbench's own, and waits for it."""
        if name.startswith("__"):
            raise AttributeError(name)
        self._there.wait()
        return getattr(self._workbench, name)
