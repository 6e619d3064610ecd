"""Endpoints that report the server's model, health and metrics."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from flashjanus.serving.http.errors import ApiError
from flashjanus.serving.http.state import State, state_of


def _model(state: State, name: str) -> dict[str, Any]:
    facts, source = state.facts, state.adapters.get(name)
    size = None if facts.image_size is None else "x".join(map(str, facts.image_size[::-1]))
    return {
        "id": name,
        "object": "model",
        "created": state.created,
        "owned_by": "flashjanus",
        "root": facts.name if source is None else source,
        "parent": None if source is None else state.names[0],
        "max_model_len": facts.context,
        "image_size": size,
        "dtype": facts.dtype,
        "quantization": facts.quantization,
        "device": facts.device,
        "version": facts.version,
    }


async def models(request: Request) -> Response:
    """List the names by which requests may call the model, and its adapters as models whose parent it is."""
    state = state_of(request)
    return JSONResponse({"object": "list", "data": [_model(state, name) for name in (*state.names, *state.adapters)]})


async def model(request: Request) -> Response:
    """Describe one of the model's names, or an adapter."""
    state = state_of(request)
    return JSONResponse(_model(state, state.name(request.path_params["model"])))


async def live(request: Request) -> Response:
    """Report that the server is running."""
    return JSONResponse({"status": "live"})


async def ready(request: Request) -> Response:
    """Report that the server can serve a request now; 503 if it cannot, with the code "loading" while it loads its
    model."""
    state = state_of(request)
    if not state.ready:
        words = "the server is shutting down" if state.draining else "the engine is not available"
        words, code = ("loading the model", "loading") if state.loading else (words, "unavailable")
        raise ApiError(503, f"not ready: {words}", code, headers={"retry-after": "2"})
    return JSONResponse({"status": "ready"})


async def metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    return Response(state_of(request).meters.text(), headers={"content-type": CONTENT_TYPE_LATEST})
