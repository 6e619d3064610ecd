"""The OpenAPI description of the application, including the bodies that endpoints parse themselves."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.responses import HTMLResponse, Response

from flashjanus.serving.http import docs

SCHEMAS = "#/components/schemas/{model}"


class Description:
    """Builds the description. keys: whether requests need an API key."""

    def __init__(self, app: FastAPI, keys: bool) -> None:
        self._app, self._keys = app, keys
        self._schemas: dict[str, Any] = {}
        self._made: dict[str, Any] = {}

    def body(self, model: type[BaseModel]) -> dict[str, Any]:
        """The description of a request body. Raises ValueError if two schemas share a name."""
        schema = model.model_json_schema(ref_template=SCHEMAS)
        for name, one in {**schema.pop("$defs", {}), model.__name__: schema}.items():
            if self._schemas.setdefault(name, one) != one:
                raise ValueError(f"{name}: expected one kind of values with this name, got two")
        content = {"application/json": {"schema": {"$ref": SCHEMAS.format(model=model.__name__)}}}
        return {"requestBody": {"required": True, "content": content}}

    def openapi(self) -> dict[str, Any]:
        """Build the description once, when all paths have been added."""
        if not self._made:
            app = self._app
            made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            components = made.setdefault("components", {})
            components["schemas"] = {**self._schemas, **components.get("schemas", {})}
            if self._keys:
                components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                made["security"] = [{"key": []}]
            self._made = made
        return self._made

    async def page(self, request: Request) -> Response:
        """The description as an HTML page."""
        policy = "default-src 'none'; style-src 'unsafe-inline'"
        return HTMLResponse(docs.page(self.openapi()), headers={"content-security-policy": policy})
