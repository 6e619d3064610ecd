"""On a GPU, graphs give bit for bit what launching kernel by kernel gives, whatever ran before, beside or elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from flashjanus import ImageTokens, JanusFlow
from flashjanus.execution.flow import FlowRequest, FlowSession, Prepared
from flashjanus.sampling.schedule import Sampler
from small_model import normal, prompt, relative_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
STEPS, TOKENS = 3, 8
FP32 = 2e-5
"""Relative difference of float32 results that sum in another order, as another bucket's GEMMs may."""
DTYPES = ["float32", "bfloat16"]
Models = Callable[..., JanusFlow]


@pytest.fixture(scope="module")
def models(untrained_folder) -> Models:
    made: dict[tuple[object, ...], JanusFlow] = {}

    def model(dtype: str = "float32", graphs: bool = True, **buckets: list[int]) -> JanusFlow:
        key = (dtype, graphs, str(buckets))
        if key not in made:
            made[key] = JanusFlow.from_pretrained(
                untrained_folder, device="cuda", dtype=dtype, cuda_graphs=graphs, buckets=buckets
            )
        return made[key]

    return model


def noise(model: JanusFlow, rows: int, seed: int = 4) -> torch.Tensor:
    size = model.config.latent_size
    return normal(seed, rows, model.config.gen_encoder.input_channels, size, size)


PROMPTS = [prompt(1, 6), prompt(2, 20), prompt(3, 9)]
GUIDANCE, EACH = [3.0, 1.0, 2.0], [3, 2, 3]


def draw(model: JanusFlow) -> torch.Tensor:
    """Three rows in a bucket of four, one without guidance and one with fewer steps."""
    z = model.sample_latents(PROMPTS, noise(model, 3), guidance_scale=GUIDANCE, num_inference_steps=EACH)
    return z.cpu()


def question(model: JanusFlow) -> dict[str, object]:
    """Two rows, the first padded on the left and about an image."""
    assert model.tokenizer is not None
    tags = ImageTokens(model.tokenizer.image_start_id, model.tokenizer.image_id)
    image = [tags.start, *[tags.image] * model.config.num_understanding_tokens]
    ids = torch.tensor([[0, 0, 0, *image, 20, 21], [0, *range(20, 24 + len(image))]])
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    size = model.config.understanding.image_size
    return dict(input_ids=ids, attention_mask=mask, pixel_values=normal(6, 2, 1, 3, size, size), image_tokens=tags)


@pytest.mark.parametrize("dtype", DTYPES)
def test_latents_of_graphs_are_those_of_launches(models, dtype):
    assert torch.equal(draw(models(dtype)), draw(models(dtype, graphs=False)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sampling", [{}, dict(do_sample=True, temperature=1.3, top_p=0.9, seed=3)])
def test_tokens_and_logits_of_graphs_are_those_of_launches(models, dtype, sampling):
    graphs, launches = models(dtype), models(dtype, graphs=False)
    asked = question(graphs)
    tokens = [model.generate_ids(**asked, max_new_tokens=TOKENS, **sampling) for model in (graphs, launches)]
    assert torch.equal(*tokens)
    assert torch.equal(*(model.next_token_logits(**asked) for model in (graphs, launches)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_pictures_and_features_of_graphs_are_those_of_launches(models, dtype):
    graphs, launches = models(dtype), models(dtype, graphs=False)
    z, size = noise(graphs, 2), graphs.config.understanding.image_size
    assert torch.equal(*(model.decode_latents(z) for model in (graphs, launches)))
    pixels = normal(7, 3, 3, size, size)
    assert torch.equal(*(model.encode_images(pixels) for model in (graphs, launches)))


def test_a_row_does_not_see_the_others_of_its_bucket(models):
    model = models(rows=[4], prompt_tokens=[32])
    together = draw(model)
    for row in range(3):
        alone = model.sample_latents(
            [PROMPTS[row]],
            noise(model, 3)[row : row + 1],
            guidance_scale=[GUIDANCE[row]],
            num_inference_steps=[EACH[row]],
        )
        assert relative_error(alone.cpu(), together[row : row + 1]) <= FP32


def test_padding_changes_nothing(models):
    exact, padded = models(rows=[3], prompt_tokens=[20]), models(rows=[8], prompt_tokens=[128], steps=[10])
    assert relative_error(draw(padded), draw(exact)) <= FP32
    tokens = [model.generate_ids(**question(model), max_new_tokens=TOKENS) for model in (exact, padded)]
    assert torch.equal(*tokens)


def test_a_request_leaves_nothing_behind_for_the_next(models):
    model = models()
    first, asked = draw(model), question(model)
    tokens = model.generate_ids(**asked, max_new_tokens=TOKENS)
    model.sample_latents(PROMPTS, noise(model, 3, seed=9), guidance_scale=5.0, num_inference_steps=STEPS)
    model.generate_ids(torch.arange(30, 70).view(2, 20), max_new_tokens=TOKENS)
    assert torch.equal(draw(model), first)
    assert torch.equal(model.generate_ids(**asked, max_new_tokens=TOKENS), tokens)


def test_another_stream_waits_for_the_one_that_used_the_model_last(models):
    model = models()
    first, other = draw(model), torch.cuda.Stream()
    with torch.cuda.stream(other):
        aside = draw(model)
        model.sample_latents(PROMPTS, noise(model, 3, seed=9), guidance_scale=5.0, num_inference_steps=STEPS)
    # on the stream of before, and nobody has waited for the other but the model itself
    again = draw(model)
    assert torch.equal(aside, first)
    assert torch.equal(again, first)


def join_and_step(model: JanusFlow, joined: dict[int, int]) -> torch.Tensor:
    """Latents of two rows; `joined`: before which step each row is put in its place."""
    prepared = Prepared(model.runner, 2, 2, 32, STEPS)
    requests = [FlowRequest(tuple(PROMPTS[row][:-1]), Sampler(STEPS), z) for row, z in enumerate(noise(model, 2))]
    prepared.run([request.timed_prompt for request in requests])
    session = FlowSession(model.runner, 2, 2, 32, STEPS)
    for step in range(2 * STEPS):
        for row, at in joined.items():
            if at == step:
                session.join(prepared.prefix(row), row, requests[row])
        session.step()
    return session.z.cpu()


@pytest.mark.parametrize("graphs", [True, False])
def test_a_row_that_joins_between_steps_is_drawn_as_if_alone(models, graphs):
    model = models(graphs=graphs)
    late = join_and_step(model, {0: 0, 1: 2})
    assert torch.equal(late[0], join_and_step(model, {0: 0})[0])
    assert torch.equal(late[1], join_and_step(model, {1: 0})[1])
