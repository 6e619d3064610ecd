"""A pipeline and a model of the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.compat import JanusFlowPipeline


@pytest.fixture(scope="session")
def pipe(untrained_folder: Path) -> JanusFlowPipeline:
    """In float32."""
    return JanusFlowPipeline.from_pretrained(untrained_folder, torch_dtype=torch.float32)


@pytest.fixture(scope="session")
def model(untrained: JanusFlow) -> JanusFlow:
    return untrained
