"""The stored conversations of Compare: restore, open, start, delete and undo."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from toolkit.app.answering.chat import Chat
from toolkit.app.answering.request import MAX_COLUMNS
from toolkit.app.choices import checkpoint_choices
from toolkit.app.conversations.store import new_browser, owner
from toolkit.app.judgements.named_votes import named_vote
from toolkit.app.judgements.store import Store
from toolkit.app.tabs.compare_columns import PARTS, skip
from toolkit.app.tabs.compare_events import FRONT, CompareEvents, Visit, require_turns
from toolkit.app.tabs.parts import errors_as_toast
from toolkit.app.web.answer_html import plain_html
from toolkit.app.web.scripts import CONVERSATION, NEW_CHAT

NOT_HERE = (
    "The conversation in this address cannot be opened: it was deleted, another browser created it, "
    "or this browser stores no data."
)


class HistoryEvents:
    """Event handlers that change which conversation the page shows, or judge its last turn."""

    def __init__(self, events: CompareEvents, judgements: Store) -> None:
        self.events = events
        self.judgements = judgements

    def identify(self, browser: Any, visitor: gr.Request) -> list[Any]:
        """The visit of a browser, which gets its secret if it has none.

        Args:
            browser: the data that the browser stores, see `gr.BrowserState`.
        """
        stored = browser if isinstance(browser, Mapping) else {}
        user, secret = getattr(visitor, "username", None), stored.get("secret")
        if owner(secret, user) is None:
            secret = new_browser()
        visit = Visit(owner(secret, user), bool(stored.get("markdown")))
        self.events.identify(visitor, visit)
        return [{"secret": secret, "markdown": visit.markdown}, visit, visit.markdown]

    def restore(self, chat: Chat, visit: Visit, visitor: gr.Request) -> list[Any]:
        """Show the conversation in the page's address, or else the owner's newest one.

        Nothing changes if the visitor has already sent a prompt.
        """
        nothing = skip(FRONT + PARTS * MAX_COLUMNS + 1)
        if chat.turns or self.events.streams(visitor):
            return nothing
        open_before = visitor.query_params.get(CONVERSATION)
        if open_before == NEW_CHAT:
            return [*self.events.settled(chat, visit), gr.skip()]
        ids = [id for _, id in self.events.conversations.titles(visit.owner)]
        if open_before and open_before not in ids:
            gr.Warning(NOT_HERE)
        id = open_before if open_before in ids else next(iter(ids), None)
        return (self._shown(visit, id) if id else None) or nothing

    def open(self, visit: Visit, id: Any, visitor: gr.Request) -> list[Any]:
        """Show a stored conversation."""
        self.events.leave(visitor)
        shown = self._shown(visit, str(id))
        if shown is None:
            raise gr.Error(
                "This conversation was deleted or cannot be read.", print_exception=False
            )
        return shown

    def new(self, chat: Chat, visit: Visit, visitor: gr.Request) -> list[Any]:
        """Show an empty conversation; the current one stays in the list."""
        self.events.leave(visitor)
        return self.events.settled(Chat(columns=chat.columns), visit, "")

    def delete(self, chat: Chat, visit: Visit, visitor: gr.Request) -> list[Any]:
        """Delete the conversation; `undo` restores it until the page is closed."""
        chat = self.events.leave(visitor) or chat
        require_turns(chat)
        with errors_as_toast(self.events.conversations.path.parent):
            self.events.conversations.delete(visit.owner, chat.id)
        return self.events.settled(chat.deleted(), visit)

    def edit(self, chat: Chat, visit: Visit, visitor: gr.Request) -> list[Any]:
        """Move the last prompt back into its field and remove its answers."""
        chat = self.events.leave(visitor) or chat
        require_turns(chat)
        earlier = self.events.saved(visit.owner, chat.without_last())
        return self.events.settled(earlier, visit, chat.last_prompt)

    def undo(self, chat: Chat, visit: Visit, visitor: gr.Request) -> list[Any]:
        """Bring back the answers or the conversation that the last change removed."""
        chat = self.events.leave(visitor) or chat
        if not chat.earlier:
            raise gr.Error("There is nothing to undo.", print_exception=False)
        return self.events.settled(self.events.saved(visit.owner, chat.undone(), warn=True), visit)

    def show_markdown(
        self, chat: Chat, visit: Visit, browser: Any, yes: Any, visitor: gr.Request
    ) -> list[Any]:
        """Show the answers as Markdown or as plain text."""
        visit = Visit(visit.owner, bool(yes))
        stored = browser if isinstance(browser, Mapping) else {}
        self.events.identify(visitor, visit)
        streams = self.events.streams(visitor)
        shown = skip(FRONT + PARTS * MAX_COLUMNS) if streams else self.events.settled(chat, visit)
        return [{**stored, "markdown": visit.markdown}, visit, *shown]

    def vote(self, chat: Chat, best: int | None) -> None:
        """Store that the answer in column `best` is better than the others; None is a tie."""
        ids = list(chat.answers)
        id = None if best is None else ids[best] if best < len(ids) else ""
        if chat.turns and not self.events.is_current(chat):
            raise gr.Error("Choose the base of these answers first.", print_exception=False)
        with errors_as_toast(self.judgements.path.parent):
            base = self.events.workbench.roles.fingerprint
            new = self.judgements.add(named_vote(chat, id, base))
        winner = "tie" if id is None else f"{chat.answers[id].name} is best"
        gr.Info(f"Saved: {plain_html(winner)}." if new else "This vote was saved before.")

    def _shown(self, visit: Visit, id: str) -> list[Any] | None:
        """Updates that show a stored conversation and choose its checkpoints."""
        catalog = self.events.workbench.catalog
        ids = {entry.name: entry.id for entry in catalog.checkpoints.values()}
        chat = self.events.conversations.load(visit.owner, id, ids)
        if chat is None:
            return None
        prompt = None
        if chat.turns and not chat.answers:  # the server ended before the answers
            prompt, chat = chat.last_prompt, chat.without_last()
        chosen = [c for c in chat.answers if c in catalog.checkpoints]
        models = checkpoint_choices(catalog)
        return [
            *self.events.settled(chat, visit, prompt),
            gr.update(choices=models.choices, value=chosen or models.chosen),
        ]
