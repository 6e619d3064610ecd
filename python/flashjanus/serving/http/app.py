"""The application: its paths, middleware and error handlers."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
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
from flashjanus.serving.http import chat, images, pages, responses
from flashjanus.serving.http.access import OPEN, Access
from flashjanus.serving.http.description import Description
from flashjanus.serving.http.errors import ApiError, ErrorBody, plain, told
from flashjanus.serving.http.metrics import CLIENT_GONE, Meters
from flashjanus.serving.http.middleware import Front, note
from flashjanus.serving.http.schemas import ChatBody, ImageBody
from flashjanus.serving.http.settings import Settings
from flashjanus.serving.http.state import State, state_of

REFUSALS = (400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504)
Endpoint = Callable[..., Awaitable[Response]]


def create_app(engine: AsyncEngine, settings: Settings | None = None) -> FastAPI:
    """Create an ASGI application that serves `engine`. The caller closes the engine; `app.state.serving` is the
    `State`."""
    settings = settings or Settings()
    app = FastAPI(
        title="FlashJanus",
        version=__version__,
        description="JanusFlow behind OpenAI's interface: images of prompts, answers about images.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    state = State(engine, settings, Meters(engine, lambda: state.ready))
    app.state.serving, app.state.open = state, OPEN
    description = app.state.description = Description(app, keys=bool(settings.keys))
    app.openapi = description.openapi  # type: ignore[method-assign]
    app.user_middleware[:] = _layers(settings, state.meters)
    for kind in (ApiError, FlashJanusError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, _told)
    add_post(app, "/v1/images/generations", images.generations, ImageBody)
    add_post(app, "/v1/chat/completions", chat.completions, ChatBody)
    add_post(app, "/v1/responses", responses.create, responses.ResponseBody)
    _add_get(app, "/v1/models", pages.models, 401, 403, 503)
    _add_get(app, "/v1/models/{model:path}", pages.model, 401, 403, 404, 503)
    _add_get(app, "/health/live", pages.live, 403)
    _add_get(app, "/health/ready", pages.ready, 403, 503)
    _add_get(app, "/metrics", pages.metrics, 401, 403, kind="text/plain")
    app.add_route("/docs", description.page, ["GET"], include_in_schema=False)
    return app


def add_post(app: FastAPI, path: str, endpoint: Endpoint, body: type[BaseModel]) -> None:
    """Add a path whose endpoint reads `body` itself (by body.read) and replies with JSON or with a stream of events."""
    description: Description = app.state.description
    app.state.serving.meters.known(path)
    app.add_api_route(
        path,
        endpoint,
        methods=["POST"],
        response_class=Response,
        responses=_replies(["application/json", "text/event-stream"], REFUSALS),
        openapi_extra=description.body(body),
    )


def _add_get(app: FastAPI, path: str, endpoint: Endpoint, *refusals: int, kind: str = "application/json") -> None:
    """Add a GET path. Names in braces match text, which the endpoint finds in `request.path_params`."""
    named = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"\{(\w+)", path)
    ]
    app.add_api_route(
        path,
        endpoint,
        methods=["GET"],
        response_class=Response,
        responses=_replies([kind], refusals),
        openapi_extra={"parameters": named} if named else None,
    )


def _replies(kinds: Sequence[str], refusals: Sequence[int]) -> dict[int | str, dict[str, Any]]:
    """The replies of a path, for the OpenAPI description."""
    return {200: {"content": {kind: {} for kind in kinds}}, **{status: {"model": ErrorBody} for status in refusals}}


def _layers(settings: Settings, meters: Meters) -> list[Middleware]:
    """The middleware, from the outermost inward."""
    layers = [Middleware(Front, meters=meters)]
    if settings.origins:
        options = dict[str, Any](allow_methods=["*"], allow_headers=["*"], expose_headers=["x-request-id"])
        layers.append(Middleware(CORSMiddleware, allow_origins=settings.origins, **options))
    return [*layers, Middleware(Access, settings=settings)]


async def _told(request: Request, error: Exception) -> Response:
    """Turn an endpoint's exception into a reply."""
    if isinstance(error, ClientDisconnect):
        request.scope["state"]["gone"] = True
        return Response(status_code=CLIENT_GONE)
    if isinstance(error, HTTPException):
        words = (
            f"there is no {request.url.path:.200} here; /docs lists what there is" if error.status_code == 404 else None
        )
        said = plain(error.status_code, words, error.headers)
    elif isinstance(error, FlashJanusError):
        said = told(error)
    else:
        assert isinstance(error, ApiError)
        said = error
    note(request.scope, code=said.code)
    headers = dict(said.headers)
    if said.code == "queue_full":
        headers["retry-after"] = str(state_of(request).meters.patience)
    return JSONResponse(said.body, said.status, headers)
