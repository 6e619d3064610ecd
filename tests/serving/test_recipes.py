"""What other programs send, byte by byte where it was recorded, and what they read of the replies.

Open WebUI: as its source of 0.11 builds the requests. LiteLLM: recorded of 1.110.2. gpustack: as its source of 2.2.3.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image
from serving_app import SECONDS, data_url, image_of, served

SHOWN = data_url(Image.new("RGB", (80, 60), "red"))
CHAT, IMAGES, MODELS = "/v1/chat/completions", "/v1/images/generations", "/v1/models"


@pytest.fixture(scope="module")
def web() -> Iterator[httpx.Client]:
    with served(keys=("sk-one",)) as one:
        headers = {"authorization": "Bearer sk-one", "content-type": "application/json"}
        with httpx.Client(base_url=one.url, headers=headers, timeout=SECONDS) as made:
            yield made


def sent(web: httpx.Client, path: str, body: str, **headers: str) -> httpx.Response:
    reply = web.post(path, content=body.encode(), headers=headers)
    assert reply.status_code == 200, reply.text
    return reply


def chunks(reply: httpx.Response) -> list[Any]:
    assert reply.headers["content-type"].startswith("text/event-stream")
    *lines, done = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert done == "[DONE]"
    return [json.loads(line) for line in lines]


FORWARDED = {"x-openwebui-chat-id": "7d0a4c53", "x-openwebui-user-role": "admin"}


class TestOpenWebUI:
    def test_its_list_of_models(self, web: httpx.Client) -> None:
        listed = web.get(MODELS).json()
        assert [(one["id"], one["object"]) for one in listed["data"]] == [("shapes", "model")]

    def test_its_image_engine(self, web: httpx.Client) -> None:
        body = '{"model": "shapes", "prompt": "a red circle", "n": 1, "size": "512x512", "response_format": "b64_json"}'
        [drawn] = sent(web, IMAGES, body, **FORWARDED).json()["data"]
        assert "url" not in drawn  # which it would fetch
        assert image_of(drawn["b64_json"]).size == (512, 512)

    def test_its_image_engine_with_parameters_of_the_administrator(self, web: httpx.Client) -> None:
        body = (
            '{"model": "shapes", "prompt": "a red circle", "n": 2, "size": "512x512", "response_format": "b64_json", '
            '"preset": "fast", "seed": 3}'
        )
        assert len(sent(web, IMAGES, body).json()["data"]) == 2

    def test_a_chat(self, web: httpx.Client) -> None:
        parts = [
            {"type": "text", "text": "What color is it?"},
            {"type": "image_url", "image_url": {"url": SHOWN}},
        ]
        body = {
            "stream": True,
            "model": "shapes",
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": parts},
                {"role": "assistant", "content": "It is red."},
                {"role": "user", "content": "Are you sure?"},
            ],
            "stream_options": {"include_usage": True},
            "max_tokens": 16,
            "temperature": 0.7,
            "top_p": 0.9,
            "frequency_penalty": 0.0,
            "seed": 1,
            "stop": ["###"],
        }
        *told, last = chunks(sent(web, CHAT, json.dumps(body), **FORWARDED))
        assert told[-1]["choices"][0]["finish_reason"] in ("stop", "length")
        assert last["usage"]["total_tokens"] > last["usage"]["prompt_tokens"] > 0

    @pytest.mark.parametrize("more", [{"max_tokens": 1000}, {}], ids=["title", "tags and follow-ups"])
    def test_its_tasks_after_a_chat(self, web: httpx.Client, more: dict[str, int]) -> None:
        prompt = (
            "### Task:\nGenerate a title.\n### Chat History:\n<chat_history>\nUSER: What color is it?\n</chat_history>"
        )
        body = {"model": "shapes", "messages": [{"role": "user", "content": prompt}], "stream": False, **more}
        [choice] = sent(web, CHAT, json.dumps(body)).json()["choices"]
        assert isinstance(choice["message"]["content"], str)

    def test_native_function_calls_are_refused_by_name(self, web: httpx.Client) -> None:
        tool = {"type": "function", "function": {"name": "generate_image", "parameters": {}}}
        body = {"model": "shapes", "messages": [{"role": "user", "content": "Hello"}], "stream": True, "tools": [tool]}
        reply = web.post(CHAT, json=body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "tools")


class TestLiteLLM:
    def test_a_chat(self, web: httpx.Client) -> None:
        body = (
            '{"model":"shapes","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"'
            + SHOWN
            + '"}},{"type":"text","text":"What color is it?"}]}],"temperature":0,"max_tokens":16}'
        )
        reply = sent(web, CHAT, body).json()
        assert reply["choices"][0]["message"]["content"].strip() == "red"
        assert reply["usage"]["completion_tokens"] > 0

    def test_a_stream(self, web: httpx.Client) -> None:
        body = (
            '{"model":"shapes","messages":[{"role":"user","content":"Is a circle round?"}],"stream":true,'
            '"stream_options":{"include_usage":true}}'
        )
        *told, last = chunks(sent(web, CHAT, body))
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] > 0
        assert told[0]["choices"][0]["delta"]["role"] == "assistant"

    def test_a_stream_through_its_router(self, web: httpx.Client) -> None:
        body = (
            '{"model":"shapes","messages":[{"role":"user","content":"Is a circle round?"}],"n":1,"stop":["x"],'
            '"max_tokens":8,"seed":3,"stream":true}'
        )
        assert chunks(sent(web, CHAT, body))[-1]["choices"][0]["finish_reason"] == "stop"

    @pytest.mark.parametrize(
        ("body", "size"),
        [
            ('{"model":"shapes","prompt":"a red circle","n":1,"size":"256x256"}', 256),
            ('{"model":"shapes","prompt":"a red circle","seed":3,"num_inference_steps":4}', 64),
            ('{"model":"shapes","prompt":"test from litellm"}', 64),
        ],
        ids=["an image", "with options of ours", "its check of health"],
    )
    def test_an_image(self, web: httpx.Client, body: str, size: int) -> None:
        reply = sent(web, IMAGES, body).json()
        assert image_of(reply["data"][0]["b64_json"]).size == (size, size)
        assert reply["usage"]["output_tokens"] > 0

    def test_a_response(self, web: httpx.Client) -> None:
        body = '{"model":"shapes","input":"a red circle","tools":[{"type":"image_generation"}]}'
        [call] = sent(web, "/v1/responses", body).json()["output"]
        assert call["type"] == "image_generation_call"


class TestGpustack:
    def test_its_check_of_health_and_of_facts(self) -> None:
        with served() as one:
            reply = httpx.get(f"{one.url}{MODELS}", timeout=SECONDS)
        assert reply.status_code == 200
        assert reply.json()["data"][0]["max_model_len"] == 512

    def test_its_check_needs_a_server_without_keys(self, web: httpx.Client) -> None:
        assert httpx.get(web.base_url.join(MODELS), timeout=SECONDS).status_code == 401
        assert httpx.get(web.base_url.join("/health/ready"), timeout=SECONDS).status_code == 200

    def test_its_check_of_inference(self, web: httpx.Client) -> None:
        body = {
            "model": "shapes",
            "messages": [{"role": "user", "content": "ping"}],
            "max_tokens": 1,
            "max_completion_tokens": 1,
        }
        assert sent(web, CHAT, json.dumps(body)).json()["usage"]["completion_tokens"] == 1
