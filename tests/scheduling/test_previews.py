"""Previews show where an image is heading: by the map beside the VAE, by one that is learned, or by the VAE itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.errors import ConfigError, InputError
from flashjanus.execution.flow import FlowRequest
from flashjanus.execution.latent_map import PICTURES, Fit, LatentMap, Previews
from flashjanus.inputs.prompts import encode_generation_prompt
from flashjanus.sampling.schedule import Sampler
from flashjanus.scheduling.requests import Finished, ImageJob, Preview
from small_jobs import small

SIZE = 64


@pytest.fixture
def model() -> JanusFlow:
    return JanusFlow.from_pretrained("shapes", device="cpu", dtype="float32")


def drawn(
    model: JanusFlow, steps: tuple[int, ...], every: int, full: bool = False
) -> tuple[list[Preview], torch.Tensor]:
    assert model.tokenizer is not None
    ids = tuple(encode_generation_prompt("a red circle", model.tokenizer, 100)[:-1])
    shape = (model.config.gen_encoder.input_channels, model.config.latent_size, model.config.latent_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    rows = tuple(FlowRequest(ids, Sampler(count, 2.0), noise) for count in steps)
    scheduler = model.scheduler()
    scheduler.submit(ImageJob(rows=rows, preview_every=every, full_previews=full))
    previews = []
    while scheduler.busy:
        for event in scheduler.step():
            if isinstance(event, Preview):
                previews.append(event)
            if isinstance(event, Finished):
                result = (event.result.clamp(-1, 1) + 1) / 2
    return previews, result


def error(preview: Preview, result: torch.Tensor) -> float:
    shown = torch.nn.functional.interpolate(preview.images, result.shape[2:], mode="nearest")
    return float((shown - result).square().mean())


def test_previews_come_when_they_are_due_and_near_the_picture(model: JanusFlow) -> None:
    previews, result = drawn(model, (6,), 2)
    assert [preview.step for preview in previews] == [2, 4], "after the last evaluation there is the picture itself"
    blank = float((result - result.mean((2, 3), keepdim=True)).square().mean())
    for preview in previews:
        assert preview.images.shape == (1, 3, model.config.latent_size, model.config.latent_size)
        assert 0 <= preview.images.min() <= preview.images.max() <= 1
    assert error(previews[-1], result) < blank


def test_the_vae_s_own_previews_near_the_picture_step_by_step(model: JanusFlow) -> None:
    previews, result = drawn(model, (8,), 1, full=True)
    assert [preview.step for preview in previews] == [*range(1, 8)]
    assert previews[0].images.shape == (1, 3, SIZE, SIZE)
    errors = [error(preview, result) for preview in previews]
    assert errors[-1] < 0.2 * errors[0]


def test_images_of_a_job_with_fewer_steps_stay_as_they_are(model: JanusFlow) -> None:
    previews, result = drawn(model, (2, 6), 1, full=True)
    assert torch.equal(previews[-1].images[:1], result[:1])
    assert [len(preview.images) for preview in previews] == [2] * 5


def test_without_a_map_the_vae_shows_and_the_first_picture_teaches_one(model: JanusFlow) -> None:
    model.runner.previews = Previews(None, model.config.gen_encoder.input_channels)
    first, _ = drawn(model, (4,), 2)
    second, _ = drawn(model, (4,), 2)
    assert [preview.images.shape[-1] for preview in (*first, *second)] == [SIZE, model.config.latent_size]


def test_a_map_is_found_again_and_then_kept() -> None:
    right = LatentMap(torch.tensor([[0.1, 0.0], [0.0, 0.2], [0.05, -0.1]]), torch.tensor([0.5, 0.4, 0.6]))
    latents = 0.4 * torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    pictures = (2 * right.show(latents) - 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    fit = Fit(2)
    fit.add(latents, pictures)
    torch.testing.assert_close(fit.map().weight, right.weight, rtol=0, atol=1e-4)
    previews = Previews(None, 2)
    for _ in range(PICTURES // 8):
        previews.learn(latents, pictures)
    learned = previews.map
    previews.learn(latents, -pictures)
    assert previews.map is learned


def test_a_kept_map_is_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "preview.json"
    assert LatentMap.read(path, 2) is None
    kept = LatentMap(torch.tensor([[0.5, -0.25]] * 3), torch.tensor([0.5, 0.25, 0.125]))
    path.write_text(kept.to_json())
    found = LatentMap.read(path, 2)
    assert found is not None
    assert torch.equal(found.weight, kept.weight)
    assert torch.equal(found.bias, kept.bias)
    with pytest.raises(ConfigError, match=r"preview\.json: expected finite numbers, weight 3 x 4 and bias 3, got"):
        LatentMap.read(path, 4)
    for damaged in ("{", "[]", '{"weight": [[1]]}', '{"weight": "x", "bias": [1]}'):
        path.write_text(damaged)
        with pytest.raises(ConfigError, match=r"preview\.json: expected 'weight' and 'bias' as lists of numbers"):
            LatentMap.read(path, 2)


STEPS = dict(num_inference_steps=5, seed=3, num_images_per_prompt=2)


def watched(model: JanusFlow, full: bool, **options: Any) -> list[torch.Tensor]:
    """What a callback shows of a call's images."""
    seen = []

    def show(model: JanusFlow, step: int, t: float, state: dict[str, Any]) -> dict[str, Any]:
        seen.append(model.preview(state["pred_original_sample"], full=full))
        return state

    model.generate_image("a red circle", callback_on_step_end=show, **options)
    return seen


