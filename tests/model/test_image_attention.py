"""The savings keep the result: the programs against the definition run on whole sequences, causal and bidirectional."""

from __future__ import annotations

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.execution.text import ImageTokens
from model_reference import Reference, attention_mask
from small_model import (
    END,
    FEATURES,
    IMAGE,
    IMAGE_SIZE,
    LATENT,
    START,
    normal,
    prompt,
    relative_error,
    small_config,
    small_state,
)

FP32 = 2e-5
ALONE = 1e-5
TOKENS = ImageTokens(start=START, image=IMAGE)


@pytest.fixture(
    scope="module",
    params=[(4, None), (2, None), (4, "bidirectional"), (1, "bidirectional")],
    ids=["causal", "causal-gqa", "bidirectional", "bidirectional-gqa"],
)
def pair(request) -> tuple[JanusFlow, Reference]:
    config = small_config(*request.param)
    state = small_state(config)
    return JanusFlow.from_state_dict(config, state, device="cpu", dtype="float32"), Reference(config, state)


@pytest.mark.parametrize("blocks", [(0, 0), (0, 2), (3, 1)], ids=str)
def test_any_number_of_convnext_blocks(blocks: tuple[int, int]) -> None:
    """Without any there is no modulation table at all."""
    config = small_config()
    for part, count in zip(("enc", "dec"), blocks, strict=True):
        params = config[f"vision_gen_{part}_config"]["params"]
        params.update(layers_in_middle=max(count, 1), use_mid_block=count > 0)
    state = small_state(config)
    model = JanusFlow.from_state_dict(config, state, dtype="float32")
    ids, noise = prompt(1, 5), normal(1, *LATENT)
    got = model.sample_latents([ids], noise[None], guidance_scale=2.0, num_inference_steps=2)
    assert relative_error(got[0], Reference(config, state).sample(ids[:-1], noise, 2.0, 2)) <= FP32


def test_the_reference_mask_is_the_definition():
    mask = attention_mask(6, [(2, 4)], hidden=[1])
    expected = ["100000", "100000", "101100", "101100", "101110", "101111"]
    assert ["".join(map(str, row)) for row in mask.int().tolist()] == expected


@pytest.mark.parametrize("length", [1, 2, 17])
@pytest.mark.parametrize("guidance", [1.0, 3.5, 0.0])
def test_flow(pair, length, guidance):
    model, reference = pair
    ids, noise = prompt(length, length), normal(length, 1, *LATENT)
    z1, trace = model.sample_latents([ids], noise, guidance_scale=guidance, num_inference_steps=3, trace=True)
    for k, step in enumerate(trace):
        z = step["z"][0].double()
        cond, uncond = (reference.velocity(ids[:-1], z, 1000.0 * k / 3, conditional) for conditional in (True, False))
        assert relative_error(step["v_cond"][0], cond) <= FP32
        if guidance == 1.0:
            assert step["v_uncond"] is None
        else:
            assert relative_error(step["v_uncond"][0], uncond) <= FP32
    assert relative_error(z1[0], reference.sample(ids[:-1], noise[0], guidance, 3)) <= FP32


def image_ids() -> list[int]:
    return [START, *[IMAGE] * FEATURES, END]


