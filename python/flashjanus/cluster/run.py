"""Runs an application on Ray Serve for as long as a command runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import redirect_stdout

from ray import serve

from flashjanus.cluster.app import build
from flashjanus.cluster.arguments import Replicas
from flashjanus.cluster.connect import connected
from flashjanus.errors import UnavailableError

NAME = "flashjanus"
LOOK = 1.0
"""Seconds between checks of the application."""


def run(address: str, host: str, port: int, arguments: Replicas, begun: Callable[[], None]) -> None:
    """Serve until interrupted; the replicas then finish their requests. begun: called once requests are served.

    Raises UnavailableError if the application does not start, or ends by itself.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with connected(address) as out:
        serve.start(http_options={"host": host, "port": port})
        try:
            try:
                serve.run(build(arguments), name=NAME)
            except RuntimeError as error:
                raise UnavailableError(f"the application did not start: {error}") from error
            with redirect_stdout(out):
                begun()
            while (status := serve.status().applications[NAME]).status not in ("DEPLOY_FAILED", "NOT_STARTED"):
                time.sleep(LOOK)
            raise UnavailableError(f"the application has ended: {status.message}")
        finally:
            serve.delete(NAME)
            if address != "local" and not serve.status().applications:
                serve.shutdown()  # type: ignore[no-untyped-call]