@pytest.mark.parametrize("full", [False, True])
def test_a_callback_shows_what_a_job_s_previews_do(model: JanusFlow, full: bool) -> None:
    scheduler = model.scheduler()
    scheduler.submit(model.image_job("a red circle", preview_every=1, full_previews=full, solver="ab2", **STEPS))
    events = []
    while scheduler.busy:
        events += scheduler.step()
    due = [event.images for event in events if isinstance(event, Preview)]
    *found, last = watched(model, full, solver="ab2", **STEPS)
    assert len(found) == len(due) == 4
    for got, expected in zip(found, due, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    side = SIZE if full else model.config.latent_size
    assert last.shape == (2, 3, side, side)


def test_where_latents_are_heading_is_straight_on_along_the_velocity(model: JanusFlow) -> None:
    """By a call's trace, and from latents that a callback has put in their place; at the end, they are there."""
    assert model.tokenizer is not None
    ids = encode_generation_prompt("a red circle", model.tokenizer, 100)
    shape = (1, model.config.gen_encoder.input_channels, model.config.latent_size, model.config.latent_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    _, trace = model.sample_latents([ids], noise, 2.0, 4, trace=True)
    heading, latents = [], []

    def watch(model: JanusFlow, step: int, t: float, state: dict[str, Any]) -> dict[str, Any]:
        heading.append(state["pred_original_sample"])
        latents.append(state["latents"])
        return {"latents": torch.zeros(shape)} if step == 1 else state

    model.generate_image(
        "a red circle", latents=noise, num_inference_steps=4, output_type="latent", callback_on_step_end=watch
    )
    for k, step in enumerate(trace[:2]):
        velocity = 2 * step["v_cond"] - step["v_uncond"]
        torch.testing.assert_close(heading[k], step["z"] + (1 - k / 4) * velocity, rtol=0, atol=1e-4)
    torch.testing.assert_close(heading[2], 2 * latents[2], rtol=0, atol=1e-5)  # half of the way from 0
    assert torch.equal(heading[3], latents[3])


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.zeros(4, 8, 8), r"latents: expected shape \(any, 4, any, any\)"),
        (torch.full((1, 4, 8, 8), torch.nan), "latents: expected finite values"),
        ("noise", "latents: expected a torch.Tensor"),
    ],
)
def test_what_is_no_latents_has_no_preview(model: JanusFlow, latents: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.preview(latents)
    with pytest.raises(InputError, match="VAE"):
        small().preview(torch.zeros(1, 4, 8, 8))
