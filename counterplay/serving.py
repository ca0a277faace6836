"""An HTTP application served from a command line: a port that is ours before we start, our own signals, a graceful end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from counterplay.core.errors import UserError

GRACE_S = 10


def server(app: Any, *, date: bool = True) -> Any:
    """A uvicorn server of `app` that leaves signals alone. Without `date`, the application dates its responses itself."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # they are ours

    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=date,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE_S,
    )
    return Server(config)


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens; port 0 is any free one. Raises UserError where the address can't be had."""
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024)
    except OSError as error:
        do = "Stop what listens there, or give another --port (0: any free one)."
        raise UserError(f"got {host}:{port}, where nothing can listen ({error.strerror or error})", "a free address", do) from error
    with listener:
        yield listener


def address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextmanager
def until_signal() -> Iterator[asyncio.Event]:
    """An event that SIGINT and SIGTERM set. Who sends a second one does not want to wait: what was acknowledged is on disk."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(number: int, _: Any) -> None:
        if stopped.is_set():
            os._exit(128 + number)
        loop.call_soon_threadsafe(stopped.set)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
