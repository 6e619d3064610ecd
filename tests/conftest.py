"""Shared by all tests: the built-in model as it was before its training, loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest
from flashjanus import JanusFlow
from untrained_model import write_untrained_model


@pytest.fixture(scope="session")
def untrained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "untrained"
    write_untrained_model(folder)
    return folder


@pytest.fixture(scope="session")
def untrained(untrained_folder: Path) -> JanusFlow:
    """In float32."""
    return JanusFlow.from_pretrained(untrained_folder, device="cpu", dtype="float32")
