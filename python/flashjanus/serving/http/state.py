"""State that every endpoint shares."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from fastapi import Request

from flashjanus.serving.async_engine import AsyncEngine
from flashjanus.serving.http.errors import ApiError
from flashjanus.serving.http.metrics import Meters
from flashjanus.serving.http.settings import Settings
from flashjanus.serving.messages import Facts


@dataclass
class State:
    """The state of one application. draining: it accepts no more requests."""

    engine: AsyncEngine
    settings: Settings
    meters: Meters
    draining: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def ready(self) -> bool:
        return not self.draining and self.engine.ready

    @property
    def facts(self) -> Facts:
        """The model's facts. Raises UnavailableError."""
        return self.engine.facts

    @property
    def names(self) -> tuple[str, ...]:
        """The model's names; replies show the first."""
        return tuple(dict.fromkeys((*self.settings.names, self.facts.name)))

    def name(self, asked: str | None) -> str:
        """The name under which the request asked for the model. Raises ApiError if it names another model."""
        names = self.names
        if asked is not None and asked not in names:
            words = f"model: expected {' or '.join(map(repr, names))}, got {asked!r:.80}"
            raise ApiError(404, words, "model_not_found", "model")
        return asked or names[0]


def state_of(request: Request) -> State:
    """The state of the request's application."""
    state: State = request.app.state.serving
    return state
