"""ASGI middleware: the same origin, security headers, the size of bodies, and wrong logins."""

import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# Gradio's page has inline scripts and styles. Nothing may be fetched from another host, so that a
# link or an image in a model's answer cannot leak data. No page may show the app in a frame.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}
MAX_BODY_BYTES = 4 << 20  # a long conversation has a hundredth of it
MAX_WRONG_LOGINS = 10  # per address and minute
MAX_WRONG_LOGINS_IN_TOTAL = 100  # per minute
WINDOW_S = 60.0
LOGIN_PATH = "/login"
API = "/gradio_api/"
# The routes below API that the page and `gradio_client` use. The others accept uploads, fetch URLs, list
# runs of Gradio's own history or serve components that the app does not have.
USED = (
    "api", "app_id", "call", "cancel", "file", "heartbeat", "info", "login_check", "openapi.json",
    "queue", "reset", "run", "startup-events", "theme.css", "token", "user",
)  # fmt: skip


class SameOrigin:
    """Rejects requests from other web pages, or to unused routes, with status 403, before their body.

    A browser lets any page send simple requests to the app, also to a port of the same machine, and Gradio
    allows pages of other local ports to read the answers. This middleware runs before Gradio's own.
    """

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


class SecurityHeaders:
    """Sets `HEADERS` on every response."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle a request. An uncaught error becomes a response with the headers."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                others = [h for h in message["headers"] if h[0].decode().lower() not in HEADERS]
                message["headers"] = others + [(k.encode(), v.encode()) for k, v in HEADERS.items()]
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception:
            if not started:
                kind = [(b"content-type", b"text/plain; charset=utf-8")]
                start = {"type": "http.response.start", "status": 500, "headers": kind}
                await send_with_headers(start)
                await send({"type": "http.response.body", "body": b"Internal Server Error"})
            raise  # the server logs it


class BodyTooLarge(Exception):
    """The body exceeded the limit while it was read."""


class BodyLimit:
    """Rejects a body of more than `max_bytes` with status 413."""

    def __init__(self, app: App, max_bytes: int = MAX_BODY_BYTES) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle a request, or reject it as soon as its size is known."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        too_large = f"the body may have at most {self.max_bytes} bytes"
        if _content_length(scope) > self.max_bytes:
            await reject(send, 413, too_large)
            return
        size, started = 0, False

        async def receive_counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_bytes:
                raise BodyTooLarge
            return message

        async def send_noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive_counted, send_noted)
        except BodyTooLarge:
            if not started:
                await reject(send, 413, too_large)


class LoginThrottle:
    """Rejects logins with status 429 after too many wrong ones within a minute."""

    def __init__(self, app: App, clock: Callable[[], float] = time.monotonic) -> None:
        self.app, self.clock = app, clock
        self._wrong: dict[str, deque[float]] = {}  # address -> times

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle a request. A login counts as wrong until it succeeds."""
        post = scope["type"] == "http" and scope["method"] == "POST"
        if not (post and scope["path"].rstrip("/").endswith(LOGIN_PATH)):
            await self.app(scope, receive, send)
            return
        address = (scope.get("client") or ("unknown",))[0]
        if self._too_many(address):
            await reject(send, 429, "too many wrong logins; wait a minute")
            return

        # counted before the response, so that simultaneous guesses cannot exceed the limit
        login_time = self.clock()
        self._wrong.setdefault(address, deque()).append(login_time)

        async def send_result(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                self._forget(address, login_time)
            await send(message)

        await self.app(scope, receive, send_result)

    def _forget(self, address: str, login_time: float) -> None:
        times = self._wrong.get(address, deque())
        if login_time in times:  # unless the response took longer than the minute
            times.remove(login_time)
        if not times:
            self._wrong.pop(address, None)

    def _too_many(self, address: str) -> bool:
        """Whether the address, or all addresses together, reached the limit."""
        start = self.clock() - WINDOW_S
        for key, times in list(self._wrong.items()):
            while times and times[0] <= start:
                times.popleft()
            if not times:
                del self._wrong[key]
        total = sum(map(len, self._wrong.values()))
        own = len(self._wrong.get(address, ()))
        return own >= MAX_WRONG_LOGINS or total >= MAX_WRONG_LOGINS_IN_TOTAL


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


def _content_length(scope: Message) -> int:
    """The declared size of the body; 0 if it is missing or invalid."""
    for name, value in scope["headers"]:
        if name.lower() == b"content-length" and value.isdigit():
            return int(value)
    return 0


async def reject(send: Send, status: int, detail: str) -> None:
    """Send an error in the format of Gradio's own errors."""
    body = f'{{"detail": "{detail}"}}'.encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status == 429:
        headers.append((b"retry-after", b"%d" % WINDOW_S))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
