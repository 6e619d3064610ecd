"""OpenAI's interface on Ray Serve: `serve run flashjanus.cluster.app:build model=shapes max_replicas=4`."""

import asyncio
import logging
import time
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from flashjanus.api.janusflow import JanusFlow
from flashjanus.cluster.arguments import LEAVE, Arguments, Replicas
from flashjanus.errors import UnavailableError
from flashjanus.serving.async_engine import AsyncEngine
from flashjanus.serving.http import create_app

LOG = logging.getLogger("ray.serve")
STILL = 300.0
"""Seconds without a turn, while there is work, after which an engine counts as stuck. Making the plans of a new size
takes less."""
RETRY = 2.0
"""Seconds after which a refused client may try again."""


@serve.deployment
@serve.ingress()
class Server:
    """One replica: a model, its engine on its own thread, and the same application that the single server runs."""

    async def __init__(self, arguments: Replicas) -> None:  # type: ignore[misc]  # Serve awaits it
        self._settings = arguments.settings()
        if arguments.threads is not None:
            torch.set_num_threads(arguments.threads)
        model = await asyncio.to_thread(JanusFlow.from_pretrained, arguments.model, **arguments.choices())
        self._engine = AsyncEngine(model, arguments.limits())
        self._turns: Any = None
        self._at = time.monotonic()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._engine, self._settings)

    async def check_health(self) -> None:
        """Check the engine. Raises UnavailableError if it has ended or is stuck; Serve then starts another replica."""
        if not self._engine.ready:
            raise UnavailableError("the engine has ended")
        stats, now = self._engine.stats(), time.monotonic()
        busy = stats.queued + stats.image_rows + stats.answer_rows
        if not busy or stats.turns != self._turns:
            self._turns, self._at = dict(stats.turns), now
        if now - self._at > STILL:
            raise UnavailableError(
                f"the engine has made no progress for {now - self._at:.0f} s, with {busy} rows to do"
            )

    async def __del__(self) -> None:
        """Close the replica. Serve calls this after it has waited for the replica's requests, or as long as it was
        told to."""
        if hasattr(self, "_engine"):
            await self._engine.aclose()


def build(arguments: Arguments) -> Application:
    """Build an application from `Arguments`. Raises ValidationError for an argument that is unknown or out of range,
    and InputError for a bad file of API keys."""
    given: Any = arguments
    server: Any = Server
    settings = given.settings()
    application: Application = server.options(
        num_replicas=None,
        autoscaling_config={
            "min_replicas": given.min_replicas,
            "max_replicas": given.max_replicas,
            "target_ongoing_requests": given.target_ongoing_requests,
            "downscaling_factor": given.downscaling_factor,
            "upscale_delay_s": given.upscale_delay_s,
            "downscale_delay_s": given.downscale_delay_s,
        },
        max_ongoing_requests=given.max_ongoing_requests,
        max_queued_requests=given.max_queued_requests,
        backpressure_config={"status_code": 429, "retry_after_s": RETRY},
        graceful_shutdown_wait_loop_s=1.0,
        graceful_shutdown_timeout_s=settings.drain + LEAVE,
        health_check_period_s=10.0,
        ray_actor_options={"num_cpus": given.num_cpus, "num_gpus": given.num_gpus},
    ).bind(arguments)
    return application
