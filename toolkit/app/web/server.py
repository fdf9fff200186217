"""Serves the page: the port, the middleware and Gradio's launch options."""

import socket
from collections.abc import Sequence
from typing import Any

from toolkit.app.arguments import LOOPBACK_NAMES
from toolkit.errors import ConfigError


def serve(
    page: Any,
    *,
    host: str,
    port: int,
    login: tuple[str, str] | None = None,
    host_names: Sequence[str] = LOOPBACK_NAMES,
) -> str:
    """Serve the page in background threads.

    Args:
        page: a `gradio.Blocks`.
        host: the address to listen on.
        port: a free port.
        login: user name and password, or None.
        host_names: the host names that requests may use; "*" allows any name.

    Returns: the URL.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from toolkit.app.tabs.parts import theme
    from toolkit.app.web.middleware import BodyLimit, LoginThrottle
    from toolkit.app.web.same_origin import outermost
    from toolkit.app.web.scripts import CSS, HEAD

    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        auth=login,
        app_kwargs={
            "lifespan": outermost,
            "middleware": [
                Middleware(TrustedHostMiddleware, allowed_hosts=host_names),
                Middleware(BodyLimit),
                Middleware(LoginThrottle),
            ],
        },
        prevent_thread_lock=True,
        quiet=True,
        share=False,  # None would let an environment variable decide
        enable_monitoring=False,
        run_history=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        footer_links=[],
        theme=theme(),
        css=CSS,
        head=HEAD,
        max_threads=128,  # each streaming visitor holds one; the engine accepts 80
    )
    return str(url)


def free_port() -> int:
    """An unused port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_free(host: str, port: int) -> None:
    """Check that the address is free, before the base is loaded.

    Raises: ConfigError if this machine does not have the address or the port is in use.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another --host or --port"
        ) from error
