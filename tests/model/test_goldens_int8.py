"""How far 8 bits are from the goldens: weights and activations (in AMX tiles, or by torch), weights alone, and fp8."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.engine.device import native
from flashjanus.execution.text import ImageTokens
from gpu_stand_in import stand_in
from model.conftest import Golden, draw, golden_json
from model.test_goldens import GREEDY, pixels
from small_model import relative_error

needs_amx = pytest.mark.skipif(native.amx_available() is not None, reason=str(native.amx_available()))


def quantized(
    state: dict[str, torch.Tensor], quantization: str, implementations: dict[str, str] | None = None, **options: str
) -> JanusFlow:
    return JanusFlow.from_state_dict(
        golden_json("thin.config"),
        state,
        dtype="bfloat16",
        quantization=quantization,
        implementations=implementations,
        **options,
    )


@pytest.fixture(scope="module", params=[pytest.param("tiles", marks=needs_amx), "W8A8", "W8A16"])
def int8(thin_state: dict[str, torch.Tensor], request: pytest.FixtureRequest) -> Iterator[JanusFlow]:
    """With AMX; as without it; and with activations as they are, as without VNNI."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "tiles":
            patch.setattr(native, "refuses_amx", lambda device, *dtypes: "left out here")
        forced = {"linear": "torch"} if request.param == "W8A16" else None
        yield quantized(thin_state, "int8", forced, device="cpu")


@pytest.fixture
def fp8(thin_state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> JanusFlow:
    """As on a GPU, by torch's implementations."""
    stand_in(monkeypatch)
    return quantized(thin_state, "fp8", device="cuda")


# Measured, as a share of the official bf16 run's error, W8A8 without tiles and W8A16 (bfloat16 alone): a 0.20 and 0.13
# (0.10), b 0.37 and 0.19 (0.16), c 0.77 and 0.62 (0.48).
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_latents_are_nearer_than_those_of_the_official_bf16_run(int8: JanusFlow, generation: Golden, name: str) -> None:
    z1 = generation[f"{name}.z1"]
    official = relative_error(generation[f"{name}.z1_bf16"], z1)
    assert relative_error(draw(int8, generation, name).z1, z1) <= official


# Steps at which float32's two likeliest tokens are within 1.2% of the largest |logit| (0.44, 0.32, 1.10 and 1.06%; the
# next is 2.2%), which is less than the logits' own error. After the golden's tokens, W8A8 without tiles was measured to
# choose another one at step 20 alone, and W8A16 at none but these.
NEAR_TIES = {(0, 0), (0, 2), (0, 8), (0, 20)}


def test_tokens_leave_the_golden_only_where_two_are_as_good(int8: JanusFlow, understanding: Golden) -> None:
    """Every second token, each after the golden's own, at most two others; logits within 4%.

    Measured: 3.1% in tiles (of weights rounded to bfloat16 first), 2.8% W8A8 without (whose last token runs on W8A16),
    2.2% W8A16.
    """
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
    assert len(others) <= 2


# e4m3 rounds to 1/16 of a value where int8 rounds to 1/254 of its row's largest: weights lose 2.6 % where int8 loses
# 0.8 %, and so do activations. Measured, as a share of the official bf16 run's error: a 0.44, b 0.74, c 1.87.
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_latents_of_fp8_are_within_twice_the_error_of_the_official_bf16_run(
    fp8: JanusFlow, generation: Golden, name: str
) -> None:
    plan = fp8.plan("flow_step", rows=1, prompt_tokens=8)
    layers = fp8.config.language.num_hidden_layers
    assert sum(node.op == "linear" and node.inputs[4] is not None for node in plan.nodes) == 4 * layers
    assert [node.op for node in plan.nodes].count("quantize_rows") == layers
    z1 = generation[f"{name}.z1"]
    official = relative_error(generation[f"{name}.z1_bf16"], z1)
    assert relative_error(draw(fp8, generation, name).z1, z1) <= 2 * official


def test_logits_of_fp8(fp8: JanusFlow, understanding: Golden) -> None:
    """Within 10%; the token of each row is float32's, or its second where the two are as good (so in row 0)."""
    meta = understanding.metadata
    images = pixels(int(meta["pixel_seed"]), 2, 1, 3, 384, 384)
    tags = ImageTokens(start=int(meta["boi_id"]), image=int(meta["image_id"]))
    logits = fp8.next_token_logits(understanding["input_ids"], understanding["attention_mask"], images, tags)
    for row, (got, expected) in enumerate(zip(logits, understanding["last_logits"], strict=True)):
        assert relative_error(got, expected) <= 0.1
        likeliest = expected.topk(2 if (row, 0) in NEAR_TIES else 1).indices
        assert got.argmax() in likeliest
