"""OpenAI's HTTP interface on an `AsyncEngine`: `create_app(engine, settings)` is an ASGI application."""

from flashjanus.serving.http.app import create_app
from flashjanus.serving.http.settings import Settings

__all__ = ["Settings", "create_app"]
