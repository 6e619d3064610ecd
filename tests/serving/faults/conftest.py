"""A server for all tests of a file, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from flashjanus.scheduling import Limits
from serving_app import SECONDS, Served, served
from serving_clients import until_idle


@pytest.fixture(scope="module")
def module_server() -> Iterator[Served]:
    with served(Limits(images=4, answers=4), drain=1.0) as one:
        yield one


@pytest.fixture
def server(module_server: Served) -> Iterator[Served]:
    """After each test it holds nothing."""
    yield module_server
    until_idle(module_server)


@pytest.fixture
def web(server: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=SECONDS) as made:
        yield made
