"""Where a program says that its attention is causal, the numbers of every request say so too."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.engine.ops import Given, Implementation, get_op
from flashjanus.engine.ops.attention_cases import visible
from small_model import LATENT, normal, prompt, small_config, small_state

OP = get_op("attention")


@pytest.fixture
def promised() -> Iterator[list[bool]]:
    """What every call of an implementation named "checked" promised; a false promise fails."""
    seen: list[bool] = []

    def run(call: Given) -> None:
        if call.kv_start is not None:
            seen.append(call.causal)
        if call.causal:
            assert bool((call.slots.diff(dim=1) == 1).all())
            keys = torch.arange(call.k.shape[1])
            by_rule = visible(call.kv_start, call.kv_end, call.slots, keys)
            assert torch.equal(by_rule, visible(call.kv_start, call.slots + 1, call.slots, keys))
        OP.implementations["torch"].body(call)

    with patch.dict(OP.implementations, checked=Implementation("checked", OP, run)):
        yield seen


@pytest.mark.parametrize("image_attention", ["causal", "bidirectional"])
def test_promises_are_kept(promised: list[bool], image_attention: str) -> None:
    config = small_config(image_attention=image_attention)
    model = JanusFlow.from_state_dict(
        config, small_state(config), device="cpu", dtype="float32", implementations={"attention": "checked"}
    )
    ids, mask = torch.randint(5, 40, (2, 6)), torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    model.generate_ids(ids, mask, max_new_tokens=4)
    answering, promised[:] = list(promised), []
    prompts = [prompt(1, 5), prompt(2, 3)]
    model.sample_latents(prompts, normal(1, 2, *LATENT), num_inference_steps=2, guidance_scale=[2.0, 1.0])
    if image_attention == "causal":
        assert all(answering)
    else:
        assert set(answering) == {True, False}
    assert set(promised) == {True, False}  # of time tokens nothing is promised
