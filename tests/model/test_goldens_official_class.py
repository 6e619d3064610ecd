"""The official class's own loop and calls against recorded outputs of the official implementation."""

from __future__ import annotations

import json

import flashjanus
import pytest
import torch
from flashjanus.compat import checkpoints
from flashjanus.compat.janusflow import MultiModalityCausalLM
from model.conftest import golden_json
from model.test_goldens import FP32, GREEDY, T, pixels
from official_calls import official_loop, on_the_engine
from small_model import relative_error


@pytest.fixture(scope="module")
def official(thin_state) -> MultiModalityCausalLM:
    model = checkpoints.empty(MultiModalityCausalLM, golden_json("thin.config"))
    model.load_state_dict(thin_state, assign=True)
    return model.eval()


@pytest.mark.parametrize("name", [pytest.param("b", marks=pytest.mark.long), "c"])
def test_its_loop_draws_the_recorded_latents(official, generation, name):
    case = next(case for case in json.loads(generation.metadata["cases"]) if case["name"] == name)
    assert case["pad_id"] == 2
    with on_the_engine():
        z1 = official_loop(
            official,
            generation[f"{name}.input_ids"],
            generation[f"{name}.z0"],
            case["steps"],
            case["cfg_weight"],
        )
    assert relative_error(z1, generation[f"{name}.z1"]) <= FP32


def test_it_answers_with_the_recorded_tokens(official, understanding):
    meta = understanding.metadata
    with on_the_engine():
        embeds = official.prepare_inputs_embeds(
            input_ids=understanding["input_ids"],
            pixel_values=pixels(int(meta["pixel_seed"]), 2, 1, 3, 384, 384),
            images_seq_mask=understanding["images_seq_mask"],
            images_emb_mask=torch.ones(2, 1, 577, dtype=torch.bool),
        )
        out = official.language_model.generate(
            inputs_embeds=embeds,
            attention_mask=understanding["attention_mask"],
            max_new_tokens=GREEDY,
            pad_token_id=int(meta["eos_id"]),
            return_dict_in_generate=True,
            output_logits=True,
        )
    assert relative_error(out.logits[0], understanding["last_logits"]) <= FP32
    assert torch.equal(out.sequences, understanding["generated"])


@torch.no_grad()
def test_its_modules_give_the_recorded_stages(official, stages):
    x, t_emb, hs = official.vision_gen_enc_model(stages["gen_enc.z"], torch.tensor([T]))
    assert relative_error(x, stages["gen_enc.x"]) <= FP32
    assert relative_error(t_emb, stages["gen_enc.t_emb"]) <= FP32
    assert relative_error(official.vision_gen_dec_model(stages["gen_dec.h"], hs, t_emb), stages["gen_dec.v"]) <= FP32
    features = official.vision_und_enc_model(pixels(int(stages["und_enc.pixel_seed"]), 1, 3, 384, 384))
    assert relative_error(features[:, ::16], stages["und_enc.features"]) <= FP32


@pytest.mark.long
def test_accelerate_shares_its_memory(official, generation):
    fast = flashjanus.accelerate(official)
    assert fast.report.share > 0.9
    ids, noise = generation["c.input_ids"], generation["c.z0"]
    assert relative_error(fast.sample_latents([ids], noise, 2.0, 2), generation["c.z1"]) <= FP32
