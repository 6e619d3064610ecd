"""The thin model of the goldens: real widths, two layers, seeded weights. Drawn once, run as few times as possible."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.engine.ops import all_ops
from safetensors import safe_open
from safetensors.torch import load_file
from seeded import seeded_state_dict
from small_model import small_config, small_state

GOLDEN = Path(__file__).parents[1] / "golden"


@dataclass(frozen=True)
class Golden:
    """Tensors and metadata of one golden file."""

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]


@cache
def golden(name: str) -> Golden:
    path = GOLDEN / f"{name}.safetensors"
    with safe_open(path, framework="pt") as file:
        return Golden(load_file(path), file.metadata() or {})


@cache
def golden_json(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def generation() -> Golden:
    return golden("generate")


@pytest.fixture(scope="session")
def stages() -> Golden:
    return golden("stages")


@pytest.fixture(scope="session")
def understanding() -> Golden:
    return golden("understand")


@pytest.fixture(scope="session")
def vae_golden() -> Golden:
    return golden("vae")


@pytest.fixture(scope="session")
def thin_state() -> dict[str, torch.Tensor]:
    return seeded_state_dict(golden_json("thin.manifest"))


ThinModel = Callable[..., JanusFlow]


def preferring(first: str | None) -> dict[str, list[str]] | None:
    """Every op that has `first` runs on it, and on torch where it refuses."""
    if first is None:
        return None
    return {op.name: [first, "torch"] for op in all_ops().values() if first in op.implementations}


def thin_model(
    state: dict[str, torch.Tensor], dtype: str, numerics: str, first: str | None, device: str = "cpu"
) -> JanusFlow:
    return JanusFlow.from_state_dict(
        golden_json("thin.config"),
        state,
        device=device,
        dtype=dtype,
        numerics=numerics,
        implementations=preferring(first),
    )


@pytest.fixture(scope="session")
def thin(thin_state: dict[str, torch.Tensor]) -> ThinModel:
    """thin(dtype, numerics, first): the model in that dtype; `first`: this implementation wherever it can serve."""

    @cache
    def built(dtype: str, numerics: str, first: str | None) -> JanusFlow:
        return thin_model(thin_state, dtype, numerics, first)

    return lambda dtype, numerics="exact", first=None: built(dtype, numerics, first)  # one key for one model


@dataclass(frozen=True)
class Case:
    """One run of a generation golden: latents z1, and per step z, v_cond and v_uncond."""

    steps: int
    z1: torch.Tensor
    trace: list[dict[str, torch.Tensor]]


def draw(model: JanusFlow, generation: Golden, name: str) -> Case:
    """A generation golden's request, run by `model`."""
    case = next(case for case in json.loads(generation.metadata["cases"]) if case["name"] == name)
    ids = generation[f"{name}.input_ids"]
    assert len(ids) == case["prompt_tokens"] + 1
    z1, trace = model.sample_latents(
        input_ids=[ids] * case["batch"],
        noise=generation[f"{name}.z0"],
        guidance_scale=case["cfg_weight"],
        num_inference_steps=case["steps"],
        trace=True,
    )
    return Case(case["steps"], z1, trace)


@pytest.fixture(scope="session")
def run_case(thin: ThinModel, generation: Golden) -> Callable[..., Case]:
    """run_case(name, dtype, numerics, first): a generation golden, run once per session."""

    @cache
    def run(name: str, dtype: str, numerics: str = "exact", first: str | None = None) -> Case:
        return draw(thin(dtype, numerics, first), generation, name)

    return run


def thin_vae_model(first: str | None) -> JanusFlow:
    config = small_config()
    return JanusFlow.from_state_dict(
        config,
        small_state(config),
        vae_config=golden_json("vae_thin.config"),
        vae_state_dict=seeded_state_dict(golden_json("vae_thin.manifest"), prefix="vae."),
        device="cpu",
        dtype="float32",
        implementations=preferring(first),
    )


@pytest.fixture(scope="session")
def thin_vae() -> Callable[..., JanusFlow]:
    """thin_vae(first): the golden's VAE in float32, beside the smallest model that takes it; `first` as for `thin`."""
    built = cache(thin_vae_model)
    return lambda first=None: built(first)  # one key for one model
