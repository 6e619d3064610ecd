"""The goldens on a GPU, within the bounds of test_goldens.py: its own tests, on models that live there.

Nothing here turns TF32 off, which would leave ten bits of every product: the engine does.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.engine.device.capabilities import no_e4m3
from flashjanus.engine.graph import Graph
from flashjanus.engine.plan import lower
from flashjanus.engine.runtime.cuda import open_gpu
from flashjanus.engine.runtime.executor import Executor
from model import test_goldens as goldens
from model.conftest import Case, Golden, draw, golden_json, preferring, thin_model
from model.test_goldens_int8 import quantized
from seeded import seeded_state_dict
from small_model import relative_error, small_config, small_state

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CUDA = torch.device("cuda", 0)
# What serves: the plan's own choice; torch alone; Triton wherever it can, also where a CUDA kernel is preferred.
FIRST = [None, "torch", "triton"]
chat, greedy = goldens.chat, goldens.greedy


@pytest.fixture(autouse=True)
def compared_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(goldens, "relative_error", lambda got, expected: relative_error(got.cpu(), expected))


@pytest.fixture(scope="module")
def thin(thin_state: dict[str, torch.Tensor]) -> Callable[..., JanusFlow]:
    @cache
    def built(dtype: str, numerics: str, first: str | None) -> JanusFlow:
        return thin_model(thin_state, dtype, numerics, first, "cuda")

    return lambda dtype, numerics="exact", first=None: built(dtype, numerics, first)  # one key for one model


@pytest.fixture(scope="module")
def run_case(thin: Callable[..., JanusFlow], generation: Golden) -> Callable[..., Case]:
    cases = {case["name"]: case for case in json.loads(generation.metadata["cases"])}

    @cache
    def run(name: str, dtype: str, numerics: str = "exact", first: str | None = None) -> Case:
        case = cases[name]
        z1, trace = thin(dtype, numerics, first).sample_latents(
            input_ids=[generation[f"{name}.input_ids"]] * case["batch"],
            noise=generation[f"{name}.z0"],
            guidance_scale=case["cfg_weight"],
            num_inference_steps=case["steps"],
            trace=True,
        )
        return Case(case["steps"], z1.cpu(), trace)

    return run


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_fp32_velocities_and_latents(run_case, generation, name, first):
    goldens.test_fp32_velocities_and_latents(run_case, generation, name, first)


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_bf16_loses_at_most_half_of_what_the_official_run_loses(run_case, generation, name):
    goldens.test_bf16_loses_at_most_half_of_what_the_official_run_loses(run_case, generation, name)


@pytest.mark.parametrize(("name", "share"), [("a", 0.5), ("b", 0.5), ("c", 0.85)])
def test_official_numerics_land_near_the_official_bf16_run(run_case, generation, name, share):
    goldens.test_official_numerics_land_near_the_official_bf16_run(run_case, generation, name, share)


def run_graph(g: Graph, weights: dict[str, torch.Tensor], **inputs: torch.Tensor) -> SimpleNamespace:
    executor = Executor(lower(g, {}, CUDA), weights, gpu=open_gpu(CUDA))
    for name, value in inputs.items():
        executor.host[name].copy_(value)
    executor.upload()
    executor.run()
    return SimpleNamespace(outputs={name: value.cpu() for name, value in executor.outputs.items()})


@pytest.mark.parametrize("test", [goldens.test_generation_encoder, goldens.test_generation_decoder])
def test_generation_stages(monkeypatch, thin, stages, test):
    monkeypatch.setattr(goldens, "run_graph", run_graph)
    test(thin, stages)


def test_understanding_encoder(thin, stages):
    goldens.test_understanding_encoder(thin, stages)


@pytest.mark.parametrize("first", FIRST)
def test_vae(vae_golden, first):
    config = small_config()
    model = JanusFlow.from_state_dict(
        config,
        small_state(config),
        vae_config=golden_json("vae_thin.config"),
        vae_state_dict=seeded_state_dict(golden_json("vae_thin.manifest"), prefix="vae."),
        device="cuda",
        dtype="float32",
        implementations=preferring(first),
    )
    goldens.test_vae(lambda first: model, vae_golden, first)


@pytest.mark.parametrize("first", FIRST)
def test_last_logits(thin, understanding, chat, first):
    goldens.test_last_logits(thin, understanding, chat, first)


@pytest.mark.parametrize("first", FIRST)
def test_greedy_tokens_of_the_left_padded_batch(thin, understanding, chat, greedy, first):
    goldens.test_greedy_tokens_of_the_left_padded_batch(thin, understanding, chat, greedy, first)


@pytest.mark.parametrize("row", [0, 1])
def test_greedy_tokens_of_a_row_alone_and_padded_on_the_right(thin, understanding, chat, greedy, row):
    goldens.test_greedy_tokens_of_a_row_alone_and_padded_on_the_right(thin, understanding, chat, greedy, row)


def test_bf16_tokens_leave_the_golden_only_where_two_are_as_good(thin, understanding, chat, greedy):
    goldens.test_bf16_tokens_leave_the_golden_only_where_two_are_as_good(thin, understanding, chat, greedy)


def test_bf16_logits(thin, understanding, chat):
    goldens.test_bf16_logits(thin, understanding, chat)


@pytest.mark.parametrize(("quantization", "share"), [("int8", 1.0), ("fp8", 2.0)])
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_latents_in_8_bits(thin_state, generation, quantization, share, name):
    """Within that share of the official bf16 run's error, as on the CPU (test_goldens_int8.py)."""
    reason = no_e4m3(CUDA) if quantization == "fp8" else None
    if reason:
        pytest.skip(reason)
    z1 = generation[f"{name}.z1"]
    got = draw(quantized(thin_state, quantization, device="cuda"), generation, name).z1
    assert relative_error(got.cpu(), z1) <= share * relative_error(generation[f"{name}.z1_bf16"], z1)
