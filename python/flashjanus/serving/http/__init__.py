"""OpenAI's HTTP API for an `AsyncEngine`: `create_app(engine, settings)` returns an ASGI application."""

from flashjanus.serving.http.app import create_app
from flashjanus.serving.http.settings import Settings

__all__ = ["Settings", "create_app"]
