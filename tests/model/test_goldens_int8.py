"""How far int8 is from the goldens: with AMX weights and activations in 8 bits, elsewhere the weights alone."""

from __future__ import annotations

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.engine.runtime import native
from flashjanus.pipeline.text import ImageTokens
from model.conftest import Golden, draw, golden_json
from model.test_goldens import GREEDY, pixels
from small_model import relative_error

needs_amx = pytest.mark.skipif(native.amx_available() is not None, reason=str(native.amx_available()))


@pytest.fixture(
    scope="module", params=[pytest.param(None, marks=needs_amx, id="W8A8"), pytest.param("torch", id="W8A16")]
)
def int8(thin_state: dict[str, torch.Tensor], request: pytest.FixtureRequest) -> JanusFlow:
    return JanusFlow.from_state_dict(
        golden_json("thin.config"),
        thin_state,
        device="cpu",
        dtype="bfloat16",
        quantization="int8",
        implementations=None if request.param is None else {"linear": request.param},
    )


# Measured, as a share of the official bf16 run's error, W8A8 and W8A16 (bfloat16 alone): a 0.20 and 0.14 (0.10),
# b 0.37 and 0.19 (0.16), c 0.80 and 0.64 (0.48).
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_latents_are_nearer_than_those_of_the_official_bf16_run(int8: JanusFlow, generation: Golden, name: str) -> None:
    z1 = generation[f"{name}.z1"]
    official = relative_error(generation[f"{name}.z1_bf16"], z1)
    assert relative_error(draw(int8, generation, name).z1, z1) <= official


# Steps of row 0 at which float32's two likeliest tokens are within 1% of the largest logit (0.51%, 0.32%); behind the
# golden's tokens, int8 was measured to choose another one at step 0 alone: 23 of 24 agree, W8A8 and W8A16.
NEAR_TIES = {(0, 0), (0, 2)}


def test_tokens_leave_the_golden_only_where_two_are_as_good(int8: JanusFlow, understanding: Golden) -> None:
    """Every second token, each behind the golden's own; logits within 4% (measured: 3.1% W8A8, 2.2% W8A16)."""
    meta, golden = understanding.metadata, understanding["generated"]
    images = pixels(int(meta["pixel_seed"]), 2, 1, 3, 384, 384)
    tags = ImageTokens(start=int(meta["boi_id"]), image=int(meta["image_id"]))
    others = set()
    for at in range(0, GREEDY, 2):
        ids = torch.cat([understanding["input_ids"], golden[:, :at]], dim=1)
        mask = torch.cat([understanding["attention_mask"], torch.ones_like(golden[:, :at])], dim=1)
        logits = int8.next_token_logits(ids, mask, images, tags)
        others |= {(row, at) for row in range(2) if logits[row].argmax() != golden[row, at]}
        if at == 0:
            for got, expected in zip(logits, understanding["last_logits"], strict=True):
                assert relative_error(got, expected) <= 0.04
    assert others <= NEAR_TIES
