"""A small model, and a clock that moves by one second whenever it is read."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.checkpoint import VaeConfig, vae_layout
from small_model import small_config, small_state
from untrained_model import seeded_state

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="session")
def small() -> JanusFlow:
    vae = json.loads((GOLDEN / "vae_thin.config.json").read_text())
    state = seeded_state(vae_layout(VaeConfig.from_dict(vae)), torch.float32, "vae.")
    config = small_config()
    return JanusFlow.from_state_dict(
        config, small_state(config), vae_config=vae, vae_state_dict=state, device="cpu", dtype="float32"
    )


@pytest.fixture
def clock() -> Callable[[], float]:
    ticks = itertools.count()
    return lambda: float(next(ticks))
