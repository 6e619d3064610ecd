"""The page at /ui, which shares the API's limits and keys."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.responses import RedirectResponse, Response

from flashjanus.serving.http.access import is_known
from flashjanus.serving.http.schemas import MOST_IMAGES
from flashjanus.serving.http.state import State
from flashjanus.serving.ui import mount

PATH = "/ui"


def add_playground(app: FastAPI) -> None:
    """Serve the playground. If there are API keys, any of them opens it as a password, with any user name."""
    state: State = app.state.serving
    settings = state.settings
    limits = {
        "num_images_per_prompt": MOST_IMAGES,
        "num_inference_steps": settings.max_steps,
        "max_new_tokens": settings.max_tokens,
        "best_of": settings.max_candidates,
    }
    most = {name: float(value) for name, value in limits.items() if value is not None}

    def may_enter(name: str, password: str) -> bool:
        return is_known(password.encode(), settings)

    auth = may_enter if settings.keys else None
    mount(app, state.engine, PATH, auth=auth, most=most, deadline=settings.deadline)
    app.add_route(PATH, _below, ["GET"], include_in_schema=False)
    app.state.open += (PATH,)  # it asks for the key itself


async def _below(request: Request) -> Response:
    """Redirect /ui to /ui/, where the page is mounted."""
    return RedirectResponse(f"{request.scope.get('root_path', '')}{PATH}/")
