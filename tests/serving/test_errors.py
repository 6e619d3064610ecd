"""What a server says where a request gets no result: the status, the body, the headers, and nothing of its inside."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest
from flashjanus.errors import (
    BusyError,
    DeadlineError,
    DeviceError,
    InputError,
    NonFiniteError,
    OutOfMemoryError,
    UnavailableError,
)
from flashjanus.scheduling import Limits
from flashjanus.serving import AsyncEngine
from flashjanus.serving.http import Settings, create_app
from flashjanus.serving.http.errors import told
from flashjanus.serving.messages import Accepted, Begun, Failure, Piece
from serving_app import SECONDS, Told, client, post

IMAGES, CHAT = "/v1/images/generations", "/v1/chat/completions"
DRAW: dict[str, Any] = {"prompt": "a red circle", "num_inference_steps": 2}
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Is a circle round?"}]}


def ask(backend: Told, path: str, body: Any, **settings: Any) -> Any:
    async def asked() -> Any:
        app = create_app(AsyncEngine(backend), Settings(**settings))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as one:
            return await one.post(path, json=body)

    return asyncio.run(asyncio.wait_for(asked(), SECONDS))


FAILURES = [
    (InputError, "guidance_scale: expected more", 400, "invalid_value", "invalid_request_error"),
    (BusyError, "expected at most 1 request to wait", 429, "queue_full", "rate_limit_error"),
    (DeadlineError, "not finished by its deadline", 504, "deadline_exceeded", "timeout_error"),
    (UnavailableError, "the engine is shutting down", 503, "unavailable", "server_error"),
    (OutOfMemoryError, "secret", 503, "out_of_memory", "server_error"),
    (NonFiniteError, "a row has left its range", 500, "non_finite", "server_error"),
    (DeviceError, "secret", 500, "internal_error", "server_error"),
]


@pytest.mark.parametrize(("error", "words", "status", "code", "kind"), FAILURES)
@pytest.mark.parametrize(("path", "body"), [(IMAGES, DRAW), (CHAT, ASK)])
@pytest.mark.parametrize("accepted", [False, True])
def test_each_failure_has_its_status(
    error: Any, words: str, status: int, code: str, kind: str, path: str, body: Any, accepted: bool
) -> None:
    events = [Accepted(5, 0), Begun()] if accepted else []
    reply = ask(Told(*events, Failure(error(words))), path, body)
    assert reply.status_code == status
    said = reply.json()["error"]
    assert (said["code"], said["type"]) == (code, kind)
    assert set(said) == {"message", "type", "param", "code"}
    assert "secret" not in reply.text
    assert ("retry-after" in reply.headers) == (status in (429, 503))
    assert (reply.headers.get("x-should-retry") == "false") == (code in ("deadline_exceeded", "non_finite"))


@pytest.mark.parametrize(("error", "words", "status", "code", "kind"), FAILURES)
@pytest.mark.parametrize(("path", "body"), [(IMAGES, DRAW), (CHAT, ASK)])
def test_a_failure_in_the_midst_of_a_stream_is_its_last_event(
    error: Any, words: str, status: int, code: str, kind: str, path: str, body: Any
) -> None:
    reply = ask(Told(Accepted(5, 0), Begun(), Piece("so "), Failure(error(words))), path, {**body, "stream": True})
    assert reply.status_code == 200
    *_, last = [block for block in reply.text.split("\n\n") if block]
    name, data = last.split("\n")
    assert name == "event: error"
    found = json.loads(data.removeprefix("data: "))
    assert found["type"] == "error"
    assert (found["error"]["code"], found["error"]["type"]) == (code, kind)
    assert "[DONE]" not in reply.text


def test_an_error_of_our_own_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Told):
        def submit(self, request: Any, tell: Any) -> None:
            raise RuntimeError("a secret of the inside")

    with caplog.at_level(logging.ERROR):
        reply = ask(Broken(), IMAGES, DRAW)
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in reply.text
    [record] = [one for one in caplog.records if one.exc_info]
    assert record.fields["request_id"] == reply.headers["x-request-id"]  # type: ignore[attr-defined]


def test_of_several_answers_that_are_not_all_accepted_none_is_left() -> None:
    class Second(Told):
        asked = 0

        def submit(self, request: Any, tell: Any) -> None:
            self.asked += 1
            tell(Accepted(5, 0) if self.asked < 3 else Failure(BusyError("full")))

    backend = Second()
    assert ask(backend, CHAT, {**ASK, "n": 4}).status_code == 429
    assert (backend.asked, backend.cancelled) == (3, 2)


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"", {}, 400, "invalid_json"),
        (b"{", {}, 400, "invalid_json"),
        (b"[]", {}, 400, "invalid_type"),
        (b"null", {}, 400, "invalid_type"),
        (b'{"prompt": NaN}', {}, 400, "invalid_type"),
        (b'{"prompt": "\xff"}', {}, 400, "invalid_json"),
        (b'{"prompt": "\\ud800"}', {}, 400, "invalid_json"),
        (b'{"prompt": "x", "\\u0000": 1}', {}, 400, "unknown_parameter"),
        (b"[" * 100_000, {}, 400, "invalid_json"),
        (b'{"prompt": "x"}', {"content-type": "text/plain"}, 415, "unsupported_media_type"),
        (b"prompt=x", {"content-type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
    ],
)
def test_bodies_that_are_no_json(body: bytes, headers: dict[str, str], status: int, code: str) -> None:
    reply = post(IMAGES, body, headers)
    assert reply.status_code == status
    assert reply.json()["error"]["code"] == code


def test_json_may_come_with_a_character_set() -> None:
    body = json.dumps({**DRAW, "prompt": "a réd circle"}).encode()
    assert post(IMAGES, body, {"content-type": "Application/JSON; charset=utf-8"}).status_code == 200


def test_paths_and_methods_that_there_are_not() -> None:
    async def asked() -> list[Any]:
        async with client() as one:
            return [
                await one.get("/v1/files"),
                await one.get(IMAGES),
                await one.post("/v1/models", json={}),
                await one.get("/v1/models/gpt-image-1"),
                await one.post(IMAGES, json={**DRAW, "model": "gpt-image-1"}),
                await one.post(CHAT, json={**ASK, "model": "gpt-4o"}),
            ]

    files, get, models, model, images, chat = asyncio.run(asked())
    assert (files.status_code, files.json()["error"]["code"]) == (404, "not_found")
    assert "/docs lists what there is" in files.json()["error"]["message"]
    assert (get.status_code, get.headers["allow"]) == (405, "POST")
    assert models.status_code == 405
    for reply in (model, images, chat):
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
        assert reply.json()["error"]["param"] == "model"


@pytest.mark.parametrize(
    ("given", "kept"),
    [("mine-1", True), ("a" * 128, True), ("a" * 129, False), ("a b", False), ("<script>", False), (None, False)],
)
@pytest.mark.parametrize("body", [DRAW, {}])
def test_every_response_has_an_id(given: str | None, kept: bool, body: Any) -> None:
    reply = post(IMAGES, body, {"x-request-id": given} if given else None)
    found = reply.headers["x-request-id"]
    assert (found == given) == kept
    assert kept or found.startswith("req_")


def test_names_of_the_engine_are_told_as_the_interface_has_them() -> None:
    error = told(InputError("num_images_per_prompt: expected an integer from 1 to 10000, got 0"))
    assert (error.param, error.message) == ("n", "n: expected an integer from 1 to 10000, got 0")
    assert told(InputError("it cannot be"), "messages").param == "messages"


def test_a_full_queue_says_when_to_come_again() -> None:
    async def asked() -> list[Any]:
        async with client(Limits(images=1, queued=1)) as one:
            body = {**DRAW, "num_inference_steps": 20}
            return await asyncio.gather(*[one.post(IMAGES, json=body) for _ in range(8)])

    replies = asyncio.run(asyncio.wait_for(asked(), SECONDS))
    statuses = {reply.status_code for reply in replies}
    assert statuses == {200, 429}
    refused = next(reply for reply in replies if reply.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "queue_full"


def test_a_request_that_takes_too_long_is_not_to_be_sent_again() -> None:
    reply = post(IMAGES, {**DRAW, "num_inference_steps": 1000}, deadline=0.2)
    assert reply.status_code == 504
    assert reply.headers["x-should-retry"] == "false"
