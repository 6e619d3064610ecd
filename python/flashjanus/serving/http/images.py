"""POST /v1/images/generations: draws images of a prompt, in one body or as they are drawn."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.responses import Response

from flashjanus.errors import FlashJanusError, InputError
from flashjanus.serving.http import sse
from flashjanus.serving.http.body import read
from flashjanus.serving.http.errors import ApiError, told
from flashjanus.serving.http.fields import given
from flashjanus.serving.http.middleware import note
from flashjanus.serving.http.pictures import Rendering, size_of
from flashjanus.serving.http.schemas import IMAGE_EXTRAS, ImageBody
from flashjanus.serving.http.state import State, state_of
from flashjanus.serving.http.watch import watched
from flashjanus.serving.messages import Event, ImageRequest, Images, Partial, Picture, Usage

PRESETS = {"low": "fast", "medium": "balanced", "high": "exact", "standard": "balanced", "hd": "exact"}
"""Presets by quality."""
QUALITIES = {"fast": "low", "balanced": "medium", "exact": "high"}
"""Qualities by preset, for replies."""


@dataclass(frozen=True)
class Drawing:
    """A request to the engine, and how to encode its pictures. facts: size, quality and so on, repeated in every
    reply."""

    request: ImageRequest
    rendering: Rendering
    facts: Mapping[str, Any]


def drawing(
    state: State,
    prompt: str,
    *,
    n: int | None = None,
    size: str | None = None,
    quality: str | None = None,
    output_format: str | None = None,
    output_compression: int | None = None,
    partial_images: int | None = None,
    **options: Any,
) -> Drawing:
    """Make a Drawing from the API's fields. `options` holds the fields of IMAGE_EXTRAS. Raises ApiError, InputError."""
    settings = state.settings
    format = output_format or "png"
    if format == "png" and output_compression not in (None, 100):
        raise InputError(f"output_compression: expected 100 with png, which is lossless, got {output_compression}")
    wanted = size_of("auto" if size is None else size, settings.max_side)
    native = state.facts.image_size
    if native is None:
        raise ApiError(
            400, f"model: expected a model that draws, and {state.facts.name} has no VAE", "invalid_value", "model"
        )
    asked = PRESETS.get(quality or "auto", settings.preset)
    preset = options.setdefault("preset", asked)
    if quality not in (None, "auto") and preset != asked:
        raise InputError(f"preset: expected {asked!r} with quality {quality!r}, got {preset!r}; give one of the two")
    _check(settings.max_steps, "num_inference_steps", options)
    _check(settings.max_candidates, "best_of", options)
    if partial_images and ("best_of" in options or "accept_above" in options):
        raise InputError(f"partial_images: expected 0 with best_of, which shows no candidates, got {partial_images}")
    if len(prompt) > settings.prompt_chars:
        raise InputError(f"prompt: expected at most {settings.prompt_chars} characters, got {len(prompt)}")
    shown = "x".join(map(str, native[::-1]))
    facts = {
        "background": "opaque",
        "output_format": format,
        "quality": QUALITIES[preset],
        "size": shown if wanted is None else size,
        "native_size": shown,
    }
    request = ImageRequest(
        prompt=prompt,
        options={**options, "num_images_per_prompt": n or 1},
        previews=partial_images or 0,
        full_previews=settings.full_previews,
        steps=False,
        deadline=settings.deadline,
    )
    compression = 100 if output_compression is None else output_compression
    return Drawing(request, Rendering(format, compression, wanted or native[::-1]), facts)


def _check(most: int | None, name: str, options: Mapping[str, Any]) -> None:
    if most is not None and options.get(name, 0) > most:
        raise InputError(f"{name}: expected at most {most} on this server, got {options[name]}")


