"""Limits on what a stranger may send: large bodies, and wrong logins one after the other."""

import time
from collections import deque
from collections.abc import Callable

from toolkit.app.web.headers import App, Message, Receive, Send

MOST_BODY = 4 << 20  # bytes; a long conversation is a hundredth of it
WRONG_LOGINS = 10  # of one address
WRONG_LOGINS_OF_ALL = 100  # from many addresses at once
WITHIN = 60.0  # seconds
LOGIN = "/login"


class TooLarge(Exception):
    """The body went over the limit while it was read."""


class BodyLimit:
    """ASGI middleware that refuses a body of more than `most` bytes with 413."""

    def __init__(self, app: App, most: int = MOST_BODY) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it as soon as its size is known."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if declared(scope) > self.most:
            await answer(send, 413, f"the limit is {self.most} bytes")
            return
        read, started = 0, False

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.most:
                raise TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except TooLarge:
            if not started:
                await answer(send, 413, f"the limit is {self.most} bytes")


class LoginThrottle:
    """ASGI middleware that answers 429 to an address after too many wrong logins in a minute."""

    def __init__(self, app: App, clock: Callable[[], float] = time.monotonic) -> None:
        self.app, self.clock = app, clock
        self._wrong: dict[str, deque[float]] = {}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request; one that logs in counts as wrong until it was right."""
        asked = scope["type"] == "http" and scope["method"] == "POST"
        if not (asked and scope["path"].rstrip("/").endswith(LOGIN)):
            await self.app(scope, receive, send)
            return
        address = (scope.get("client") or ("unknown",))[0]
        if self._too_many(address):
            await answer(send, 429, "too many wrong logins; wait a minute")
            return

        # counted before the answer: of many guesses at once none is checked beyond the limit
        asked_at = self.clock()
        self._wrong.setdefault(address, deque()).append(asked_at)

        async def judged(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                self._take_back(address, asked_at)
            await send(message)

        await self.app(scope, receive, judged)

    def _take_back(self, address: str, asked_at: float) -> None:
        times = self._wrong.get(address, deque())
        if asked_at in times:  # unless the answer took longer than the minute
            times.remove(asked_at)
        if not times:
            self._wrong.pop(address, None)

    def _too_many(self, address: str) -> bool:
        """Whether an address, or all together, have used up their wrong logins."""
        since = self.clock() - WITHIN
        for key in list(self._wrong):
            times = self._wrong[key]
            while times and times[0] <= since:
                times.popleft()
            if not times:
                del self._wrong[key]
        mine = len(self._wrong.get(address, ()))
        return mine >= WRONG_LOGINS or sum(map(len, self._wrong.values())) >= WRONG_LOGINS_OF_ALL


def declared(scope: Message) -> int:
    """The size that a request says its body has; 0 where it says none, or nonsense."""
    for name, value in scope["headers"]:
        if name.lower() == b"content-length" and value.isdigit():
            return int(value)
    return 0


async def answer(send: Send, status: int, text: str) -> None:
    """A short plain answer, in the shape of Gradio's own errors."""
    body = f'{{"detail": "{text}"}}'.encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status == 429:
        headers.append((b"retry-after", b"%d" % WITHIN))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
