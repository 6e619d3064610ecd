"""Connects to a Ray cluster and disconnects from it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TextIO

import ray

from flashjanus.errors import InputError

REACH = 5.0
"""Seconds within which a cluster has to accept a connection."""


@contextmanager
def connected(address: str) -> Iterator[TextIO]:
    """Connect to a cluster. address: HOST:PORT, "auto" for the cluster that this machine is part of, or "local" for a
    new one on this machine.

    Raises InputError if there is no such cluster. An existing connection is used and stays open. Within the block,
    stdout is redirected to stderr, because Ray prints messages about dead actors and stdout carries results. Yields the
    original stdout.
    """
    if ray.is_initialized():
        yield sys.stdout
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _reach(address)
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (ConnectionError, ValueError) as error:
        raise InputError(
            f"--ray: expected the address of a Ray cluster, auto or local, got {address!r}: {error}"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray's handler would end the process without a word
    out = sys.stdout
    with redirect_stdout(sys.stderr):
        try:
            yield out
        finally:
            ray.shutdown()


def _reach(address: str) -> None:
    """Check that a cluster answers, because Ray waits minutes for one that does not. Raises InputError."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "://" in address:
        raise InputError(f"--ray: expected HOST:PORT, auto or local, got {address!r}; run the command on a node")
    try:
        socket.create_connection((host, int(port)), REACH).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"--ray: there is no Ray cluster at {address}: {error}") from error
