"""Runs an application until it is told to stop; it then refuses new requests, finishes the running ones, and exits."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from flashjanus.errors import InputError
from flashjanus.serving.http.connections import end_stuck
from flashjanus.serving.http.logs import LOG
from flashjanus.serving.http.state import State

KEEP_ALIVE = 75
"""Seconds that a connection may stay open without a request."""
LEAVE = 5
"""Seconds that connections get to close once no request runs, because a page in a browser keeps its own open."""
TICK = 0.05


class Server(uvicorn.Server):
    """A uvicorn server that drains first on SIGTERM or Ctrl-C, and exits at once on a second signal. begun: called
    when the server accepts connections."""

    def __init__(self, app: FastAPI, begun: Callable[[], None] = lambda: None) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=LEAVE,
            timeout_keep_alive=KEEP_ALIVE,
            h11_max_incomplete_event_size=65_536,
        )
        super().__init__(config)
        self._state: State = app.state.serving
        self._begun = begun
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal. This runs in the main thread, as does the loop."""
        if self._state.draining:
            self.force_exit = self.should_exit = True
            return
        LOG.info("draining", extra={"fields": {"signal": signal.Signals(sig).name}})
        self.stop()

    def stop(self) -> None:
        """Drain, then exit. Any thread may call this."""
        self._state.draining = True
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._draining = self._draining or asyncio.ensure_future(self._drained())

    async def _drained(self) -> None:
        ends = time.monotonic() + self._state.settings.drain
        done = await self._state.engine.drain(self._state.settings.drain)
        if not done:
            LOG.warning("requests still run after the time to drain, and now fail")
            await self._state.engine.aclose()
        while self._state.meters.open and time.monotonic() < ends:  # clients have yet to read what has been drawn
            await asyncio.sleep(TICK)
        self.should_exit = True

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        watch = end_stuck(self.server_state.connections, self._state.settings.stall, KEEP_ALIVE + LEAVE)
        self._watching = asyncio.ensure_future(watch)
        if self.started:
            self._begun()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self._watching.cancel()


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address; port 0 picks any free port. Raises InputError."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, proto)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
        except OSError:
            made.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        raise InputError(f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}") from error
    return made


def url_of(listening: socket.socket) -> str:
    """The URL of the server on a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_local(listening: socket.socket) -> bool:
    """Whether only this machine can reach the socket."""
    return ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback
