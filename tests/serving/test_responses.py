"""POST /v1/responses: when it draws and when it answers, what each field does, and the order of its events."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from flashjanus.serving.http import images
from response_items import CALL, RED, says, shows, user
from serving_app import SECONDS, Served, image_of, model, served

PATH = "/v1/responses"
TOOL: dict[str, Any] = {"type": "image_generation", "num_inference_steps": 3, "seed": 5}
DRAW: dict[str, Any] = {"input": "a red circle", "tools": [TOOL]}
ASK: dict[str, Any] = {"input": "Is a circle round?", "temperature": 0}
LONG = {**TOOL, "num_inference_steps": 1000}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as one:
        yield one


@pytest.fixture(scope="module")
def web(server: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=SECONDS) as made:
        yield made


def made(web: httpx.Client, **fields: Any) -> dict[str, Any]:
    reply = web.post(PATH, json=fields)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def refusal(web: httpx.Client, **fields: Any) -> dict[str, Any]:
    reply = web.post(PATH, json=fields)
    assert reply.status_code in (400, 404), reply.text
    found: dict[str, Any] = reply.json()["error"]
    assert found["code"] == "context_length_exceeded" or found["message"].startswith(found["param"])
    return found


def events(web: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    reply = web.post(PATH, json={**fields, "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    return read(reply.text)


def read(stream: str) -> list[dict[str, Any]]:
    """The events of a stream, whose names are their types, and which are numbered."""
    found = []
    for block in stream.split("\n\n")[:-1]:
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [one["sequence_number"] for one in found] == [*range(len(found))]
    return found


def text(response: dict[str, Any]) -> str:
    [message] = response["output"]
    [part] = message["content"]
    found: str = part["text"]
    return found


def kind(response: dict[str, Any]) -> str:
    found: str = response["output"][0]["type"]
    return found


def test_an_image(web: httpx.Client) -> None:
    reply = made(web, **DRAW, model="shapes", metadata={"for": "a test"}, user="one", store=False)
    [call] = reply["output"]
    alone = model().generate_image("a red circle", num_inference_steps=3, seed=5).images[0]
    drawn = image_of(call["result"])
    assert max(abs(a - b) for a, b in zip(drawn.tobytes(), alone.tobytes(), strict=True)) <= 1
    assert (call["type"], call["status"], call["action"]) == ("image_generation_call", "completed", "generate")
    assert (call["size"], call["quality"], call["output_format"]) == ("64x64", "high", "png")
    assert (call["revised_prompt"], call["seed"], call["background"]) == ("a red circle", 5, "opaque")
    assert (reply["object"], reply["status"], reply["model"]) == ("response", "completed", "shapes")
    assert reply["completed_at"] >= reply["created_at"]
    assert reply["tools"] == [TOOL]
    assert (reply["metadata"], reply["user"], reply["store"]) == ({"for": "a test"}, "one", False)
    used = reply["usage"]
    assert used["output_tokens"] == reply["tool_usage"]["image_gen"]["output_tokens"] == 16
    assert used["total_tokens"] == used["input_tokens"] + 16


@pytest.mark.parametrize("body", [{**DRAW, "input": "a zebra"}, {**ASK, "input": "Is a zebra round?" * 9}])
def test_tokens_that_an_earlier_request_began_with_are_told_as_cached(web: httpx.Client, body: dict[str, Any]) -> None:
    first, again = (made(web, **body)["usage"] for _ in range(2))
    told, kept = (one["input_tokens_details"]["cached_tokens"] for one in (first, again))
    assert told < 16  # what all conversations begin with
    assert again["input_tokens"] - 16 <= kept <= again["input_tokens"]
    assert kept > told


def test_an_answer(web: httpx.Client) -> None:
    reply = made(web, **ASK)
    assert text(reply) == model().chat([user("Is a circle round?")])
    [message] = reply["output"]
    assert (message["type"], message["role"], message["status"]) == ("message", "assistant", "completed")
    assert reply["usage"]["output_tokens"] == 2  # and the end
    assert (reply["tools"], reply["tool_choice"], reply["temperature"]) == ([], "auto", 0)
    assert made(web, **ASK, max_output_tokens=64)["max_output_tokens"] == 64


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "message"),
        ({"tool_choice": "none"}, "message"),
        ({"tools": [TOOL]}, "image_generation_call"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "image_generation_call"),
        ({"tools": [TOOL], "tool_choice": "none"}, "message"),
        ({"tools": [TOOL], "tool_choice": "required"}, "image_generation_call"),
        ({"tools": [TOOL], "tool_choice": {"type": "image_generation"}}, "image_generation_call"),
        (
            {
                "tools": [TOOL],
                "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [{"type": "image_generation"}]},
            },
            "image_generation_call",
        ),
        ({"tools": [TOOL], "input": [user(shows(RED), says("What color is it?"))]}, "message"),
        (
            {
                "tools": [TOOL],
                "tool_choice": "required",
                "input": [
                    user(shows(RED), says("What color is it?")),
                    {"role": "assistant", "content": "red"},
                    user("a blue square"),
                ],
            },
            "image_generation_call",
        ),
    ],
)
def test_when_it_draws(web: httpx.Client, fields: dict[str, Any], expected: str) -> None:
    reply = made(web, **{"input": "a red circle", "temperature": 0, "max_output_tokens": 4, **fields})
    assert kind(reply) == expected
    assert reply["tool_choice"] == fields.get("tool_choice", "auto")


def test_an_image_is_asked_about_as_it_was_sent(web: httpx.Client) -> None:
    tool = {"type": "image_generation", "seed": 3}
    first = made(web, input="a red circle", tools=[tool])
    question = "What color is the circle?"
    items = [user("a red circle"), *first["output"], user(question)]
    reply = made(web, input=items, tools=[tool], temperature=0)
    shown = {"type": "image", "image": image_of(first["output"][0]["result"])}
    alone = model().chat([{"role": "user", "content": [shown, {"type": "text", "text": question}]}])
    assert text(reply) == alone == " red"
    later = [*items, *reply["output"], user("And its shape?")]
    assert kind(made(web, input=later, tools=[tool], temperature=0, max_output_tokens=4)) == "message"
    again = made(web, input=[*items[:-1], user("a blue square")], tools=[tool], tool_choice="required")
    assert again["output"][0]["revised_prompt"] == "a blue square"


def test_instructions(web: httpx.Client) -> None:
    asked = [{"role": "system", "content": "Be brief."}, user("Is a circle round?")]
    assert text(made(web, **ASK, instructions="Be brief.", max_output_tokens=8)) == model().chat(
        asked, max_new_tokens=8
    )
    assert made(web, **ASK, instructions="Be brief.")["instructions"] == "Be brief."
    assert made(web, **DRAW, instructions="On white.")["output"][0]["revised_prompt"] == "On white.\n\na red circle"


def test_sizes_formats_and_seeds(web: httpx.Client) -> None:
    tool = {**TOOL, "size": "96x48", "output_format": "jpeg", "output_compression": 80, "quality": "low"}
    [call] = made(web, input="a red circle", tools=[tool])["output"]
    drawn = image_of(call["result"])
    assert (drawn.size, drawn.format) == ((96, 48), "JPEG")
    assert (call["size"], call["output_format"], call["quality"]) == ("96x48", "jpeg", "low")
    del tool["seed"]
    assert made(web, input="a red circle", tools=[tool], seed=9)["output"][0]["seed"] == 9


def test_events_of_an_image(web: httpx.Client) -> None:
    told = events(web, input="a red circle", tools=[{**TOOL, "partial_images": 2}])
    call = "response.image_generation_call"
    assert [one["type"] for one in told] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        f"{call}.in_progress",
        f"{call}.generating",
        f"{call}.partial_image",
        f"{call}.partial_image",
        f"{call}.completed",
        "response.output_item.done",
        "response.completed",
    ]
    created, _, added, *steps, done, completed = told
    assert (created["response"]["status"], created["response"]["output"]) == ("in_progress", [])
    assert created["response"]["usage"] is None
    assert (added["item"]["status"], added["item"]["result"]) == ("in_progress", None)
    assert {(one["item_id"], one["output_index"]) for one in steps} == {(added["item"]["id"], 0)}
    partial = steps[2:4]
    assert [one["partial_image_index"] for one in partial] == [0, 1]
    assert [image_of(one["partial_image_b64"]).size for one in partial] == [(64, 64)] * 2
    assert completed["response"]["output"] == [done["item"]]
    assert len({one["response"]["id"] for one in told if "response" in one}) == 1
    assert done["item"]["result"] == made(web, **DRAW)["output"][0]["result"]


def test_events_of_an_answer(web: httpx.Client) -> None:
    made(web, **ASK)  # then all of the prompt is kept that can be
    told = events(web, **ASK)
    deltas = [one for one in told if one["type"] == "response.output_text.delta"]
    assert [one["type"] for one in told] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(deltas),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    whole = made(web, **ASK)
    whole_text = "".join(one["delta"] for one in deltas)
    assert whole_text == text(whole) == text(told[-1]["response"]) == told[-4]["text"]
    assert told[-1]["response"]["usage"] == whole["usage"]
    assert told[3]["part"]["text"] == told[2]["item"].get("text", "") == ""


def test_log_probabilities(web: httpx.Client) -> None:
    told = events(web, **ASK, top_logprobs=2)
    deltas = [one for one in told if one["type"] == "response.output_text.delta"]
    tokens = [token for one in deltas for token in one["logprobs"]]
    [part] = told[-1]["response"]["output"][0]["content"]
    assert tokens == part["logprobs"] == told[-4]["logprobs"]
    assert len(tokens) == told[-1]["response"]["usage"]["output_tokens"] - 1  # but for the one that ends it
    assert all(len(token["top_logprobs"]) == 2 and token["logprob"] <= 0 for token in tokens)
    [part] = made(web, **ASK, include=["message.output_text.logprobs"])["output"][0]["content"]
    assert [token["top_logprobs"] for token in part["logprobs"]] == [[]] * len(tokens)
    assert made(web, **ASK)["output"][0]["content"][0]["logprobs"] == []


def test_an_answer_that_is_cut(web: httpx.Client) -> None:
    told = events(web, **ASK, max_output_tokens=1)
    assert told[-1]["type"] == "response.incomplete"
    for response in (told[-1]["response"], made(web, **ASK, max_output_tokens=1)):
        assert response["status"] == response["output"][0]["status"] == "incomplete"
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        assert response["usage"]["output_tokens"] == 1
        assert "completed_at" not in response


def test_a_failure_is_told(web: httpx.Client) -> None:
    with served(deadline=0.5) as late, httpx.Client(base_url=late.url, timeout=SECONDS) as slow:
        told = events(slow, input="a red circle", tools=[LONG])
        reply = slow.post(PATH, json={"input": "a red circle", "tools": [LONG]})
    failed = told[-1]
    assert failed["type"] == "response.failed"
    assert failed["response"]["status"] == failed["response"]["output"][0]["status"] == "failed"
    assert failed["response"]["error"]["code"] == "server_error"
    assert failed["response"]["error"]["type"] == "timeout_error"
    assert (reply.status_code, reply.headers["x-should-retry"]) == (504, "false")


def test_a_fault_of_the_server_is_told_without_its_words(web: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> str:
        raise RuntimeError("a secret")

    monkeypatch.setattr(images.Rendering, "base64", broken)
    told = events(web, **DRAW)
    assert told[-1]["type"] == "response.failed"
    assert told[-1]["response"]["error"]["code"] == "server_error"
    assert "secret" not in json.dumps(told)


def test_a_client_that_leaves_is_not_drawn_for(web: httpx.Client, server: Served) -> None:
    with web.stream("POST", PATH, json={"input": "a red circle", "tools": [LONG], "stream": True}) as reply:
        lines = reply.iter_lines()  # which closes the reply when it goes
        assert next(lines) == "event: response.created"
        until(lambda: server.engine.stats().image_rows == 1)
    until(lambda: server.engine.stats().image_rows == 0)


def until(happened: Any) -> None:
    ends = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < ends
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": ""}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": "a", "color": 1}, "color", "unknown_parameter"),
        ({"input": "a", "store": True}, "store", "unsupported_parameter"),
        ({"input": "a", "previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
        ({"input": "a", "conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"input": "a", "background": True}, "background", "unsupported_parameter"),
        ({"input": "a", "truncation": "auto"}, "truncation", "unsupported_parameter"),
        ({"input": "a", "reasoning": {"effort": "high"}}, "reasoning.effort", "unsupported_parameter"),
        ({"input": "a", "text": {"format": {"type": "json_object"}}}, "text.format", "unsupported_parameter"),
        ({"input": "a", "include": ["file_search_call.results"]}, "include[0]", "invalid_value"),
        ({"input": "a", "metadata": {"a": 1}}, "metadata.a", "invalid_type"),
        ({"input": "a", "max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"input": "a", "stream_options": {}}, "stream_options", "invalid_value"),
        ({"input": "a", "model": "gpt-5"}, "model", "model_not_found"),
        ({"input": "a", "tool_choice": "required"}, "tools", "invalid_value"),
        ({"input": "a", "tool_choice": {"type": "function", "name": "f"}}, "tool_choice", "invalid_value"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "tools[0]", "invalid_value"),
        ({"input": "a", "tools": [TOOL, TOOL]}, "tools[1]", "invalid_value"),
        ({"input": "a", "tools": [{**TOOL, "size": "1x1"}]}, "tools[0].size", "invalid_value"),
        ({"input": "a", "tools": [{**TOOL, "model": "gpt-image-1"}]}, "tools[0].model", "model_not_found"),
        ({"input": "a", "tools": [{**TOOL, "action": "edit"}]}, "tools[0].action", "unsupported_parameter"),
        ({"input": "a", "tools": [{**TOOL, "background": "transparent"}]}, "tools[0].background", None),
        ({"input": "a", "tools": [{**TOOL, "partial_images": 1}]}, "tools[0].partial_images", "invalid_value"),
        ({"input": "a", "tools": [{**TOOL, "num_inference_steps": 0}]}, "tools[0].num_inference_steps", None),
        ({"input": "a", "tools": [{**TOOL, "color": 1}]}, "tools[0].color", "unknown_parameter"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input[0]", "invalid_value"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]", "invalid_value"),
        ({"input": [user("a"), {"type": "image_generation_call", "id": "ig_1"}]}, "input[1].result", None),
        ({"input": [user("a"), {"role": "assistant", "content": "b"}]}, "input", "invalid_value"),
        ({"input": [{"role": "assistant", "content": "b"}, user("a")]}, "input[0]", "invalid_value"),
        ({"input": [user("a"), {"role": "system", "content": "b"}, user("a")]}, "input[1]", "invalid_value"),
        ({"input": [user(" ")]}, "input[0]", "invalid_value"),
        ({"input": [user({"type": "input_file", "file_id": "f"})]}, "input[0].content[0]", "invalid_value"),
        ({"input": [user({"type": "input_image", "file_id": "f"})]}, "input[0].content[0].file_id", None),
        ({"input": [user(says("a"), shows("http://127.0.0.1/a"))]}, "input[0].content[1]", "invalid_image"),
        ({"input": [user("a"), {**CALL, "result": "!"}, user("b")]}, "input[1].result", "invalid_image"),
        ({"input": [{"role": "system", "content": [shows(RED)]}, user("b")]}, "input[0].content[0]", None),
        ({"input": [user(says("a"), shows(RED))], "tools": [TOOL], "tool_choice": "required"},
         "input[0].content[1]", None),
        ({"input": "a " * 3000}, "input", "context_length_exceeded"),
    ],
)  # fmt: skip
def test_refusals_name_the_field(web: httpx.Client, fields: dict[str, Any], param: str, code: str | None) -> None:
    told = refusal(web, **fields)
    assert told["param"] == param
    assert code is None or told["code"] == code


def test_limits_of_the_server_are_named_as_here() -> None:
    with served(max_tokens=4, max_steps=2) as one, httpx.Client(base_url=one.url, timeout=SECONDS) as web:
        assert refusal(web, input="a", max_output_tokens=5)["param"] == "max_output_tokens"
        assert refusal(web, **DRAW)["param"] == "tools[0].num_inference_steps"
