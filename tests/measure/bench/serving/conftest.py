"""A stub of a server on a socket of this machine."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from stub_endpoint import Stub, application


@pytest.fixture
def stub() -> Iterator[Stub]:
    made = Stub()
    server = uvicorn.Server(uvicorn.Config(application(made), log_level="warning", timeout_graceful_shutdown=1))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        made.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield made
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()
