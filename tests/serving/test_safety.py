"""Who may ask, and how much: keys, sizes, images of the network, clients that leave, logs."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from flashjanus.errors import InputError
from flashjanus.serving import AsyncEngine
from flashjanus.serving.http import Settings, create_app
from flashjanus.serving.http.settings import read_keys
from PIL import Image
from serving_app import SECONDS, Served, Told, client, data_url, post, served

IMAGES, CHAT = "/v1/images/generations", "/v1/chat/completions"
DRAW: dict[str, Any] = {"prompt": "a red circle", "num_inference_steps": 2}
LONG: dict[str, Any] = {"prompt": "a red circle", "num_inference_steps": 1000, "n": 4}
RED = data_url(Image.new("RGB", (40, 30), "red"))


def asking(*urls: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}]}


def until(what: Callable[[], bool]) -> None:
    ends = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < ends
        time.sleep(0.02)


def idle(server: Served) -> bool:
    stats = server.engine.stats()
    return not (stats.queued or stats.image_rows or stats.answer_rows)


# Keys


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("Bearer sk-tw", 401),
        ("Bearer sk-twoo", 401),
        ("Bearer SK-TWO", 401),
        ("Basic sk-two", 401),
        ("sk-two", 401),
        ("Bearer sk-one,sk-two", 401),
        ("Bearer s\u00e9cret", 401),
        ("Bearer sk-one", 200),
        ("Bearer sk-two", 200),
        ("bearer  sk-two ", 200),
    ],
)
def test_keys(header: str | None, status: int) -> None:
    headers = {} if header is None else {"authorization": header.encode("latin-1")}

    async def asked() -> Any:
        async with client(keys=("sk-one", "sk-two")) as one:
            return await one.get("/v1/models", headers=headers)

    reply = asyncio.run(asked())
    assert reply.status_code == status
    if status == 401:
        assert reply.json()["error"]["code"] == "invalid_api_key"
        assert reply.headers["www-authenticate"] == "Bearer"
        assert "sk-" not in reply.text


def test_health_and_documentation_need_no_key_and_all_else_does() -> None:
    async def asked() -> list[int]:
        async with client(keys=("sk-one",)) as one:
            paths = "/health/live", "/health/ready", "/docs", "/openapi.json", "/metrics", "/v1/models", "/v1", "/x"
            return [(await one.get(path)).status_code for path in paths]

    assert asyncio.run(asked()) == [200] * 4 + [401] * 4


def test_a_key_opens_the_playground() -> None:
    async def asked() -> list[int]:
        from flashjanus.serving.http.playground import add_playground

        app = create_app(AsyncEngine(Told()), Settings(keys=("sk-one",)))
        add_playground(app)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as one:
            there = await one.get("/ui")
            assert (there.status_code, there.headers["location"]) == (307, "/ui/")
            found = [await one.get("/ui/"), await one.get("/ui/config"), await one.get("/v1/models")]
            for key in ("sk-two", "sk-one"):
                found.append(await one.post("/ui/login", data={"username": "me", "password": key}))
            found += [await one.get("/ui/config"), await one.get("/v1/models")]
            return [reply.status_code for reply in found]

    assert asyncio.run(asked()) == [200, 401, 401, 400, 200, 200, 401]


def test_keys_of_a_file_and_of_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\n\nsk-a\n sk-b \nsk-a\n")
    assert read_keys(file, "sk-c, sk-b,") == ("sk-c", "sk-b", "sk-a")
    assert read_keys(None, None) == ()
    file.write_text("# none\n")
    with pytest.raises(InputError, match="keys"):
        read_keys(file, None)
    with pytest.raises(InputError, match="cannot read"):
        read_keys(tmp_path / "none", None)
    for none in ("", " , "):
        with pytest.raises(InputError, match="environment"):
            read_keys(None, none)
    with pytest.raises(InputError, match="ASCII"):
        read_keys(None, "sk-é")


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("LocalHost:8000", 200), ("[::1]:8000", 200), ("evil.example", 403), ("localhost.evil", 403)],
)
def test_a_name_that_was_made_to_mean_this_machine_is_not_taken_for_it(host: str, status: int) -> None:
    async def asked() -> Any:
        async with client(hosts=("localhost", "::1")) as one:
            return await one.get("/v1/models", headers={"host": host})

    reply = asyncio.run(asked())
    assert reply.status_code == status
    assert status == 200 or reply.json()["error"]["code"] == "host_not_allowed"


def test_a_key_has_so_many_requests_at_once() -> None:
    async def asked() -> tuple[list[int], int]:
        async with client(keys=("a", "b"), key_requests=2) as one:
            draws = [
                one.post(IMAGES, json={**DRAW, "num_inference_steps": 30}, headers={"authorization": f"Bearer {key}"})
                for key in "aaaabb"
            ]
            statuses = [reply.status_code for reply in await asyncio.gather(*draws)]
            after = await one.post(IMAGES, json=DRAW, headers={"authorization": "Bearer a"})
            return statuses, after.status_code

    statuses, after = asyncio.run(asyncio.wait_for(asked(), SECONDS))
    assert sorted(statuses[:4]) == [200, 200, 429, 429]
    assert statuses[4:] == [200, 200]
    assert after == 200


# Bodies


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(body_bytes=20_000, body_seconds=1.0) as one:
        yield one


def test_a_body_that_is_too_large_is_refused_before_it_is_read(server: Served) -> None:
    with socket.create_connection(server.server.servers[0].sockets[0].getsockname(), SECONDS) as raw:
        raw.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 999999\r\n\r\n"
                    % IMAGES.encode())  # fmt: skip
        assert raw.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_without_a_length_is_counted(server: Served) -> None:
    chunks = [b'{"prompt": "', *[b"a" * 1000] * 30, b'"}']
    with httpx.Client(base_url=server.url, timeout=SECONDS) as web:
        reply = web.post(IMAGES, content=iter(chunks), headers={"content-type": "application/json"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body_too_large")


def test_a_body_that_stays_away_is_not_waited_for(server: Served) -> None:
    with socket.create_connection(server.server.servers[0].sockets[0].getsockname(), SECONDS) as raw:
        raw.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
                    % IMAGES.encode())  # fmt: skip
        assert raw.recv(100).startswith(b"HTTP/1.1 408")


def test_half_a_body_does_no_harm(server: Served) -> None:
    with socket.create_connection(server.server.servers[0].sockets[0].getsockname(), SECONDS) as raw:
        raw.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
                    % IMAGES.encode())  # fmt: skip
    assert httpx.post(server.url + IMAGES, json=DRAW, timeout=SECONDS).status_code == 200


# Images


def bomb(width: int, height: int) -> str:
    """A PNG that declares more pixels than anybody wants, in a few bytes."""
    import base64
    import struct

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


@pytest.mark.parametrize(
    ("urls", "said"),
    [
        (["/etc/passwd"], "data: URL"),
        (["file:///etc/passwd"], "data: URL"),
        (["FILE:/etc/passwd"], "data: URL"),
        (["~/x.png"], "data: URL"),
        (["ftp://example.org/x.png"], "data: URL"),
        (["https://example.org/x.png"], "fetches no images"),
        (["HTTP://127.0.0.1/x.png"], "fetches no images"),
        (["data:image/png;base64"], "data:image"),
        (["data:image/png;base64,!!!!"], "base64"),
        (["data:image/png;base64,aGVsbG8="], "not an image"),
        (["data:image/svg+xml,<svg xmlns='x'/>"], "SVG"),
        ([bomb(60_000, 60_000)], "pixels"),
        ([bomb(9_000, 9_000)], "at most 50000000 pixels"),
        ([RED] * 17, "at most 16 images"),
        ([""], "data: URL"),
    ],
)
def test_images_that_are_not_taken(urls: list[str], said: str) -> None:
    reply = post(CHAT, asking(*urls))
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert said in error["message"]
    assert error["param"] == f"messages[0].content[{len(urls) - 1}]"


def test_an_image_has_so_many_bytes() -> None:
    size = len(RED) * 3 // 4
    assert post(CHAT, asking(RED), image_bytes=size).status_code == 200
    assert "bytes" in post(CHAT, asking(RED), image_bytes=50).json()["error"]["message"]


# Clients that leave


def test_a_client_that_leaves_a_stream_cancels() -> None:
    with served() as one, httpx.Client(base_url=one.url, timeout=SECONDS) as web:
        with web.stream("POST", IMAGES, json={**LONG, "stream": True, "partial_images": 3}) as reply:
            assert reply.status_code == 200
            until(lambda: not idle(one))
        until(lambda: idle(one))
        assert one.engine.stats().images == 0
        until(lambda: "flashjanus_cancellations_total 1.0" in httpx.get(one.url + "/metrics").text)


@pytest.mark.parametrize(("path", "body"), [(IMAGES, LONG), (CHAT, {**asking(RED), "n": 8, "temperature": 2})])
def test_a_client_that_does_not_wait_for_its_reply_cancels(path: str, body: Any) -> None:
    with served() as one:
        host, port = one.server.servers[0].sockets[0].getsockname()
        text = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n"
        with socket.create_connection((host, port), SECONDS) as raw:
            raw.sendall(head.encode() + b"\r\n" + text)
            until(lambda: not idle(one) or one.engine.stats().tokens > 0)
        until(lambda: idle(one))
        assert one.engine.stats().images == 0
        assert httpx.get(one.url + "/health/ready").status_code == 200


def test_a_server_that_drains_finishes_what_runs_and_takes_no_more() -> None:
    with served() as one, httpx.Client(base_url=one.url, timeout=SECONDS) as web:
        body = {**LONG, "num_inference_steps": 60, "stream": True}
        with web.stream("POST", IMAGES, json=body) as reply:
            until(lambda: not idle(one))
            one.server.stop()
            assert httpx.get(one.url + "/health/live").status_code == 200
            assert httpx.get(one.url + "/health/ready").status_code == 503
            refused = httpx.post(one.url + IMAGES, json=DRAW)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
            text = "".join(reply.iter_text())
        assert text.count("event: image_generation.completed") == 4


def test_what_runs_longer_than_the_drain_is_told() -> None:
    with (
        served(drain=0.3) as one,
        httpx.Client(base_url=one.url, timeout=SECONDS) as web,
        web.stream("POST", IMAGES, json={**LONG, "stream": True}) as reply,
    ):
        until(lambda: not idle(one))
        one.server.stop()
        text = "".join(reply.iter_text())
    assert "event: error" in text
    assert '"code":"unavailable"' in text


def test_a_silent_stream_is_kept_alive() -> None:
    reply = post(IMAGES, {**LONG, "num_inference_steps": 60, "stream": True}, keepalive=0.05)
    assert ": waiting\n\n" in reply.text
    assert reply.text.count("event: image_generation.completed") == 4


# Logs and browsers


@pytest.mark.parametrize("told", [False, True])
def test_logs_hold_prompts_only_where_they_are_to(caplog: pytest.LogCaptureFixture, told: bool) -> None:
    with caplog.at_level(logging.DEBUG):
        post(IMAGES, {**DRAW, "prompt": "a SECRET circle"}, log_prompts=told)
        post(CHAT, {"messages": [{"role": "user", "content": "a SECRET question"}]}, log_prompts=told)
        post(CHAT, {"messages": [{"role": "user", "content": "a SECRET"}], "tools": ["x"]}, log_prompts=told)
    lines = [one.fields for one in caplog.records if one.message == "request"]  # type: ignore[attr-defined]
    assert len(lines) == 3
    assert ("SECRET" in f"{lines[:2]}") == told
    assert "SECRET" not in f"{lines[2]} {[one.getMessage() for one in caplog.records]}"
    assert {"request_id", "method", "path", "status", "seconds"} <= {*lines[0]}
    assert lines[0]["completion_tokens"] == 16


def test_lines_of_the_log_are_json() -> None:
    from flashjanus.serving.http.logs import JsonLines

    record = logging.LogRecord("one", logging.INFO, "", 0, 'a "quoted" %s', ("word\n",), None)
    record.fields = {"request_id": "r"}
    line = JsonLines().format(record)
    assert "\n" not in line
    found = json.loads(line)
    assert (found["message"], found["level"], found["request_id"]) == ('a "quoted" word\n', "info", "r")


def test_web_pages_of_other_origins_may_not_call_unless_they_are_let() -> None:
    async def asked(**settings: Any) -> list[Any]:
        headers = {"origin": "https://page.example"}
        preflight = {**headers, "access-control-request-method": "POST"}
        async with client(keys=("k",), **settings) as one:
            return [await one.options(IMAGES, headers=preflight), await one.get("/v1/models", headers=headers)]

    assert all("access-control-allow-origin" not in one.headers for one in asyncio.run(asked()))
    for one in asyncio.run(asked(origins=("https://page.example",))):
        assert one.headers["access-control-allow-origin"] == "https://page.example"
    assert all("access-control-allow-origin" not in one.headers for one in asyncio.run(asked(origins=("https://b",))))
