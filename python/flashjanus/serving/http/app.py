"""The application: its paths, its errors, its description."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from flashjanus import __version__
from flashjanus.errors import FlashJanusError
from flashjanus.serving.async_engine import AsyncEngine
from flashjanus.serving.http import chat, images, pages
from flashjanus.serving.http.errors import ApiError, ErrorBody, plain, told
from flashjanus.serving.http.metrics import Meters
from flashjanus.serving.http.middleware import GONE, Guard, note
from flashjanus.serving.http.schemas import ChatBody, ImageBody
from flashjanus.serving.http.settings import Settings
from flashjanus.serving.http.state import State

SCHEMAS = "#/components/schemas/{model}"
Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(engine: AsyncEngine, settings: Settings | None = None) -> FastAPI:
    """An ASGI application that serves `engine`, which whoever calls this closes; `app.state.serving` is its `State`."""
    settings = settings or Settings()
    app = FastAPI(
        title="FlashJanus",
        version=__version__,
        description="JanusFlow behind OpenAI's interface: images of prompts, answers about images.",
        middleware=[],
        redirect_slashes=False,
    )
    state = State(engine, settings, Meters(engine.stats, lambda: app.state.serving.ready))
    app.state.serving = state
    layers = [Middleware(Guard, settings=settings, meters=state.meters)]
    if settings.origins:
        layers.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.origins,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=["x-request-id"],
            )
        )
    app.user_middleware[:0] = layers
    for kind in (ApiError, FlashJanusError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, _told)
    _add(app, "POST", "/v1/images/generations", images.generations, ImageBody)
    _add(app, "POST", "/v1/chat/completions", chat.completions, ChatBody)
    _add(app, "GET", "/v1/models", pages.models)
    _add(app, "GET", "/v1/models/{model:path}", pages.model)
    _add(app, "GET", "/health/live", pages.live)
    _add(app, "GET", "/health/ready", pages.ready)
    _add(app, "GET", "/metrics", pages.metrics)
    return app


def _add(app: FastAPI, method: str, path: str, endpoint: Endpoint, body: type[BaseModel] | None = None) -> None:
    """A path, with the body that its endpoint reads in the description."""
    more: dict[str, Any] = {}
    statuses = [401, 405] if body is None else [400, 401, 404, 408, 413, 415, 429, 500, 503, 504]
    if body is not None:
        schema = body.model_json_schema(ref_template=SCHEMAS)
        schema.pop("$defs", None)
        more["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        app.state.serving.meters.known(path)
    app.add_api_route(
        path,
        endpoint,
        methods=[method],
        response_model=None,
        responses={status: {"model": ErrorBody} for status in statuses},
        openapi_extra=more,
    )


async def _told(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        note(request.scope, code="client_gone")
        return Response(status_code=GONE)
    if isinstance(error, HTTPException):
        said = plain(error.status_code, None if error.status_code != 404 else f"there is no {request.url.path:.200}")
    elif isinstance(error, FlashJanusError):
        said = told(error)
    else:
        assert isinstance(error, ApiError)
        said = error
    note(request.scope, code=said.code)
    headers = {**said.headers, **dict(getattr(error, "headers", None) or {})}
    return JSONResponse(said.body, said.status, headers)
