"""Sends one request to an endpoint and records when each part of its answer arrives."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any

import httpx

from .contents import picture
from .load import Call
from .sample import Sample
from .sse import Event, Reader

MOST_BYTES = 256 << 20
"""Of an answer."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """An endpoint, and the request settings other than the prompts. options: further fields of a body by "image" and
    "chat"; they override all others. timeout: seconds for a whole request. partial_images: None omits the field."""

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    stream: bool = True
    partial_images: int | None = None
    max_tokens: int = 64
    timeout: float = 300.0
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def named(self, model: str) -> Target:
        return replace(self, model=model)

    def body(self, call: Call) -> dict[str, Any]:
        """The JSON body posted for a request."""
        body: dict[str, Any] = {"model": self.model}
        if call.kind == "image":
            body["prompt"] = call.prompt
            if self.stream:
                body["stream"] = True
                if self.partial_images is not None:
                    body["partial_images"] = self.partial_images
            return {**body, **self.options.get("image", {})}
        content: Any = call.prompt
        if call.picture is not None:
            shown = {"type": "image_url", "image_url": {"url": picture(call.picture)}}
            content = [shown, {"type": "text", "text": call.prompt}]
        body["messages"] = [{"role": "user", "content": content}]
        own = self.options.get("chat", {})
        if "max_completion_tokens" not in own:
            body["max_tokens"] = self.max_tokens
        if self.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return {**body, **own}


class Refused(Exception):
    """A response that is an error: (kind or code, message)."""


class Client:
    """Sends requests to a Target. Times count from its creation, or from `restart`."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._start = time.perf_counter()
        headers = {} if target.api_key is None else {"Authorization": f"Bearer {target.api_key}"}
        # A proxy set in the environment applies to other hosts, never to this machine.
        self._http = httpx.AsyncClient(
            headers={"User-Agent": "flashjanus-bench", **headers},
            timeout=httpx.Timeout(target.timeout),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=not _is_loopback(httpx.URL(target.base_url).host),
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.aclose()

    def now(self) -> float:
        return time.perf_counter() - self._start

    def restart(self) -> None:
        """Count times from now."""
        self._start = time.perf_counter()

    async def models(self) -> list[str]:
        """The names that the endpoint lists. Raises Refused, httpx.HTTPError."""
        reply = await self._http.get(f"{self.target.base_url}/models")
        if reply.status_code != 200:
            raise Refused(*_refusal(reply.status_code, reply.content))
        listed = _json(reply.text)
        rows = listed.get("data") if isinstance(listed, dict) else None
        names = [row.get("id") for row in rows or [] if isinstance(row, dict)] if isinstance(rows, list) else []
        return [name for name in names if isinstance(name, str)]

    async def send(self, call: Call) -> Sample:
        """Send a request and read its whole answer."""
        now = self.now()
        sample = Sample(call.kind, now if call.due is None else call.due, now)
        try:
            await asyncio.wait_for(self._exchange(call, sample), self.target.timeout)
        except Refused as refused:
            sample.fail(*refused.args)
        except (asyncio.TimeoutError, httpx.TimeoutException):
            sample.fail("timeout", f"no whole answer within {self.target.timeout:g} s")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            sample.fail(type(error).__name__, error)
        sample.ended = self.now()
        return sample

    async def _exchange(self, call: Call, sample: Sample) -> None:
        path = "images/generations" if call.kind == "image" else "chat/completions"
        body = self.target.body(call)
        async with self._http.stream("POST", f"{self.target.base_url}/{path}", json=body) as reply:
            sample.headers = self.now()
            if reply.status_code != 200:
                raise Refused(*_refusal(reply.status_code, await self._whole(reply)))
            if not body.get("stream"):
                take_whole(sample, _json((await self._whole(reply)).decode("utf-8", "replace")), self.now())
                return
            kind = reply.headers.get("content-type", "none").partition(";")[0].strip()
            if kind != "text/event-stream":
                raise Refused("not a stream", f"expected text/event-stream, got {kind}; see --no-stream")
            take, ended, read = (take_image if call.kind == "image" else take_chunk), False, Reader()
            async for at, piece in self._pieces(reply):
                for event in read.feed(piece):
                    sample.event = at if sample.event is None else sample.event
                    ended = take(sample, event, at) or ended
            if not ended:
                raise Refused("cut short", "the stream ended before the answer did")

    async def _pieces(self, reply: httpx.Response) -> AsyncIterator[tuple[float, bytes]]:
        taken = 0
        async for piece in reply.aiter_bytes():
            taken += len(piece)
            if taken > MOST_BYTES:
                raise Refused("too long", f"expected an answer of at most {MOST_BYTES} bytes")
            yield self.now(), piece

    async def _whole(self, reply: httpx.Response) -> bytes:
        return b"".join([piece async for _, piece in self._pieces(reply)])


def take_chunk(sample: Sample, event: Event, at: float) -> bool:
    """Take one event of a chat's stream; returns whether the answer is complete. Raises Refused."""
    if event.data == "[DONE]":
        return True
    data = _object(event.data, event.name)
    ended = False
    for choice in _objects(data.get("choices")):
        delta = choice.get("delta")
        text = (delta.get("content") or delta.get("reasoning_content")) if isinstance(delta, dict) else None
        if text:
            sample.pieces.append(at)
            sample.tokens += 1
        ended = ended or choice.get("finish_reason") is not None
    _count_tokens(sample, data)
    return ended


def take_image(sample: Sample, event: Event, at: float) -> bool:
    """Take one event of an image's stream; returns whether it holds the image. Raises Refused."""
    if event.data == "[DONE]":
        return False
    kind = str(_object(event.data, event.name).get("type") or event.name)
    if kind.endswith("partial_image"):
        sample.partial = at if sample.partial is None else sample.partial
    elif kind.endswith(".completed"):
        sample.image, sample.images = at, sample.images + 1
        return True
    return False


def take_whole(sample: Sample, data: Any, at: float) -> None:
    """Take an answer that is not streamed. Raises Refused."""
    data = _checked(data)
    if sample.kind != "image":
        if not _objects(data.get("choices")):
            raise Refused("malformed", "expected choices, got none")
        _count_tokens(sample, data)
        return
    sample.images = sum(bool(one.get("b64_json") or one.get("url")) for one in _objects(data.get("data")))
    if not sample.images:
        raise Refused("malformed", "expected images, got none")
    sample.image = at


def _count_tokens(sample: Sample, data: Mapping[str, Any]) -> None:
    usage = data.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if isinstance(count, int):
        sample.tokens = count


def _object(text: str, name: str) -> dict[str, Any]:
    return _checked(_json(text), name)


def _checked(data: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(data, dict):
        raise Refused("malformed", "expected a JSON object, got another value")
    if data.get("error") or name == "error":
        raise Refused(f"error {_code(data)}", _said(data))
    return data


def _objects(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused("malformed", f"expected JSON, got {text[:80]!r} ({error})") from None


def _refusal(status: int, content: bytes) -> tuple[str, str]:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        return str(status), content.decode("utf-8", "replace")
    return f"{status} {_code(data)}".strip(), _said(data)


def _error(data: Any) -> Any:
    return data.get("error", data) if isinstance(data, dict) else data


def _code(data: Any) -> str:
    error = _error(data)
    return str((error.get("code") or error.get("type") or "") if isinstance(error, dict) else "")


def _said(data: Any) -> str:
    error = _error(data)
    return str(error.get("message", error) if isinstance(error, dict) else error)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
