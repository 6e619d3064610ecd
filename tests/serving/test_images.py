"""POST /v1/images/generations: what each field does, and how replies and streams are built."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from flashjanus.sampling.fields import json_schema
from flashjanus.sampling.options import ImageOptions
from flashjanus.serving.http.images import shares
from flashjanus.serving.http.schemas import IMAGE_EXTRAS, ImageBody
from flashjanus.serving.messages import Usage
from PIL import Image, ImageOps
from serving_app import image_of, model, post, served

PATH = "/v1/images/generations"
QUICK: dict[str, Any] = {"prompt": "a red circle", "num_inference_steps": 3, "seed": 5}


@pytest.fixture(scope="module")
def web() -> Iterator[httpx.Client]:
    with served() as one, httpx.Client(base_url=one.url, timeout=60) as made:
        yield made


def draw(**fields: Any) -> dict[str, Any]:
    reply = post(PATH, {**QUICK, **fields})
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def events(**fields: Any) -> list[dict[str, Any]]:
    reply = post(PATH, {**QUICK, "stream": True, **fields})
    assert reply.headers["content-type"].startswith("text/event-stream")
    blocks = [block.split("\n") for block in reply.text.split("\n\n") if block]
    found = []
    for name, data in blocks:
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def native() -> Image.Image:
    image: Image.Image = model().generate_image(QUICK["prompt"], num_inference_steps=3, seed=5).images[0]
    return image


def close(image: Image.Image, expected: Image.Image, most: float = 1.0) -> bool:
    difference = np.abs(np.asarray(image, np.float32) - np.asarray(expected, np.float32))
    return image.size == expected.size and float(difference.max()) <= most


def test_a_reply_says_what_was_drawn() -> None:
    reply = draw()
    assert set(reply) == {
        "created", "data", "background", "output_format", "quality", "size", "native_size", "usage"
    }  # fmt: skip
    assert (reply["size"], reply["native_size"], reply["quality"]) == ("64x64", "64x64", "high")
    assert [{*one} for one in reply["data"]] == [{"b64_json", "seed"}]
    assert close(image_of(reply["data"][0]["b64_json"]), native())


@pytest.mark.parametrize("size", ["128x128", "32x32", "96x48", "20x60"])
def test_other_sizes_are_resampled_and_said(size: str) -> None:
    reply = draw(size=size)
    width, height = map(int, size.split("x"))
    assert (reply["size"], reply["native_size"]) == (size, "64x64")
    expected = ImageOps.fit(native(), (width, height), Image.Resampling.LANCZOS)
    assert close(image_of(reply["data"][0]["b64_json"]), expected, 2)


@pytest.mark.parametrize(("format", "compression"), [("png", None), ("jpeg", 90), ("jpeg", 0), ("webp", 50)])
def test_formats(format: str, compression: int | None) -> None:
    reply = draw(output_format=format, output_compression=compression)
    image = image_of(reply["data"][0]["b64_json"])
    assert (image.format or "").lower() == reply["output_format"] == format
    assert image.size == (64, 64)


def test_more_compression_gives_smaller_files() -> None:
    long, short = (draw(output_format="jpeg", output_compression=n)["data"][0]["b64_json"] for n in (95, 20))
    assert len(short) < len(long)


@pytest.mark.parametrize(
    ("fields", "preset", "told"),
    [
        ({"quality": "low"}, "fast", "low"),
        ({"quality": "medium"}, "balanced", "medium"),
        ({"quality": "standard"}, "balanced", "medium"),
        ({"quality": "high"}, "exact", "high"),
        ({"quality": "auto"}, "exact", "high"),
        ({"preset": "fast"}, "fast", "low"),
        ({"quality": "low", "preset": "fast"}, "fast", "low"),
    ],
)
def test_quality_is_a_preset(fields: dict[str, str], preset: str, told: str) -> None:
    reply = post(PATH, {"prompt": "a red circle", "seed": 5, **fields}).json()
    expected = model().generate_image("a red circle", preset=preset, seed=5).images[0]
    assert close(image_of(reply["data"][0]["b64_json"]), expected)
    assert reply["quality"] == told


def test_options_of_the_engine_reach_it() -> None:
    options: dict[str, Any] = dict(
        guidance_scale=3.5, solver="ab2", timestep_shift=0.8, guidance_interval=[0.1, 0.9], guidance_rescale=0.3,
        uncond_every=2, step_cache=[0.0, 0.5],
    )  # fmt: skip
    reply = draw(**options)
    expected = model().generate_image("a red circle", num_inference_steps=3, seed=5, **options).images[0]
    assert close(image_of(reply["data"][0]["b64_json"]), expected)
    assert not close(expected, native())


def test_the_best_of_several() -> None:
    reply = draw(best_of=3)
    alone = model().generate_image("a red circle", num_inference_steps=3, seed=5, best_of=3)
    [one] = reply["data"]
    assert one["seed"] == alone.seeds[0]
    assert one["score"] == pytest.approx(alone.scores[0], abs=1e-4)
    assert reply["usage"]["output_tokens"] == 3 * 16


def test_a_stream_of_several_images_completes_each() -> None:
    found = events(n=2, partial_images=1)
    kinds = [(one["type"].rpartition(".")[2], one["image_index"]) for one in found]
    assert kinds == [("partial_image", 0), ("partial_image", 1), ("completed", 0), ("completed", 1)]
    whole = draw(n=2)
    assert [one["b64_json"] for one in found[2:]] == [one["b64_json"] for one in whole["data"]]
    assert [one["seed"] for one in found[2:]] == [5, 6]
    for name in ("input_tokens", "output_tokens", "total_tokens"):
        assert sum(one["usage"][name] for one in found[2:]) == whole["usage"][name]
    shown = {"created_at", "size", "quality", "background", "output_format", "b64_json"}
    assert all(shown <= {*one} for one in found)


@pytest.mark.parametrize("asked", [0, 1, 3])
def test_partial_images_count_from_0(asked: int) -> None:
    found = events(partial_images=asked, num_inference_steps=8, size="80x80", output_format="webp")
    *partial, last = found
    assert [one["partial_image_index"] for one in partial] == list(range(asked))
    assert last["type"] == "image_generation.completed"
    images = [image_of(one["b64_json"]) for one in found]
    assert {(image.size, image.format) for image in images} == {((80, 80), "WEBP")}


def test_shares_of_usage_are_the_whole() -> None:
    used = shares(Usage(11, 0, 50), 3)
    assert [one.completion_tokens for one in used] == [18, 16, 16]
    assert sum(one.prompt_tokens for one in used) == 11


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n"}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"n": "2"}, "n"),
        ({"n": True}, "n"),
        ({"size": ""}, "size"),
        ({"size": "64"}, "size"),
        ({"size": "64x"}, "size"),
        ({"size": "8x8"}, "size"),
        ({"size": "99999x99999"}, "size"),
        ({"quality": "best"}, "quality"),
        ({"quality": "low", "preset": "exact"}, "preset"),
        ({"preset": "slow"}, "preset"),
        ({"response_format": "url"}, "response_format"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_compression": 101, "output_format": "jpeg"}, "output_compression"),
        ({"output_compression": 50}, "output_compression"),
        ({"background": "transparent"}, "background"),
        ({"moderation": "high"}, "moderation"),
        ({"style": "vivid"}, "style"),
        ({"partial_images": 4, "stream": True}, "partial_images"),
        ({"partial_images": 1}, "partial_images"),
        ({"partial_images": 1, "stream": True, "best_of": 2}, "partial_images"),
        ({"best_of": 65}, "best_of"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"accept_above": 0.5}, "best_of"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 1001}, "num_inference_steps"),
        ({"num_inference_steps": 2.5}, "num_inference_steps"),
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"seed": -1}, "seed"),
        ({"seed": [1, 2]}, "seed"),
        ({"seed": {}}, "seed"),
        ({"seed": [-1]}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"step_cache": [0.5]}, "step_cache"),
        ({"guidance_interval": [1, 0]}, "guidance_interval"),
        ({"latents": [0]}, "latents"),
        ({"output_type": "pil"}, "output_type"),
        ({"negative_prompt": "blue"}, "negative_prompt"),
    ],
)
def test_what_cannot_be_honored_is_refused_by_its_name(web: httpx.Client, fields: dict[str, Any], param: str) -> None:
    reply = web.post(PATH, json={**QUICK, **fields})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["param"] == param
    assert param in error["message"] or param == "prompt"
    assert error["type"] == "invalid_request_error"


def test_limits_of_the_server_hold() -> None:
    reply = post(PATH, {**QUICK, "num_inference_steps": 9}, max_steps=8)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "num_inference_steps")
    assert post(PATH, {**QUICK, "size": "256x256"}, max_side=128).json()["error"]["param"] == "size"
    assert post(PATH, {**QUICK, "prompt": "a" * 20}, prompt_chars=19).json()["error"]["param"] == "prompt"
    reply = post(PATH, {"prompt": "a red circle"}, preset="fast")
    assert reply.json()["quality"] == "low"


def test_whole_numbers_may_be_written_with_a_point() -> None:
    assert draw(n=2.0, seed=5.0, num_inference_steps=3.0)["data"] == draw(n=2)["data"]


def test_null_is_the_default() -> None:
    nulls = {name: None for name in ImageBody.model_fields if name not in QUICK}
    assert draw(**nulls)["data"] == draw()["data"]


def test_the_options_are_described_as_the_engine_describes_them() -> None:
    described = ImageBody.model_json_schema()["properties"]
    engine = json_schema(ImageOptions)["properties"]
    for name in IMAGE_EXTRAS:
        for key in ("minimum", "maximum", "description"):
            assert described[name].get(key) == engine[name].get(key)
        assert "null" in described[name]["type"]
