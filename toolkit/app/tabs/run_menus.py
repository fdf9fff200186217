"""Keeps the menus of checkpoints and reward models equal to the runs folder while the page is open."""

from typing import TYPE_CHECKING, Any

import gradio as gr

from toolkit.app.catalog import Catalog
from toolkit.app.choices import checkpoint_choices, reward_choices

if TYPE_CHECKING:
    from toolkit.app.workbench import Workbench

# classes of the menus
RUN_MENU, REWARD_MENU, TEST_ROWS_MENU = "run-menu", "reward-menu", "test-rows-menu"
BASE_MENU = "base-menu"
MENUS = (RUN_MENU, REWARD_MENU, TEST_ROWS_MENU, BASE_MENU)
REFRESH_S = 5  # while the page is open


def follow_runs(page: gr.Blocks, workbench: "Workbench") -> None:
    """Add new runs to the menus of the page, and remove deleted and broken ones.

    Gradio accepts only a menu's own choices, at first those of the app's start. An API
    client that has not called `/refresh` gets the choices of the last scan.
    """
    menus = [b for b in page.blocks.values() if _kind(b)]
    seen = gr.State("")

    def tick(before: str, *values: Any) -> list[Any]:
        if not workbench.ready:
            return [gr.skip() for _ in range(len(menus) + 1)]
        catalog = workbench.refresh(max_age_s=REFRESH_S)
        now = repr((catalog.base, [_found(catalog, kind) for kind in MENUS]))
        if now == before:
            return [gr.skip() for _ in range(len(menus) + 1)]
        return [now, *(_update(m, v, catalog) for m, v in zip(menus, values, strict=True))]

    for menu in menus:
        _accept_known_runs(menu, workbench)
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    gr.Timer(REFRESH_S).tick(tick, [seen, *menus], [seen, *menus], **quiet)


def _kind(block: Any) -> str | None:
    """The class of a menu, or None for another component."""
    classes = getattr(block, "elem_classes", None) or ()
    return next((k for k in MENUS if k in classes), None)


def _found(catalog: Catalog, kind: str | None) -> list[tuple[str, str]]:
    """The choices that a scan found for a kind of menu, as (label, value)."""
    if kind == BASE_MENU:
        return [(str(base), base.label) for base in catalog.bases]
    kinds = {REWARD_MENU: catalog.rewards, TEST_ROWS_MENU: catalog.with_test_rows}
    return [(e.label, e.id) for e in kinds.get(str(kind), catalog.checkpoints).values()]


def _choices(menu: Any, catalog: Catalog) -> list[tuple[str, str]]:
    """A menu's choices: those found, and its own fixed choices such as the base."""
    if _kind(menu) == REWARD_MENU:
        return reward_choices(catalog).choices
    fixed = [(label, id) for label, id in menu.choices if not str(id).startswith("run_")]
    found = _found(catalog, _kind(menu))
    ids = {id for _, id in found}
    return [*found, *((label, id) for label, id in fixed if id not in ids)]


def base_update(catalog: Catalog) -> Any:
    """The menu of bases, which is visible if there are several."""
    choices = _found(catalog, BASE_MENU)
    return gr.update(choices=choices, value=catalog.base or None, visible=len(choices) > 1)


def _update(menu: Any, value: Any, catalog: Catalog) -> Any:
    """A menu's choices, without the deleted runs in its value."""
    if _kind(menu) == BASE_MENU:
        return base_update(catalog)
    choices = _choices(menu, catalog)
    ids = [id for _, id in choices]
    kept = [id for id in value or () if id in ids] if menu.multiselect else value
    if menu.multiselect and len(kept) < len(value or ()):  # deleted, or of another base
        kept = checkpoint_choices(catalog, kept).chosen
    empty = value is None and _kind(menu) != REWARD_MENU  # a page opened early has no reward model
    if not menu.multiselect and not empty and value not in ids:
        kept = ids[0] if ids and _kind(menu) != TEST_ROWS_MENU else None
    if kept == value or (not kept and not value):  # the visitor may be choosing another one
        return gr.update(choices=choices)
    return gr.update(choices=choices, value=kept)


def _accept_known_runs(menu: Any, workbench: "Workbench") -> None:
    preprocess = menu.preprocess

    def preprocess_with_known_runs(payload: Any) -> Any:
        # a deleted run stays here, so that its name gets the error of an unknown checkpoint
        menu.choices = list(dict.fromkeys([*_choices(menu, workbench.catalog), *menu.choices]))
        return preprocess(payload)

    menu.preprocess = preprocess_with_known_runs
