"""The middleware: headers on every response, limited bodies, throttled logins."""

import asyncio
from typing import Any

import pytest

from toolkit.app.web.middleware import (
    HEADERS,
    MAX_WRONG_LOGINS,
    MAX_WRONG_LOGINS_IN_TOTAL,
    WINDOW_S,
    BodyLimit,
    LoginThrottle,
    SecurityHeaders,
)


def request(
    app: Any,
    path: str = "/",
    *,
    method: str = "POST",
    client: str = "192.0.2.1",
    headers: dict[str, str] | None = None,
    parts: tuple[bytes, ...] = (b"",),
) -> tuple[int, dict[str, str]]:
    """Send one request to an ASGI app. Returns status and headers."""
    sent: list[Any] = []
    body = iter(parts)

    async def receive() -> Any:
        part = next(body, None)
        if part is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "client": (client, 1),
        "headers": [(k.encode(), v.encode()) for k, v in (headers or {}).items()],
    }
    asyncio.run(app(scope, receive, send))
    start = sent[0]
    return start["status"], {k.decode(): v.decode() for k, v in start["headers"]}


async def reader(scope: Any, receive: Any, send: Any) -> None:
    """An app that reads the whole body and responds with the status at the end of the path."""
    while (message := await receive())["type"] == "http.request" and message["body"]:
        pass
    status = int(scope["path"].rpartition("=")[2]) if "=" in scope["path"] else 200
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def failing(scope: Any, receive: Any, send: Any) -> None:
    raise ZeroDivisionError


def test_uncaught_error_has_headers_and_is_raised() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(SecurityHeaders(failing)({"type": "http", "headers": []}, None, send))
    assert sent[0]["status"] == 500
    assert HEADERS.items() <= {k.decode(): v.decode() for k, v in sent[0]["headers"]}.items()
    assert b"ZeroDivision" not in sent[1]["body"]


@pytest.mark.parametrize(
    ("headers", "parts", "status"),
    [
        ({"content-length": "10"}, (b"x" * 10,), 200),
        ({"content-length": "11"}, (), 413),  # rejected before it is read
        ({}, (b"x" * 6, b"x" * 4), 200),
        ({}, (b"x" * 6, b"x" * 5), 413),  # no length declared: counted
        ({"content-length": "1"}, (b"x" * 11,), 413),  # a wrong length declared: counted
        ({"content-length": "-1"}, (b"x",), 200),
    ],
)
def test_body_size_is_limited(
    headers: dict[str, str], parts: tuple[bytes, ...], status: int
) -> None:
    app = SecurityHeaders(BodyLimit(reader, max_bytes=10))
    result, sent_headers = request(app, headers=headers, parts=(*parts, b""))
    assert result == status
    assert HEADERS.items() <= sent_headers.items()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def login(scope: Any, receive: Any, send: Any) -> None:
    """Like Gradio: 200 for the right password, 400 for a wrong one."""
    right = (await receive())["body"] == b"right"
    await send({"type": "http.response.start", "status": 200 if right else 400, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def test_wrong_logins_of_an_address_are_throttled() -> None:
    clock = Clock()
    app = LoginThrottle(login, clock)

    def status(password: bytes, **kwargs: Any) -> int:
        return request(app, kwargs.pop("path", "/login"), parts=(password,), **kwargs)[0]

    assert [status(b"right") for _ in range(MAX_WRONG_LOGINS + 5)] == [200] * (MAX_WRONG_LOGINS + 5)
    assert [status(b"wrong") for _ in range(MAX_WRONG_LOGINS)] == [400] * MAX_WRONG_LOGINS
    assert status(b"right") == 429  # the right password is rejected too
    assert status(b"right", path="/login/") == 429
    assert status(b"right", client="192.0.2.2") == 200
    assert status(b"wrong", path="/queue/join") == 400
    clock.now += WINDOW_S + 1
    assert status(b"right") == 200
    assert app._wrong == {}


def test_simultaneous_guesses_cannot_exceed_the_limit() -> None:
    checked = 0

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        nonlocal checked
        checked += 1
        await asyncio.sleep(0.01)
        await login(scope, receive, send)

    app = LoginThrottle(slow, Clock())

    async def guess() -> int:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"wrong"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/login", "client": ("192.0.2.1", 1)}
        await app(scope, receive, send)
        return int(sent[0]["status"])

    async def guess_all() -> list[int]:
        return await asyncio.gather(*(guess() for _ in range(50)))

    statuses = asyncio.run(guess_all())
    assert checked == MAX_WRONG_LOGINS
    assert sorted(statuses) == [400] * MAX_WRONG_LOGINS + [429] * (50 - MAX_WRONG_LOGINS)


def test_wrong_logins_of_all_addresses_are_throttled() -> None:
    app = LoginThrottle(login, Clock())
    statuses = [
        request(app, "/login", client=f"192.0.2.{i}", parts=(b"wrong",))[0]
        for i in range(MAX_WRONG_LOGINS_IN_TOTAL)
    ]
    assert statuses == [400] * MAX_WRONG_LOGINS_IN_TOTAL
    assert request(app, "/login", client="192.0.2.250", parts=(b"right",))[0] == 429
