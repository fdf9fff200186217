"""ASGI middleware that rejects requests from other web pages, and routes that the app does not use.

A browser lets any page send simple requests to the app, also to a port of the same machine, and Gradio
allows pages of other local ports to read the answers. This middleware runs before Gradio's own.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from toolkit.app.web.middleware import App, Message, Receive, SecurityHeaders, Send, reject

API = "/gradio_api/"
# The routes below API that the page and `gradio_client` use. The others accept uploads, fetch URLs, list
# runs of Gradio's own history or serve components that the app does not have.
USED = (
    "api", "app_id", "call", "cancel", "file", "heartbeat", "info", "login_check", "openapi.json",
    "queue", "reset", "run", "startup-events", "theme.css", "token", "user",
)  # fmt: skip


class SameOrigin:
    """Rejects requests from other web pages, or to unused routes, with status 403, before their body."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle a request. Programs other than browsers do not send these headers and are accepted."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        reason = _refusal(scope)
        if reason is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await reject(send, 403, reason)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": reason})


@asynccontextmanager
async def outermost(app: Any) -> AsyncIterator[None]:
    """A lifespan that puts `SameOrigin` before all other middleware, also before Gradio's CORS headers.

    Starlette builds the middleware stack before the lifespan starts, and serves no request before that.
    """
    app.middleware_stack = SecurityHeaders(SameOrigin(app.middleware_stack))
    yield


def _refusal(scope: Message) -> str | None:
    """Why a request is rejected, or None."""
    path: str = scope["path"]
    if path.startswith(API):
        route, _, argument = path.removeprefix(API).replace("=", "/", 1).partition("/")
        if route not in USED or (route == "file" and argument.startswith(("http:", "https:"))):
            return "the app does not use this route"
    headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
    origin = headers.get(b"origin")
    if origin is not None:
        own = (headers.get(b"host", ""), headers.get(b"x-forwarded-host", ""))
        if _place(origin) not in {_place(f"//{host}") for host in own if host}:
            return "requests of other web pages are rejected"
    site = headers.get(b"sec-fetch-site", "none")
    if site in ("same-origin", "none"):
        return None
    opens_the_page = (
        scope.get("method") in ("GET", "HEAD")
        and path == "/"
        and headers.get(b"sec-fetch-mode") == "navigate"
        and headers.get(b"sec-fetch-dest") == "document"
    )
    return None if opens_the_page else "requests of other web pages are rejected"


def _place(url: str) -> tuple[str | None, int | None] | None:
    """Host and port of a URL, without the ports that browsers leave out; None for an invalid one."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    return (parts.hostname, None if port in (80, 443) else port) if parts.hostname else None
