"""Images that requests name by URL: from allowed hosts, at public addresses, within limits."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from flashjanus.errors import InputError
from flashjanus.serving.http import Settings, remote
from PIL import Image
from serving_app import post


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, "PNG")
    return file.getvalue()


class Pictures(BaseHTTPRequestHandler):
    """A host of images, some of which are not what they should be."""

    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(self.path)
        if self.path == "/chunks":
            self.protocol_version = "HTTP/1.1"
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            data = png()
            for part in (data[:20], data[20:], b""):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            return
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        if self.path == "/slow":
            self.server.stopped.wait(30)  # type: ignore[attr-defined]
            return
        self.send_response(404 if self.path == "/none" else 200)
        self.end_headers()
        self.wfile.write(bytes(50_000) if self.path == "/large" else png())

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def host() -> Iterator[tuple[str, list[str]]]:
    seen: list[str] = []
    handler = type("Handler", (Pictures,), {"seen": seen})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.stopped = threading.Event()  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}", seen
        server.stopped.set()  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


def fetched(url: str, **settings: Any) -> bytes:
    given = {"remote_http": True, "remote_private": True, "image_bytes": 40_000, **settings}
    return asyncio.run(asyncio.wait_for(remote.fetch(url, Settings(**given)), 60))


@pytest.mark.parametrize("path", ["/image.png?size=1", "/chunks", "/to//image.png"])
def test_an_image_is_fetched(host: tuple[str, list[str]], path: str) -> None:
    name, seen = host
    assert fetched(f"http://{name}{path}", remote_hosts=(name,)) == png()
    assert seen[0] == path


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/large", "at most 40000 bytes"),
        ("/none", "status 404"),
        ("/slow", "within 0.5 s"),
        ("/to/http://localhost/x.png", "no images from localhost"),
        ("/to/file:///etc/passwd", "https: URL"),
        ("/to//to//to//to//to//image.png", "redirects"),
    ],
)
def test_what_is_not_fetched(host: tuple[str, list[str]], path: str, said: str) -> None:
    name, _ = host
    with pytest.raises(InputError, match=said):
        fetched(f"http://{name}{path}", remote_hosts=(name,), remote_seconds=0.5)


def test_a_host_at_a_private_address_is_never_asked(host: tuple[str, list[str]]) -> None:
    name, seen = host
    for allowed in (name, f"localhost:{name.partition(':')[2]}"):
        with pytest.raises(InputError, match="not public"):
            fetched(f"http://{allowed}/image.png", remote_hosts=(allowed,), remote_private=False)
    assert seen == []


def test_the_address_that_was_checked_is_the_one_that_is_asked(
    host: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that means another address at each look is looked up once."""
    looks = []

    async def resolve(name: str, port: int) -> list[str]:
        looks.append(name)
        return ["127.0.0.1"]

    monkeypatch.setattr(remote, "resolve", resolve)
    port = host[0].partition(":")[2]
    assert fetched(f"http://images.example:{port}/a", remote_hosts=(f"images.example:{port}",)) == png()
    assert looks == ["images.example"]


@pytest.mark.parametrize(
    ("url", "settings", "said"),
    [
        ("https://a.example/x", {}, "fetches no images"),
        ("http://a.example/x", {"remote_hosts": ("a.example",), "remote_http": False}, "https: URL"),
        ("https://b.example/x", {"remote_hosts": ("a.example",)}, "no images from b.example"),
        ("https://a.example.b.example/x", {"remote_hosts": ("a.example",)}, "no images from"),
        ("https://xa.example/x", {"remote_hosts": (".a.example", "a.example")}, "no images from"),
        ("https://a.example:444/x", {"remote_hosts": ("a.example",)}, "no images from a.example:444"),
        ("https://a.example@b.example/x", {"remote_hosts": ("a.example",)}, "without a user"),
        ("https://a.example:x/", {"remote_hosts": ("a.example",)}, "expected a URL"),
        ("https://[::1/", {"remote_hosts": ("a.example",)}, "expected a URL"),
        ("https:///x", {"remote_hosts": ("a.example",)}, "no images from"),
        ("https://a.example/a b", {"remote_hosts": ("a.example",)}, "percent-encoded"),
    ],
)
def test_urls_that_are_not_allowed(url: str, settings: dict[str, Any], said: str) -> None:
    given = Settings(**{"remote_http": True, **settings})
    with pytest.raises(InputError, match=said):
        remote.place_of(url, given)


@pytest.mark.parametrize("url", ["https://A.example./x", "https://b.c.example/x", "https://a.example:443/x"])
def test_urls_that_are_allowed(url: str) -> None:
    assert remote.place_of(url, Settings(remote_hosts=("a.example", ".c.example"))).port == 443


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("192.168.0.1", False),
        ("172.16.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert remote.is_public(address) == public


def test_a_conversation_shows_a_fetched_image(host: tuple[str, list[str]]) -> None:
    name, _ = host
    parts = [
        {"type": "image_url", "image_url": {"url": f"http://{name}/image.png"}}, {"type": "text", "text": "Color?"}
    ]  # fmt: skip
    body = {"messages": [{"role": "user", "content": parts}], "temperature": 0}
    allowed = dict(remote_hosts=(name,), remote_http=True)
    assert post("/v1/chat/completions", body, remote_private=True, **allowed).status_code == 200
    refused = post("/v1/chat/completions", body, **allowed)
    assert refused.json()["error"]["param"] == "messages[0].content[0]"
