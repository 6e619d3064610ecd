"""Shared by all tests: a model cache of their own, and the built-in model, loaded once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flashjanus import JanusFlow


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor write the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLASHJANUS_CACHE", str(tmp_path_factory.mktemp("flashjanus-cache")))
        yield


@pytest.fixture(scope="session")
def shapes(own_cache: None) -> JanusFlow:
    """The built-in model in float32."""
    return JanusFlow.from_pretrained("shapes", device="cpu", dtype="float32")
