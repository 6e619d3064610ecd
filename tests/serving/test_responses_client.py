"""The Responses API through OpenAI's own client, unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import ResponseOutputMessage
from openai.types.responses.response_output_item import ImageGenerationCall
from PIL import Image
from pydantic import BaseModel
from serving_app import Served, data_url, image_of, model, served

TOOL: Any = {"type": "image_generation", "num_inference_steps": 3, "seed": 5}
SHOWN = data_url(Image.new("RGB", (80, 60), "red"))
QUESTION: Any = {
    "role": "user",
    "content": [
        {"type": "input_image", "image_url": SHOWN, "detail": "auto"},
        {"type": "input_text", "text": "What color is it?"},
    ],
}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(keys=("sk-one",)) as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-one", max_retries=0) as one:
        yield one


def told(event: Any) -> None:
    """Every field has the type that the client's own classes give it: the client itself does not look."""
    assert isinstance(event, BaseModel)
    type(event).model_validate(event.model_dump(warnings=False), strict=False)


def expected_answer() -> str:
    question = [{"type": "image", "image": SHOWN}, {"type": "text", "text": "What color is it?"}]
    return model().chat([{"role": "user", "content": question}])


def test_an_image(client: openai.OpenAI) -> None:
    reply = client.responses.create(model="shapes", input="a red circle", tools=[TOOL])
    told(reply)
    [call] = reply.output
    assert isinstance(call, ImageGenerationCall)
    assert image_of(call.result or "").size == (64, 64)
    assert (reply.status, reply.output_text, reply.error) == ("completed", "", None)
    assert reply.usage is not None
    assert reply.usage.output_tokens == 16


def test_an_image_in_a_stream(client: openai.OpenAI) -> None:
    asked = dict(model="shapes", input="a red circle", tools=[{**TOOL, "partial_images": 2}])
    with client.responses.create(**asked, stream=True) as stream:  # type: ignore[call-overload]
        events = [*stream]
    for event in events:
        told(event)
    partial = [event for event in events if event.type == "response.image_generation_call.partial_image"]
    assert [event.partial_image_index for event in partial] == [0, 1]
    assert all(image_of(event.partial_image_b64).size == (64, 64) for event in partial)
    with client.responses.stream(**asked) as parsed:
        assert [event.type for event in parsed] == [event.type for event in events]
        final = parsed.get_final_response()
    [call] = final.output
    assert call.result == events[-1].response.output[0].result


def test_an_answer(client: openai.OpenAI) -> None:
    asked = dict(model="shapes", input=[QUESTION], temperature=0, tools=[TOOL])
    for _ in range(2):  # then all of the prompt is kept that can be
        reply = client.responses.create(**asked)  # type: ignore[call-overload]
    told(reply)
    assert isinstance(reply.output[0], ResponseOutputMessage)
    assert reply.output_text == expected_answer()
    with client.responses.stream(**asked, include=["message.output_text.logprobs"]) as stream:
        events = [*stream]
        final = stream.get_final_response()
    assert events[0].type == "response.created"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == reply.output_text
    assert final.output_text == reply.output_text
    assert final.usage == reply.usage
    assert final.output[0].content[0].logprobs


def test_a_conversation_goes_on_from_its_output(client: openai.OpenAI) -> None:
    first = client.responses.create(model="shapes", input=[QUESTION], temperature=0)
    items: Any = [QUESTION, *first.output, {"role": "user", "content": "a red circle"}]
    second = client.responses.create(
        model="shapes", input=items, tools=[TOOL], tool_choice={"type": "image_generation"}
    )
    items += [*second.output, {"role": "user", "content": "What color is the circle?"}]
    third = client.responses.create(model="shapes", input=items, temperature=0, max_output_tokens=8)
    assert third.output_text


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.responses.create(model="shapes", input="a red circle", previous_response_id="resp_1")
    assert (bad.value.param, bad.value.code) == ("previous_response_id", "unsupported_parameter")
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_1")
    with client.responses.create(model="shapes", input=[QUESTION], max_output_tokens=1, stream=True) as stream:
        *_, last = stream
    told(last)
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details is not None
    assert last.response.incomplete_details.reason == "max_output_tokens"


def test_a_failure(server: Served) -> None:
    with served(deadline=0.5) as late, openai.OpenAI(base_url=f"{late.url}/v1", api_key="x", max_retries=0) as client:
        tool: Any = {**TOOL, "num_inference_steps": 1000}
        with client.responses.create(model="shapes", input="a circle", tools=[tool], stream=True) as stream:
            *_, last = stream
        with pytest.raises(openai.APIStatusError) as slow:
            client.responses.create(model="shapes", input="a circle", tools=[tool])
    told(last)
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert last.response.error.message
    assert slow.value.status_code == 504


def test_the_asynchronous_client(server: Served) -> None:
    async def asked() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="sk-one", max_retries=0) as client:
            call = dict(model="shapes", input=[QUESTION], temperature=0)
            whole, stream = await asyncio.gather(
                client.responses.create(**call),  # type: ignore[call-overload]
                client.responses.create(**call, stream=True),  # type: ignore[call-overload]
            )
            return whole.output_text, "".join([e.delta async for e in stream if e.type == "response.output_text.delta"])

    assert asyncio.run(asked()) == (expected_answer(),) * 2
