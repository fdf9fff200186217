"""Security headers for every HTTP answer of the app; Gradio itself sends none."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# Gradio's page carries inline scripts and styles. Nothing may be fetched from another host, so that
# a link or an image in a model's answer is no way out, and no page may show the app in a frame.
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


class SecurityHeaders:
    """ASGI middleware that puts `HEADERS` on every answer, in the place of the app's own."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request; an error that nobody caught is answered here, with the headers."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                ours = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
                theirs = [h for h in message["headers"] if h[0].decode().lower() not in HEADERS]
                message["headers"] = theirs + ours
            await send(message)

        try:
            await self.app(scope, receive, with_headers)
        except Exception:
            if not started:
                kind = [(b"content-type", b"text/plain; charset=utf-8")]
                start = {"type": "http.response.start", "status": 500, "headers": kind}
                await with_headers(start)
                await send({"type": "http.response.body", "body": b"Internal Server Error"})
            raise  # the server logs it
