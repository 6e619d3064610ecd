"""Draw images from prompts in batches, so that each batch can be used before the next one is drawn."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from flashjanus.api import best_of as choosing
from flashjanus.api.outputs import ImageOutput, of_type
from flashjanus.api.tensor_model import TensorModel
from flashjanus.engine.runtime.isolation import callers_state
from flashjanus.errors import InputError
from flashjanus.execution import flow
from flashjanus.execution.adapters import Adapter
from flashjanus.inputs.prompts import encode_generation_prompt
from flashjanus.inputs.tokenizer import Tokenizer
from flashjanus.sampling import checks
from flashjanus.sampling.noise import Noise, Start, seeds_of
from flashjanus.sampling.options import ImageOptions
from flashjanus.sampling.presets import sampler_of
from flashjanus.sampling.schedule import Sampler
from flashjanus.scheduling import calls
from flashjanus.scheduling.requests import ImageJob

ROWS_AT_ONCE = 8
"""Images drawn together; more are drawn in several batches of this size, which bounds the memory of their caches."""


def stream(
    model: TensorModel, tokenizer: Tokenizer, room: int, prompt: str | Sequence[str], request: ImageOptions
) -> Iterator[ImageOutput]:
    """Yield outputs of at most ROWS_AT_ONCE images, in order, each drawn when the iterator is advanced.

    With best_of, a prompt's images come after all its candidates are judged. room: maximum number of ids in a prompt.
    Raises InputError for an invalid request before anything is drawn.
    """
    begun = time.perf_counter()
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, Sequence) or not prompts:
        raise InputError(f"prompt: expected a string or a list of strings, got {prompt!r:.80}")
    request = request.checked()
    images, sampler = request.num_images_per_prompt, sampler_of(request)
    ids = [tuple(encode_generation_prompt(p, tokenizer, room)[:-1]) for p in prompts]
    if request.best_of is not None or request.accept_above is not None:
        return _chosen(model, tokenizer, room, prompts, request)
    noise, adapters = _noise(model, len(prompts), request), model._adapters(request.adapter, len(prompts), "prompt")
    asked = [*zip(ids, adapters, strict=True)]
    return _drawn(model, asked, images, sampler, noise, request, time.perf_counter() - begun)


def job(
    model: TensorModel,
    tokenizer: Tokenizer,
    room: int,
    prompt: str,
    request: ImageOptions,
    preview_every: int,
    full_previews: bool,
) -> ImageJob:
    """All images of a prompt as one job. Raises InputError, also for options that jobs do not support."""
    if not isinstance(prompt, str):
        raise InputError(f"prompt: expected one string, because a job has one prompt, got {prompt!r:.80}")
    request = request.checked()
    for name in ("callback_on_step_end", "best_of", "accept_above", "judge"):
        if getattr(request, name) is not None:
            raise InputError(f"{name}: not an option of a job, which reports events instead; use generate_image for it")
    every = checks.integer("preview_every", preview_every, 0, checks.MAX_STEPS)
    ids, sampler = tuple(encode_generation_prompt(prompt, tokenizer, room)[:-1]), sampler_of(request)
    noise = _noise(model, 1, request)
    (adapter,) = model._adapters(request.adapter, 1, "prompt")
    rows = tuple(flow.FlowRequest(ids, sampler, z, adapter) for z in noise.rows(0, request.num_images_per_prompt))
    seeds, decode = None if noise.seeds is None else tuple(noise.seeds), request.output_type != "latent"
    return ImageJob(rows=rows, seeds=seeds, decode=decode, preview_every=every, full_previews=full_previews)


def _noise(model: TensorModel, prompts: int, request: ImageOptions) -> Noise:
    config = model.config
    shape = (config.gen_encoder.input_channels, config.latent_size, config.latent_size)
    start = Start(shape, model.runner.policy.latents, model.numerics == "official")
    return start.noise(prompts, request.num_images_per_prompt, request.seed, request.generator, request.latents)


def _drawn(
    model: TensorModel,
    asked: Sequence[tuple[tuple[int, ...], Adapter | None]],
    images: int,
    sampler: Sampler,
    noise: Noise,
    request: ImageOptions,
    encoding: float,
) -> Iterator[ImageOutput]:
    callback = request.callback_on_step_end

    def on_step(k: int, z: torch.Tensor, before: torch.Tensor) -> torch.Tensor | None:
        assert callback is not None
        heading = z + (z - before.to(z.device)) * sampler.schedule.left(k + 1)
        state = {"latents": z, "pred_original_sample": heading}
        with callers_state():
            returned = callback(model, k, 1000.0 * sampler.schedule.times[k], state)
        if not isinstance(returned, Mapping):
            raise InputError(f"callback_on_step_end: expected it to return a dict, got {returned!r:.80}")
        # the callback may have changed z in place
        return checks.tensor("latents", returned.get("latents", z), z.shape, checks.FLOATS)

    total = len(asked) * images
    for first in range(0, total, ROWS_AT_ONCE):
        begun = time.perf_counter()
        rows = range(first, min(first + ROWS_AT_ONCE, total))
        starts = noise.rows(rows.start, rows.stop)
        prompts = [asked[i // images] for i in rows]
        requests = [flow.FlowRequest(ids, sampler, z, a) for (ids, a), z in zip(prompts, starts, strict=True)]
        decode = request.output_type != "latent"
        drawn = calls.draw(model.shared, requests, decode, None if callback is None else on_step)
        result = of_type(drawn.result, request.output_type) if decode else drawn.result
        model.runner.synchronize()
        spent = {"prompt": encoding, "flow": drawn.flowed_at - begun, "decode": time.perf_counter() - drawn.flowed_at}
        encoding = 0.0
        seeds = None if noise.seeds is None else noise.seeds[rows.start : rows.stop]
        yield ImageOutput(result, seeds, {**spent, "total": sum(spent.values())})


def _chosen(
    model: TensorModel, tokenizer: Tokenizer, room: int, prompts: Sequence[str], request: ImageOptions
) -> Iterator[ImageOutput]:
    if request.adapter is not None and not isinstance(request.adapter, str):
        raise InputError(f"adapter: expected one name for all prompts with best_of, got {request.adapter!r:.80}")
    if request.output_type == "latent":
        raise InputError("output_type: expected 'pil', 'np' or 'pt', because best_of judges pictures, got 'latent'")
    for name in ("generator", "latents"):
        if getattr(request, name) is not None:
            raise InputError(f"{name}: best_of draws the chosen image again from its seed; pass seed instead of {name}")
    plain = replace(request, output_type="latent", best_of=None, accept_above=None, judge=None)

    def draw(prompts: Sequence[str], images: int, seeds: Sequence[int]) -> Iterator[ImageOutput]:
        return stream(model, tokenizer, room, prompts, replace(plain, num_images_per_prompt=images, seed=seeds))

    asked = choosing.Choice.of(model, tokenizer, prompts, request)
    seeds = seeds_of(request.seed, len(prompts) * asked.candidates)
    return asked.best(draw, seeds, request.output_type)
