"""POST /v1/chat/completions: what each field does, and how replies and streams are built."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image
from serving_app import data_url, model, post, served

PATH = "/v1/chat/completions"
RED = data_url(Image.new("RGB", (80, 60), "red"))
BLUE = data_url(Image.new("RGB", (60, 80), "blue"), "JPEG")


def shown(url: str, **more: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def says(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": [*parts]}


QUESTION = user(shown(RED), says("What color is it?"))
GREEDY: dict[str, Any] = {"messages": [QUESTION], "temperature": 0}


@pytest.fixture(scope="module")
def web() -> Iterator[httpx.Client]:
    with served() as one, httpx.Client(base_url=one.url, timeout=60) as made:
        yield made


def answer(web: httpx.Client, **fields: Any) -> dict[str, Any]:
    reply = web.post(PATH, json={**GREEDY, **fields})
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def text(web: httpx.Client, **fields: Any) -> str:
    found: str = answer(web, **fields)["choices"][0]["message"]["content"]
    return found


def chunks(web: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    reply = web.post(PATH, json={**GREEDY, "stream": True, **fields})
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def expected(*messages: Any, **options: Any) -> str:
    found = model().chat([*messages], **options)
    assert isinstance(found, str)
    return found


def test_a_reply_is_that_of_the_model(web: httpx.Client) -> None:
    reply = answer(web)
    [choice] = reply["choices"]
    assert choice["message"] == {
        "role": "assistant", "content": expected(QUESTION), "refusal": None, "annotations": []
    }  # fmt: skip
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    assert (reply["object"], reply["model"]) == ("chat.completion", "shapes")
    used = reply["usage"]
    assert used["total_tokens"] == used["prompt_tokens"] + used["completion_tokens"]


def test_tokens_that_an_earlier_request_began_with_are_told_as_cached(web: httpx.Client) -> None:
    messages = [{"role": "user", "content": "Tell me of a zebra, " * 12}]
    first, again = (answer(web, messages=messages)["usage"] for _ in range(2))
    assert first["prompt_tokens"] == again["prompt_tokens"]
    assert first["prompt_tokens_details"]["cached_tokens"] < 16  # what all conversations begin with
    assert again["prompt_tokens"] - 16 <= again["prompt_tokens_details"]["cached_tokens"] < again["prompt_tokens"]


@pytest.mark.parametrize(
    "part",
    [
        shown(RED, detail="low"),
        shown(RED, detail="high"),
        {"type": "input_image", "image_url": RED},
        {"type": "input_image", "image_url": RED, "detail": "auto"},
        shown(RED.replace("data:image/png", "data:")),
        shown(RED.rstrip("=")),
    ],
)
def test_images_may_be_spelled_in_several_ways(web: httpx.Client, part: Any) -> None:
    asked = user(part, {"type": "input_text", "text": "What color is it?"})
    assert text(web, messages=[asked]) == expected(QUESTION)


def test_several_images_and_turns(web: httpx.Client) -> None:
    earlier = answer(web)["choices"][0]["message"]
    messages = [QUESTION, earlier, user(shown(BLUE), says("And this one?"))]
    plain = [QUESTION, {"role": "assistant", "content": earlier["content"]}, messages[-1]]
    assert text(web, messages=messages) == expected(*plain)
    both = user(shown(RED), shown(BLUE), says("Which is blue?"))
    assert text(web, messages=[both]) == expected(both)


@pytest.mark.parametrize("role", ["system", "developer"])
def test_the_system_prompt(web: httpx.Client, role: str) -> None:
    found = answer(web, messages=[{"role": role, "content": "Be brief."}, QUESTION])
    alone = answer(web, messages=[{"role": "system", "content": ""}, QUESTION])
    assert found["usage"]["prompt_tokens"] > alone["usage"]["prompt_tokens"]
    both = [{"role": "system", "content": "Be brief."}, {"role": "developer", "content": [says("Be kind.")]}, QUESTION]
    assert answer(web, messages=both)["usage"]["prompt_tokens"] > found["usage"]["prompt_tokens"]


def test_sampling_follows_its_seed(web: httpx.Client) -> None:
    hot = dict(temperature=2, seed=3, max_tokens=12)
    first = [one["message"]["content"] for one in answer(web, n=4, **hot)["choices"]]
    again = [one["message"]["content"] for one in answer(web, n=4, **hot)["choices"]]
    assert first == again
    assert len({*first}) > 1
    assert first == [
        expected(QUESTION, do_sample=True, temperature=2.0, seed=3 + n, max_new_tokens=12) for n in range(4)
    ]
    assert [text(web, **{**hot, "seed": 4})] == first[1:2]


def test_temperature_is_1_where_it_is_not_said() -> None:
    found = post(PATH, {"messages": [QUESTION], "seed": 8, "n": 6}).json()["choices"]
    assert [one["message"]["content"] for one in found] == [
        expected(QUESTION, do_sample=True, temperature=1.0, seed=8 + n) for n in range(6)
    ]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_answers_end_at_their_longest(web: httpx.Client, name: str) -> None:
    reply = answer(web, **{name: 1})
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 1


def test_more_tokens_than_the_context_holds_end_with_it(web: httpx.Client) -> None:
    assert text(web, max_tokens=100_000) == expected(QUESTION)


@pytest.mark.parametrize("stop", ["red", ["no such text", "red"]])
def test_stop(web: httpx.Client, stop: Any) -> None:
    assert "red" in expected(QUESTION)
    reply = answer(web, stop=stop)["choices"][0]
    assert reply["message"]["content"] == expected(QUESTION, stop=stop)
    assert "red" not in reply["message"]["content"]
    assert reply["finish_reason"] == "stop"


def test_chunks_make_the_answer(web: httpx.Client) -> None:
    found = chunks(web)
    assert {(one["object"], one["model"]) for one in found} == {("chat.completion.chunk", "shapes")}
    assert len({(one["id"], one["created"]) for one in found}) == 1
    assert "usage" not in found[0]
    deltas = [one["choices"][0] for one in found]
    assert deltas[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert deltas[-1]["delta"] == {}
    assert [one["finish_reason"] for one in deltas] == [None] * (len(deltas) - 1) + ["stop"]
    assert "".join(one["delta"].get("content", "") for one in deltas) == expected(QUESTION)


def test_usage_comes_last_where_it_is_asked_for(web: httpx.Client) -> None:
    answer(web)  # then all of the prompt is kept that can be
    *some, last = chunks(web, stream_options={"include_usage": True}, n=2)
    assert last["choices"] == []
    assert last["usage"] == answer(web, n=2)["usage"]
    assert all(one["usage"] is None for one in some)
    assert last["usage"]["completion_tokens"] == 2 * answer(web)["usage"]["completion_tokens"]


def test_a_stream_of_several_answers(web: httpx.Client) -> None:
    asked = dict(n=3, seed=1, temperature=2, max_tokens=10)
    texts = ["", "", ""]
    for one in chunks(web, **asked):
        for choice in one["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == [one["message"]["content"] for one in answer(web, **asked)["choices"]]


NEUTRAL: dict[str, Any] = dict(
    frequency_penalty=0, presence_penalty=0.0, response_format={"type": "text"}, tools=[], tool_choice="none",
    modalities=["text"], logit_bias={}, store=False, metadata={}, user="me", service_tier="auto", logprobs=False,
    stream=False, stream_options=None, parallel_tool_calls=None, functions=None, safety_identifier="me",
)  # fmt: skip


def test_fields_that_ask_for_nothing_are_taken(web: httpx.Client) -> None:
    assert text(web, **NEUTRAL) == expected(QUESTION)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0]"),
        ({"messages": [QUESTION, QUESTION]}, "messages[1]"),
        ({"messages": [QUESTION, {"role": "assistant", "content": "red"}]}, "messages"),
        ({"messages": [QUESTION | {"name": "me"}]}, "messages[0].name"),
        ({"messages": [user({"type": "input_audio", "input_audio": {}})]}, "messages[0].content[0]"),
        ({"messages": [user(says("a"), shown("x"))]}, "messages[0].content[1]"),
        ({"messages": [user({"type": "image_url", "image_url": RED})]}, "messages[0].content[0].image_url"),
        ({"messages": [user(shown(RED, detail="fine"))]}, "messages[0].content[0].image_url.detail"),
        ({"messages": [user(says("a") | {"cache": 1})]}, "messages[0].content[0].cache"),
        ({"messages": [{"role": "system", "content": [shown(RED)]}, QUESTION]}, "messages[0].content[0]"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"seed": -1}, "seed"),
        ({"seed": {}}, "seed"),
        ({"seed": [1], "n": 2}, "seed"),
        ({"seed": "1"}, "seed"),
        ({"seed": True}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"more": 1}}, "stream_options.more"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"presence_penalty": -1}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "a"}}, "audio"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"store": True}, "store"),
        ({"max_new_tokens": 5}, "max_new_tokens"),
    ],
)
def test_what_cannot_be_honored_is_refused_by_its_name(web: httpx.Client, fields: dict[str, Any], param: str) -> None:
    reply = web.post(PATH, json={**GREEDY, **fields})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


def test_a_conversation_that_is_too_long_says_so(web: httpx.Client) -> None:
    error = web.post(PATH, json={"messages": [user(says("a circle " * 600))]}).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


def test_limits_of_the_server_hold() -> None:
    reply = post(PATH, {**GREEDY, "max_completion_tokens": 9}, max_tokens=8)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "max_completion_tokens")
    reply = post(PATH, GREEDY, default_tokens=1)
    assert reply.json()["choices"][0]["finish_reason"] == "length"
    assert post(PATH, GREEDY, max_tokens=1).json()["usage"]["completion_tokens"] == 1
    assert post(PATH, GREEDY, prompt_chars=10).json()["error"]["code"] == "string_above_max_length"


def test_logprobs(web: httpx.Client) -> None:
    reply = answer(web, logprobs=True, top_logprobs=3)["choices"][0]
    content = reply["logprobs"]["content"]
    assert "".join(one["token"] for one in content) == reply["message"]["content"]
    for one in content:
        assert set(one) == {"token", "logprob", "bytes", "top_logprobs"}
        assert bytes(one["bytes"]).decode() == one["token"]
        likeliest = one["top_logprobs"]
        assert len(likeliest) == 3
        assert [each["logprob"] for each in likeliest] == sorted((each["logprob"] for each in likeliest), reverse=True)
        assert likeliest[0] == {name: one[name] for name in ("token", "logprob", "bytes")}
        assert one["logprob"] <= 0
    assert all(one["top_logprobs"] == [] for one in answer(web, logprobs=True)["choices"][0]["logprobs"]["content"])


def test_logprobs_in_a_stream_are_those_of_the_whole(web: httpx.Client) -> None:
    asked = dict(logprobs=True, top_logprobs=1, max_tokens=6)
    whole = answer(web, **asked)["choices"][0]["logprobs"]["content"]
    parts = [one["choices"][0]["logprobs"] for one in chunks(web, **asked)]
    assert [token for part in parts if part for token in part["content"]] == whole


def test_logprobs_come_with_an_answer_that_is_stopped(web: httpx.Client) -> None:
    reply = answer(web, logprobs=True, stop="red")
    assert len(reply["choices"][0]["logprobs"]["content"]) == reply["usage"]["completion_tokens"]
