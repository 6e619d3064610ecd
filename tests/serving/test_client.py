"""OpenAI's own client against a server, unchanged."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from PIL import Image
from serving_app import Served, data_url, image_of, model, served

QUICK = {"num_inference_steps": 3, "seed": 5}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(keys=("sk-one", "sk-two")) as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-two", max_retries=0) as one:
        yield one


def test_images(client: openai.OpenAI) -> None:
    reply = client.images.generate(prompt="a red circle", model="shapes", n=2, extra_body=QUICK)
    assert reply.data is not None
    images = [image_of(one.b64_json or "") for one in reply.data]
    alone = model().generate_image("a red circle", num_images_per_prompt=2, **QUICK)
    assert [image.size for image in images] == [(64, 64)] * 2
    for image, expected in zip(images, alone.images, strict=True):
        assert max(abs(a - b) for a, b in zip(image.tobytes(), expected.tobytes(), strict=True)) <= 1
    assert [one.model_extra for one in reply.data] == [{"seed": 5}, {"seed": 6}]
    assert (reply.size, reply.quality, reply.output_format, reply.background) == ("64x64", "high", "png", "opaque")
    assert reply.usage is not None
    assert reply.usage.output_tokens == 2 * 16
    assert reply.usage.input_tokens == reply.usage.input_tokens_details.text_tokens
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens


def test_images_in_a_stream(client: openai.OpenAI) -> None:
    asked = dict(prompt="a red circle", model="shapes", stream=True, partial_images=2, extra_body=QUICK)
    events = [*client.images.generate(**asked)]  # type: ignore[call-overload]
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert all(image_of(event.b64_json).size == (64, 64) for event in events)
    assert events[-1].usage.output_tokens == 16
    [whole] = client.images.generate(prompt="a red circle", model="shapes", extra_body=QUICK).data or []
    assert events[-1].b64_json == whole.b64_json


def test_chat(client: openai.OpenAI) -> None:
    shown = data_url(Image.new("RGB", (80, 60), "red"))
    parts = [{"type": "image_url", "image_url": {"url": shown}}, {"type": "text", "text": "What color is it?"}]
    messages = [{"role": "user", "content": parts}]
    for _ in range(2):  # then all of the prompt is kept that can be
        reply = client.chat.completions.create(model="shapes", messages=messages, temperature=0)  # type: ignore[call-overload]
    expected = model().chat([{"role": "user", "content": [{"type": "image", "image": shown}, parts[1]]}])
    [choice] = reply.choices
    assert choice.message.content == expected
    assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")
    assert reply.usage.completion_tokens > 0
    asked = dict(model="shapes", messages=messages, temperature=0, stream_options={"include_usage": True})
    chunks = [*client.chat.completions.create(**asked, stream=True)]
    *some, last = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in some) == expected
    assert some[0].choices[0].delta.role == "assistant"
    assert some[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage == reply.usage
    assert len({(chunk.id, chunk.created, chunk.object) for chunk in chunks}) == 1
    with client.chat.completions.stream(**asked) as stream:
        assert stream.get_final_completion().choices[0].message.content == expected


def test_models(client: openai.OpenAI) -> None:
    assert [one.id for one in client.models.list()] == ["shapes"]
    assert client.models.retrieve("shapes").owned_by == "flashjanus"


def test_errors_are_those_of_the_client(server: Served, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.images.generate(prompt="a red circle", model="shapes", extra_body={"guidance_scal": 2})
    assert (bad.value.param, bad.value.code) == ("guidance_scal", "unknown_parameter")
    assert bad.value.request_id
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-three") as other,
        pytest.raises(openai.AuthenticationError),
    ):
        other.models.list()
