"""The page at /ui, with the limits and the keys of the interface beside it."""

from __future__ import annotations

from fastapi import FastAPI

from flashjanus.serving.http.access import is_known
from flashjanus.serving.http.schemas import MOST_IMAGES
from flashjanus.serving.http.state import State
from flashjanus.serving.ui import mount

PATH = "/ui"


def add_playground(app: FastAPI) -> None:
    """Serve the playground; where there are API keys, each is a password that opens it, with any name."""
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
    app.state.open += (PATH,)  # it asks for the key itself
