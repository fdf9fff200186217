"""Other web pages can neither write to the app nor read from it; the app's own page and clients can."""

import asyncio
from collections.abc import Iterator
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio_client import Client

from tests.app.web.test_middleware import reader, request
from toolkit.app.web.middleware import API, HEADERS, USED, SameOrigin
from toolkit.app.web.server import free_port, serve

HOST = "127.0.0.1:7860"


def status(path: str = "/gradio_api/queue/join", method: str = "POST", **headers: str) -> int:
    """The response's status to a request with these headers, written with _ for -."""
    named = {"host": HOST} | {name.replace("_", "-"): value for name, value in headers.items()}

    async def unread(scope: Any, receive: Any, send: Any) -> None:
        await reader(scope, receive, send)

    return request(SameOrigin(unread), path, method=method, headers=named)[0]


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "PUT"])
@pytest.mark.parametrize(
    "origin",
    [
        "http://127.0.0.1:7861",
        "http://localhost:7860",
        "http://127.0.0.1",
        "https://evil.example",
        "http://127.0.0.1:7860.evil.example",
        "http://evil.example:7860",
        "null",
        "",
        "http://[",
        "file://",
    ],
)
def test_other_origins_are_rejected(method: str, origin: str) -> None:
    assert status("/", method, origin=origin) == 403
    assert status("/gradio_api/call/compare", method, origin=origin) == 403


def test_own_page_and_clients_pass() -> None:
    assert status() == 200
    assert status(origin=f"http://{HOST}", sec_fetch_site="same-origin") == 200
    assert status("/", "GET", sec_fetch_site="none") == 200
    assert status(origin="https://chat.example.org", host="chat.example.org:443") == 200
    behind = {"host": "127.0.0.1:7860", "x_forwarded_host": "chat.example.org"}
    assert status(origin="https://chat.example.org", **behind) == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_other_sites_may_only_open_the_page(site: str) -> None:
    navigation = {"sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert status("/", "GET", sec_fetch_site=site, **navigation) == 200
    assert (
        status("/", "GET", sec_fetch_site=site, **navigation | {"sec_fetch_dest": "iframe"}) == 403
    )
    assert status("/", "GET", sec_fetch_site=site) == 403
    assert status("/", "POST", sec_fetch_site=site, **navigation) == 403
    for path in ("/config", "/logout", "/gradio_api/file=a.png", "/gradio_api/queue/data"):
        assert status(path, "GET", sec_fetch_site=site, **navigation) == 403


@pytest.mark.parametrize(
    "path",
    [
        "upload",
        "upload/",
        "upload_progress",
        "stream/1",
        "stream/1/close",
        "proxy=https://evil.example",
        "file=https://evil.example",
        "component_server",
        "custom_component/a/client/b/c",
        "deep_link",
        "dev/reload",
        "run-history/records",
        "new_in_a_later_gradio",
    ],
)
def test_unused_routes_are_rejected_before_the_body_is_read(path: str) -> None:
    async def fails(*_: Any) -> None:
        raise AssertionError("reached")

    for method in ("GET", "POST", "HEAD"):
        parts: tuple[bytes, ...] = ()  # reading would disconnect
        assert request(SameOrigin(fails), f"{API}{path}", method=method, parts=parts)[0] == 403


def test_websockets_of_other_origins_are_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", HOST.encode()), (b"origin", b"https://evil.example")]
    scope = {"type": "websocket", "path": "/", "headers": headers}
    asyncio.run(SameOrigin(reader)(scope, None, send))  # type: ignore[arg-type]
    assert sent[0]["type"] == "websocket.close"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A small page, served like the app."""
    with gr.Blocks() as page:
        box = gr.Textbox()
        box.submit(lambda text: text[::-1], box, box, api_name="reverse")
    url = serve(page, host="127.0.0.1", port=free_port())
    yield url
    page.close(verbose=False)


@pytest.mark.slow
def test_gradio_grants_nothing_to_other_origins(url: str) -> None:
    """Its own CORS middleware would allow every port of this machine."""
    other = {"origin": "http://localhost:9999"}
    preflight = {"access-control-request-method": "POST"} | other
    for path in ("", "config", "gradio_api/upload", "gradio_api/queue/join", "gradio_api/info"):
        for response in (
            httpx.get(f"{url}{path}", headers=other),
            httpx.post(f"{url}{path}", headers=other, content=b"x"),
            httpx.options(f"{url}{path}", headers=preflight),
        ):
            assert response.status_code == 403
            assert not [h for h in response.headers if h.startswith("access-control")]
            assert HEADERS.items() <= dict(response.headers).items()


@pytest.mark.slow
def test_page_and_client_work(url: str) -> None:
    assert httpx.get(url).status_code == 200
    own = {"origin": url.rstrip("/"), "sec-fetch-site": "same-origin"}
    assert httpx.get(f"{url}config", headers=own).status_code == 200
    client = Client(url, verbose=False, analytics_enabled=False)
    assert client.predict("abc", api_name="/reverse") == "cba"
    assert httpx.post(f"{url}gradio_api/upload", files={"files": b"x"}).status_code == 403


def test_every_route_of_gradio_is_decided() -> None:
    """A route that a later Gradio adds is refused; this list shows which ones the installed one has."""
    with gr.Blocks() as page:
        gr.Textbox()
    outer: Any = gr.routes.App.create_app(page).routes
    routers = [getattr(route, "original_router", None) for route in outer]
    routes = [*outer, *(route for router in routers if router for route in router.routes)]
    paths = [path for route in routes if (path := getattr(route, "path", "")).startswith(API)]
    names = {p.removeprefix(API).replace("=", "/", 1).partition("/")[0] for p in paths}
    assert names - set(USED) == {
        "component_server",
        "custom_component",
        "deep_link",
        "dev",
        "process_recording",
        "proxy",
        "run-history",
        "runs",
        "stream",
        "undo-vibe-edit",
        "upload",
        "upload_progress",
        "vibe-code",
        "vibe-edit",
        "vibe-starter-queries",
    }