@pytest.fixture(scope="module")
def conversation() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids (3, T) left-padded, mask, pixels: rows with two, no and one image."""
    rows = [
        [*prompt(1, 5), *image_ids(), 7, 8, *image_ids(), 9],
        prompt(2, 11),
        [0, *image_ids(), *prompt(3, 6)],
    ]
    width = max(map(len, rows)) + 2
    ids = torch.tensor([[4] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask, normal(5, 3, 2, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_prefill(pair, conversation):
    model, reference = pair
    ids, mask, pixels = conversation
    logits = model.next_token_logits(ids, mask, pixels, TOKENS)
    for row, images in enumerate((2, 0, 1)):
        kept = ids[row][mask[row].bool()].tolist()
        expected = reference.logits(kept, list(pixels[row, :images]), START, IMAGE)
        assert relative_error(logits[row], expected) <= FP32


def test_decoded_tokens_are_those_of_whole_sequences(pair, conversation):
    model, reference = pair
    ids, mask, pixels = conversation
    tokens = model.generate_ids(ids, mask, pixels, max_new_tokens=6, image_tokens=TOKENS)
    assert tokens.shape == (3, 6)
    for row, images in enumerate((2, 0, 1)):
        kept = ids[row][mask[row].bool()].tolist()
        for token in tokens[row].tolist():
            logits = reference.logits(kept, list(pixels[row, :images]), START, IMAGE)
            assert token == int(logits.argmax())
            kept.append(token)


def test_encode_images(pair):
    model, reference = pair
    pixels = normal(8, 5, 3, IMAGE_SIZE, IMAGE_SIZE)
    for got, image in zip(model.encode_images(pixels), pixels, strict=True):
        assert relative_error(got, reference.features(image)) <= FP32


def test_image_attention_is_a_choice_of_the_config():
    """Both kinds differ, so the tests above can tell them apart; the released config means causal."""
    results = []
    for kind in (None, "causal", "bidirectional"):
        config = small_config(image_attention=kind)
        model = JanusFlow.from_state_dict(config, small_state(config), device="cpu", dtype="float32")
        results.append(model.sample_latents([prompt(0, 4)], normal(0, 1, *LATENT), num_inference_steps=2))
    assert torch.equal(results[0], results[1])
    assert relative_error(results[2], results[0]) > 1e-2


def test_rows_of_one_call_are_as_alone(pair):
    """Prompts of other lengths, steps and guidance (some without), one prompt twice, in an order that must be kept."""
    model, _ = pair
    prompts = [prompt(1, 3), prompt(2, 20), prompt(3, 1), prompt(2, 20), prompt(5, 9)]
    steps, guidance, noise = [2, 4, 1, 3, 4], [2.0, 1.0, 0.5, 5.0, 1.0], normal(1, 5, *LATENT)
    together, trace = model.sample_latents(prompts, noise, guidance, steps, trace=True)
    assert len(trace) == 4
    for row in range(5):
        alone = model.sample_latents([prompts[row]], noise[row : row + 1], guidance[row], steps[row])
        assert relative_error(together[row], alone[0]) <= ALONE
        assert bool(trace[0]["v_uncond"][row].isnan().all()) == (guidance[row] == 1.0)


def test_rows_that_have_arrived_stay_where_they_are(pair):
    model, _ = pair
    _, trace = model.sample_latents([prompt(1, 3)] * 2, normal(2, 2, *LATENT), 2.0, [1, 3], trace=True)
    assert torch.equal(trace[1]["z"][0], trace[2]["z"][0])
    assert not torch.equal(trace[1]["z"][1], trace[2]["z"][1])


def test_without_guidance_there_are_no_unconditional_rows(monkeypatch):
    config = small_config()
    model = JanusFlow.from_state_dict(config, small_state(config), device="cpu", dtype="float32")
    sizes = []
    plan = model.runner.plan

    def spy(program, **bucket):
        sizes.append((program, bucket))
        return plan(program, **bucket)

    monkeypatch.setattr(model.runner, "plan", spy)
    model.sample_latents([prompt(1, 3)] * 2, normal(1, 2, *LATENT), 1.0, 2)
    model.sample_latents([prompt(1, 3)] * 3, normal(1, 3, *LATENT), [2.0, 1.0, 3.0], 2)
    assert [(p, b["R"], b["U"]) for p, b in sizes] == [
        ("flow_prepare", 1, 0),
        ("flow_step", 2, 0),
        ("flow_prepare", 1, 1),
        ("flow_step", 3, 2),
    ]
    step = plan(*sizes[1][:1], **sizes[1][1])
    assert step.states["k_cache"].shape[1] == 2
