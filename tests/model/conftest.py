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


@pytest.fixture(scope="session")
def thin(thin_state: dict[str, torch.Tensor]) -> ThinModel:
    """thin(dtype, numerics): the model in that dtype."""

    @cache
    def build(dtype: str, numerics: str = "exact") -> JanusFlow:
        return JanusFlow.from_state_dict(
            golden_json("thin.config"), thin_state, device="cpu", dtype=dtype, numerics=numerics
        )

    return build


@dataclass(frozen=True)
class Case:
    """One run of a generation golden: latents z1, and per step z, v_cond and v_uncond."""

    steps: int
    z1: torch.Tensor
    trace: list[dict[str, torch.Tensor]]


@pytest.fixture(scope="session")
def run_case(thin: ThinModel, generation: Golden) -> Callable[..., Case]:
    """run_case(name, dtype, numerics): a generation golden, run once per session."""
    cases = {case["name"]: case for case in json.loads(generation.metadata["cases"])}

    @cache
    def run(name: str, dtype: str, numerics: str = "exact") -> Case:
        case = cases[name]
        ids = generation[f"{name}.input_ids"]
        assert len(ids) == case["prompt_tokens"] + 1
        z1, trace = thin(dtype, numerics).sample_latents(
            input_ids=[ids] * case["batch"],
            noise=generation[f"{name}.z0"],
            guidance_scale=case["cfg_weight"],
            num_inference_steps=case["steps"],
            trace=True,
        )
        return Case(case["steps"], z1, trace)

    return run


@pytest.fixture(scope="session")
def thin_vae() -> JanusFlow:
    """The golden's VAE in float32, beside the smallest model that takes it."""
    config = small_config()
    return JanusFlow.from_state_dict(
        config,
        small_state(config),
        vae_config=golden_json("vae_thin.config"),
        vae_state_dict=seeded_state_dict(golden_json("vae_thin.manifest"), prefix="vae."),
        device="cpu",
        dtype="float32",
    )
