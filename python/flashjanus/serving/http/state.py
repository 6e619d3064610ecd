"""State that every endpoint shares."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from flashjanus.errors import InputError
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
    def loading(self) -> bool:
        return not self.draining and self.engine.loading

    @property
    def facts(self) -> Facts:
        """The model's facts. Raises UnavailableError."""
        return self.engine.facts

    @property
    def names(self) -> tuple[str, ...]:
        """The model's own names; replies show the first."""
        return tuple(dict.fromkeys((*self.settings.names, self.facts.name)))

    @property
    def adapters(self) -> dict[str, str]:
        """The adapters that requests may ask for as a model, and where each was loaded from. One whose name is also
        the model's own can be named in the field `adapter` only."""
        own = self.names
        return {name: source for name, source in self.facts.adapters.items() if name not in own}

    def name(self, asked: str | None) -> str:
        """The name under which the request asked for the model or an adapter. Raises ApiError if there is no such
        name."""
        names = (*self.names, *self.adapters)
        if asked is not None and asked not in names:
            words = f"model: expected {' or '.join(map(repr, names))}, got {asked!r:.80}"
            raise ApiError(404, words, "model_not_found", "model")
        return asked or names[0]

    def adapted(self, model: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a request for `model`, with the adapter that this name stands for. Raises InputError if the
        options name another adapter."""
        if model not in self.adapters:
            return dict(options)
        given = options.get("adapter", model)
        if given not in (model, (model,)):
            raise InputError(f"adapter: expected {model!r} with this model, got {given!r:.80}; give one of the two")
        return {**options, "adapter": model}


def state_of(request: Request) -> State:
    """The state of the request's application."""
    state: State = request.app.state.serving
    return state
