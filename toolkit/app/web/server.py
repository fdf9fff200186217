"""Serves the page: the port, the middleware and Gradio's launch options."""

import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from toolkit.app.arguments import LOOPBACK_NAMES
from toolkit.errors import ConfigError
from toolkit.runs.signals import raise_interrupt, receive_signals, restore_handlers

TEMP_DIR = "GRADIO_TEMP_DIR"


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
    from toolkit.app.web.middleware import BodyLimit, LoginThrottle, outermost
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


@contextmanager
def private_files() -> Iterator[None]:
    """Store Gradio's copies of downloads in a folder that only this user can read, and remove it.

    Without this, Gradio uses a folder that all users of the machine share. Start the block before Gradio is
    imported. It also ends after SIGTERM. A folder that the environment names is used and kept.
    """
    handlers = receive_signals(raise_interrupt)
    try:
        if os.environ.get(TEMP_DIR):
            yield
            return
        with tempfile.TemporaryDirectory(prefix="toolkit-", ignore_cleanup_errors=True) as folder:
            os.environ[TEMP_DIR] = folder
            try:
                yield
            finally:
                del os.environ[TEMP_DIR]
    finally:
        restore_handlers(handlers)


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
