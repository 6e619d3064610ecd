"""Previews show where an image is heading: by the map beside the VAE, by one that is learned, or by the VAE itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.errors import ConfigError
from flashjanus.execution.flow import FlowRequest
from flashjanus.execution.latent_map import PICTURES, Fit, LatentMap, Previews
from flashjanus.inputs.prompts import encode_generation_prompt
from flashjanus.sampling.schedule import Sampler
from flashjanus.scheduling.requests import Finished, ImageJob, Preview

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
