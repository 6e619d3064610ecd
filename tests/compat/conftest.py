"""The small official model: on the engine, and on its torch modules."""

from __future__ import annotations

import pytest
from flashjanus.compat.janusflow import MultiModalityCausalLM
from official_calls import on_torch, small_official


@pytest.fixture(scope="module")
def model() -> MultiModalityCausalLM:
    return small_official()


@pytest.fixture(scope="module")
def slow(model) -> MultiModalityCausalLM:
    return on_torch(model)


@pytest.fixture(params=["engine", "torch"])
def either(request, model, slow) -> MultiModalityCausalLM:
    return model if request.param == "engine" else slow
