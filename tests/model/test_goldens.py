"""Agreement with recorded outputs of the official implementation, on weights that every machine draws the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flashjanus.checkpoint import weight_layout
from flashjanus.engine.graph import Graph
from flashjanus.engine.ops.flow_update import unpatchify
from flashjanus.engine.plan import lower
from flashjanus.engine.runtime.executor import Executor
from flashjanus.execution.text import ImageTokens
from flashjanus.model import Policy, uvit, weight_specs
from small_model import relative_error

FP32 = 2e-5
"""Relative difference of float32 results that sum in another order."""
T = 333.25
GREEDY = 24


def pixels(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


# What serves: the plan's own choice; torch alone; the native kernels wherever they can, also where they yield.
FIRST = [None, "torch", "native"]


@pytest.mark.parametrize(("name", "first"), [("a", None), ("b", None), ("c", None), ("c", "torch"), ("c", "native")])
def test_fp32_velocities_and_latents(run_case, generation, name, first):
    run = run_case(name, "float32", first=first)
    assert len(run.trace) == run.steps
    errors = {
        f"step{k}.{value}": relative_error(step[value], generation[f"{name}.step{k}.{value}"])
        for k, step in enumerate(run.trace)
        for value in ("z", "v_cond", "v_uncond")
    }
    errors["z1"] = relative_error(run.z1, generation[f"{name}.z1"])
    assert {key: error for key, error in errors.items() if not error <= FP32} == {}


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_bf16_loses_at_most_half_of_what_the_official_run_loses(run_case, generation, name):
    z1 = generation[f"{name}.z1"]
    official = relative_error(generation[f"{name}.z1_bf16"], z1)
    assert relative_error(run_case(name, "bfloat16").z1, z1) <= 0.5 * official


# Case c (one prompt token, two steps) stays so close to fp32 that its distance is made of the last rounding of z: the
# official code itself, run again on another machine, lands 0.786 of the same distance away from the recorded result
# (a: 0.235, b: 0.433). Exact numerics are at 0.99 or more in every case.
@pytest.mark.parametrize(("name", "share"), [("a", 0.5), ("b", 0.5), ("c", 0.85)])
def test_official_numerics_land_near_the_official_bf16_run(run_case, generation, name, share):
    official = generation[f"{name}.z1_bf16"].float()
    noise = (official - generation[f"{name}.z1"]).norm()
    assert float((run_case(name, "bfloat16", "official").z1 - official).norm()) <= share * float(noise)
    assert float((run_case(name, "bfloat16").z1 - official).norm()) > 0.9 * float(noise)


def stage_graph(config) -> tuple[Graph, Policy]:
    policy = Policy.of(torch.float32)
    return Graph("stage", weight_specs(weight_layout(config), policy, config.language)), policy


def run_graph(g: Graph, weights, **inputs: torch.Tensor) -> Executor:
    executor = Executor(lower(g, {}), weights)
    for name, value in inputs.items():
        executor.inputs[name].copy_(value)
    executor.run()
    return executor


def nhwc(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1)


def test_generation_encoder(thin, stages):
    model = thin("float32")
    g, policy = stage_graph(model.config)
    t_emb, table = uvit.time_tables(g, model.config, policy, g.input("t", (1, 1), torch.float32))
    z, step = g.input("z", (1, 4, 48, 48), torch.float32), g.state("step", (1,), torch.int32)
    g.output("t_emb", t_emb)
    g.output("x", uvit.encode(g, model.config, policy, z, table, step))
    outputs = run_graph(g, model.runner.weights, t=torch.tensor([[T]]), z=stages["gen_enc.z"]).outputs
    assert relative_error(outputs["t_emb"][0], stages["gen_enc.t_emb"]) <= FP32
    assert relative_error(outputs["x"], nhwc(stages["gen_enc.x"])) <= FP32


def test_generation_decoder(thin, stages):
    model = thin("float32")
    g, policy = stage_graph(model.config)
    h, skip = nhwc(stages["gen_dec.h"]), nhwc(stages["gen_enc.x"])
    _, table = uvit.time_tables(g, model.config, policy, g.input("t", (1, 1), torch.float32))
    inputs = g.input("h", (1, 576, 768), torch.float32), g.input("skip", (1, 24, 24, 768), torch.float32)
    g.output("v", uvit.decode(g, model.config, policy, *inputs, table, g.state("step", (1,), torch.int32)))
    run = run_graph(g, model.runner.weights, t=torch.tensor([[T]]), h=h.reshape(1, 576, 768), skip=skip)
    assert relative_error(unpatchify(run.outputs["v"], 4), stages["gen_dec.v"]) <= FP32


def test_understanding_encoder(thin, stages):
    executor = thin("float32").runner.executor("encode_images", I=1)
    executor.inputs["pixels"].copy_(pixels(int(stages["und_enc.pixel_seed"]), 1, 3, 384, 384))
    executor.run()
    assert relative_error(executor.outputs["hidden"][:, ::16], stages["und_enc.features"]) <= FP32


@pytest.mark.parametrize("first", FIRST)
def test_vae(thin_vae, vae_golden, first):
    assert relative_error(thin_vae(first).decode_latents(vae_golden["latent"]), vae_golden["image"]) <= FP32


@pytest.fixture(scope="module")
def chat(understanding) -> dict:
    """Arguments of the understanding golden: two left-padded rows, each with one image."""
    meta = understanding.metadata
    return dict(
        input_ids=understanding["input_ids"],
        attention_mask=understanding["attention_mask"],
        pixel_values=pixels(int(meta["pixel_seed"]), 2, 1, 3, 384, 384),
        image_tokens=ImageTokens(start=int(meta["boi_id"]), image=int(meta["image_id"])),
    )


@pytest.fixture(scope="module")
def greedy(understanding) -> dict:
    return dict(max_new_tokens=GREEDY, eos_token_id=int(understanding.metadata["eos_id"]))


@pytest.mark.parametrize("first", FIRST)
def test_last_logits(thin, understanding, chat, first):
    logits = thin("float32", first=first).next_token_logits(**chat)
    for got, expected in zip(logits, understanding["last_logits"], strict=True):
        assert relative_error(got, expected) <= FP32


@pytest.mark.parametrize("first", FIRST)
def test_greedy_tokens_of_the_left_padded_batch(thin, understanding, chat, greedy, first):
    model = thin("float32", first=first)
    assert torch.equal(model.generate_ids(**chat, **greedy), understanding["generated"])


@pytest.mark.parametrize("row", [0, 1])
def test_greedy_tokens_of_a_row_alone_and_padded_on_the_right(thin, understanding, chat, greedy, row):
    padding = 600 - int(chat["attention_mask"][0].sum())
    ids, mask = (chat[name][row : row + 1] for name in ("input_ids", "attention_mask"))
    if row == 0:  # the short one: its padding goes after it, with ids that would change it if they were read
        kept = mask.bool()
        ids = torch.cat([ids[kept], torch.full((padding,), 5)])[None]
        mask = torch.cat([mask[kept], torch.zeros(padding, dtype=mask.dtype)])[None]
    alone = dict(input_ids=ids, attention_mask=mask, pixel_values=chat["pixel_values"][row : row + 1])
    got = thin("float32").generate_ids(**alone, image_tokens=chat["image_tokens"], **greedy)
    assert torch.equal(got, understanding["generated"][row : row + 1])


def test_bf16_tokens_leave_the_golden_only_where_two_are_as_good(thin, understanding, chat, greedy):
    """In bf16 both rows start with the golden's 20 tokens; where one leaves them, fp32 puts both tokens within the
    rounding of bf16 logits: two roundings of 2^-8 of the largest logit each."""
    tokens = thin("bfloat16").generate_ids(**chat, **greedy)
    golden = understanding["generated"]
    assert torch.equal(tokens[:, :20], golden[:, :20])
    for row in range(2):
        apart = (tokens[row] != golden[row]).nonzero().flatten().tolist()
        if not apart:
            continue
        at = apart[0]
        context = torch.cat([chat["input_ids"][row], golden[row, :at]])[None]
        mask = torch.cat([chat["attention_mask"][row], torch.ones(at, dtype=torch.int64)])[None]
        image = dict(pixel_values=chat["pixel_values"][row : row + 1], image_tokens=chat["image_tokens"])
        logits = thin("float32").next_token_logits(context, mask, **image)[0]
        assert float(logits.max() - logits[tokens[row, at]]) <= 4 * 2**-8 * float(logits.abs().max())


def test_bf16_logits(thin, understanding, chat):
    logits = thin("bfloat16").next_token_logits(**chat)
    for got, expected in zip(logits, understanding["last_logits"], strict=True):
        assert relative_error(got, expected) <= 4 * 2**-8