async def generations(request: Request) -> Response:
    """Draw images of a prompt."""
    state = state_of(request)
    body = await read(request, ImageBody, state.settings.body_seconds)
    state.name(body.model)
    if body.partial_images and not body.stream:
        raise ApiError(400, "partial_images: expected 0 without stream", "invalid_value", "partial_images")
    fields = ("n", "size", "quality", "output_format", "output_compression", "partial_images", *IMAGE_EXTRAS)
    try:
        asked = drawing(state, body.prompt, **state.adapted(body.model, given(body, fields)))
        note(request.scope, kind="image", prompt=body.prompt if state.settings.log_prompts else None)
        stream = await state.engine.submit(asked.request)
    except FlashJanusError as error:
        raise told(error, "prompt") from error
    events = watched(stream, state, request.scope)
    if body.stream:
        return sse.EventStream(_streamed(events, asked), [stream], state.settings)
    return await sse.unless_gone(_reply(events, asked), [stream], request.scope, request.receive)


async def _reply(events: AsyncGenerator[Event, None], asked: Drawing) -> Response:
    async with aclosing(events) as told_:
        async for event in told_:
            if isinstance(event, Images):
                return Response(await asyncio.to_thread(_body, event, asked), media_type="application/json")
    raise AssertionError("a request that ends has a result, or fails")


def _body(images: Images, asked: Drawing) -> bytes:
    data = [{"b64_json": asked.rendering.base64(image), **facts_of(images, n)} for n, image in enumerate(images.images)]
    reply: dict[str, Any] = {"created": int(time.time()), "data": data, **asked.facts, "usage": usage(images.usage)}
    return json.dumps(reply).encode()


def facts_of(images: Images, number: int) -> dict[str, Any]:
    """Fields that OpenAI's API does not have: what is needed to draw an image again, and the model's score for it."""
    own: dict[str, Any] = {}
    if images.seeds is not None:
        own["seed"] = images.seeds[number]
    if images.scores is not None:
        own["score"] = images.scores[number]
    return own


def usage(used: Usage) -> dict[str, Any]:
    """Token counts in the form of the images API."""
    details = {"text_tokens": used.prompt_tokens - used.image_tokens, "image_tokens": used.image_tokens}
    return {
        "input_tokens": used.prompt_tokens,
        "input_tokens_details": details,
        "output_tokens": used.completion_tokens,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": used.completion_tokens},
        "total_tokens": used.prompt_tokens + used.completion_tokens,
    }


def shares(used: Usage, images: int) -> list[Usage]:
    """Split a request's tokens among its images so that the sums match. The prompt counts toward the first image."""
    each, rest = divmod(used.completion_tokens, images)
    first = Usage(used.prompt_tokens, used.image_tokens, each + rest)
    return [first, *[Usage(0, 0, each)] * (images - 1)]


async def _streamed(events: AsyncGenerator[Event, None], asked: Drawing) -> AsyncGenerator[bytes, None]:
    """Yield events of the API. Each of several images has events of its own, which `image_index` tells apart."""
    async with aclosing(events) as told_:
        async for event in told_:
            made: list[bytes] = []
            if isinstance(event, Partial):
                made = await asyncio.to_thread(_partials, event, asked)
            elif isinstance(event, Images):
                made = await asyncio.to_thread(_completed, event, asked)
            for data in made:
                yield data


def _partials(partial: Partial, asked: Drawing) -> list[bytes]:
    about = {"partial_image_index": partial.index}
    return [
        _event("partial_image", image, {**about, "image_index": number}, asked)
        for number, image in enumerate(partial.images)
    ]


def _completed(images: Images, asked: Drawing) -> list[bytes]:
    used = shares(images.usage, len(images.images))
    return [
        _event("completed", image, {"image_index": n, **facts_of(images, n), "usage": usage(used[n])}, asked)
        for n, image in enumerate(images.images)
    ]


def _event(name: str, picture: Picture, about: Mapping[str, Any], asked: Drawing) -> bytes:
    kind = f"image_generation.{name}"
    shown = {"b64_json": asked.rendering.base64(picture), "created_at": int(time.time())}
    return sse.event({"type": kind, **shown, **asked.facts, **about}, kind)
