"""Random models: the tensors of the official checkpoints, drawn one at a time, the same each time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from flashjanus.checkpoint import JanusFlowConfig, VaeConfig, weight_layout
from flashjanus.errors import InputError
from flashjanus.measure.bench.models import SeededState, configs, random_model, sibling

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.mark.parametrize("size", ["full", "thin"])
def test_the_tensors_are_those_of_the_official_model(size: str) -> None:
    state = SeededState(weight_layout(JanusFlowConfig.from_dict(configs(size)[0])), torch.bfloat16)
    manifest = json.loads((GOLDEN / f"{size}.manifest.json").read_text())
    unused = ("vision_und_enc_model.vision_tower.attn_pool.",)
    wanted = {name: math.prod(shape) for name, shape in manifest.items() if not name.startswith(unused)}
    assert {name: math.prod(shape) for name, shape in state.shapes.items()} == wanted


def test_thin_is_the_model_of_the_goldens() -> None:
    golden = json.loads((GOLDEN / "thin.config.json").read_text())
    assert JanusFlowConfig.from_dict(configs("thin")[0]) == JanusFlowConfig.from_dict(golden)


@pytest.mark.parametrize("size", ["full", "thin", "shapes"])
def test_the_vae_fits(size: str) -> None:
    config, vae = configs(size)
    VaeConfig.from_dict(vae).check_fits(JanusFlowConfig.from_dict(config))


def test_configs_are_copies() -> None:
    configs("full")[0]["language_config"]["hidden_size"] = 1
    assert configs("full")[0]["language_config"]["hidden_size"] == 2048


def test_an_unknown_size() -> None:
    with pytest.raises(InputError, match="full, thin, shapes, got 'huge'"):
        configs("huge")


def test_tensors_are_drawn_when_asked_for() -> None:
    state = SeededState(weight_layout(JanusFlowConfig.from_dict(configs("shapes")[0])), torch.bfloat16)
    name = "language_model.lm_head.weight"
    assert all(t.device.type == "meta" for _, t in state.items())
    assert torch.equal(state[name], state[name])
    assert state[name] is not state[name]
    assert float(state[name].float().var()) == pytest.approx(1 / 256, rel=0.05)
    norm = state["language_model.model.norm.weight"].float()
    assert 0.8 < float(norm.min()) <= float(norm.max()) < 1.2


def test_a_random_model_draws_something_finite() -> None:
    model = random_model("shapes", device="cpu", dtype="float32")
    assert model.name == "random shapes"
    latents = model.sample_latents([[0, 30, 3]], torch.randn(1, 4, 8, 8), num_inference_steps=2)
    assert bool(model.decode_latents(latents).isfinite().all())
    other = sibling(model, {"linear": "torch"})
    assert other.runner.weights["llm.head"] is model.runner.weights["llm.head"]
    assert {n.implementation.name for n in other.plan("flow_step").nodes if n.op == "linear"} == {"torch"}
