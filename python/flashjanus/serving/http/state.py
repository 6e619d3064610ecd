"""What every endpoint has at hand."""

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
    """Of one application. draining: it takes no more requests."""

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
        """Of the model. Raises UnavailableError."""
        return self.engine.facts

    @property
    def names(self) -> tuple[str, ...]:
        """Of the model; the first is shown."""
        return tuple(dict.fromkeys((*self.settings.names, self.facts.name)))

    def name(self, asked: str | None) -> str:
        """The model's name as it was asked for. Raises ApiError where that is another model."""
        names = self.names
        if asked is not None and asked not in names:
            words = f"model: expected {' or '.join(map(repr, names))}, got {asked!r:.80}"
            raise ApiError(404, words, "model_not_found", "model")
        return asked or names[0]


def state_of(request: Request) -> State:
    """The application's."""
    state: State = request.app.state.serving
    return state
