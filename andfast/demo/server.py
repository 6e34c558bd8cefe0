"""Serves the page, to this machine unless it is told otherwise."""

from __future__ import annotations

import logging
import signal
import socket
from types import FrameType
from typing import NoReturn

import uvicorn
from fastapi import FastAPI

# Seconds that open connections have when the page is closed; browsers hold one for as long as they show it.
_GRACE = 1


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # What is cut off from here on is no error, however many lines uvicorn has for it.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one.

    Raises:
        OSError: the address is not this machine's, or taken.
    """
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=family)


def address_of(listener: socket.socket) -> str:
    """Where a browser on this machine finds it."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Serve until Ctrl-C, or a signal to end."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    # Raised again by uvicorn when it has closed everything: what is to be tidied up afterwards is then.
    before = signal.signal(signal.SIGTERM, end)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_GRACE)
    try:
        _Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
