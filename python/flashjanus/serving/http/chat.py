"""POST /v1/chat/completions: answers a conversation, in one body or token by token."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from fastapi import Request
from starlette.responses import JSONResponse, Response

from flashjanus.errors import FlashJanusError, InputError
from flashjanus.sampling.values import MAX_COUNT
from flashjanus.serving.async_engine import Stream
from flashjanus.serving.http import media, sse
from flashjanus.serving.http.body import read
from flashjanus.serving.http.errors import ApiError, told
from flashjanus.serving.http.fields import given
from flashjanus.serving.http.middleware import note
from flashjanus.serving.http.schemas import MOST_STOPS, TEXT_EXTRAS, ChatBody
from flashjanus.serving.http.settings import Settings
from flashjanus.serving.http.state import State, state_of
from flashjanus.serving.http.watch import watched
from flashjanus.serving.messages import Answered, ChatRequest, Event, Logprob, Piece, Usage

Numbered: TypeAlias = AsyncGenerator[tuple[int, Event], None]
"""Events of several streams, each with its stream's number."""


async def conversation(
    settings: Settings,
    messages: Sequence[Mapping[str, Any]],
    *,
    max_tokens: int | None = None,
    max_completion_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    stop: str | Sequence[str] | None = None,
    logprobs: int | None = None,
    origin: str = "messages",
    **options: Any,
) -> ChatRequest:
    """Make a ChatRequest from the API's fields. `options` holds the fields of TEXT_EXTRAS; origin: the field that
    holds the messages. Raises ApiError, InputError."""
    longest = {"max_tokens": max_tokens, "max_completion_tokens": max_completion_tokens}
    asked = {name: tokens for name, tokens in longest.items() if tokens is not None}
    if len({*asked.values()}) > 1:
        raise InputError(f"max_tokens: expected either max_tokens or max_completion_tokens, got {asked}")
    for name, tokens in asked.items():
        if settings.max_tokens is not None and tokens > settings.max_tokens:
            raise InputError(f"{name}: expected at most {settings.max_tokens} on this server, got {tokens}")
    most = next(iter(asked.values()), min(settings.default_tokens, settings.max_tokens or MAX_COUNT))
    temperature = 1.0 if temperature is None else temperature
    stops = [] if stop is None else [stop] if isinstance(stop, str) else [*stop]
    if len(stops) > MOST_STOPS:
        raise InputError(f"stop: expected at most {MOST_STOPS} strings, got {len(stops)}")
    options |= {"max_new_tokens": min(most, MAX_COUNT), "do_sample": temperature > 0, "temperature": temperature}
    if top_p is not None:
        options["top_p"] = top_p
    if stops:
        options["stop"] = stops
    turns = await media.conversation(messages, settings, origin)
    return ChatRequest(messages=turns, options=options, logprobs=logprobs, deadline=settings.deadline)


def repeated(request: ChatRequest, n: int) -> list[ChatRequest]:
    """The same request n times; the seed, if there is one, counts up."""
    seed = request.options.get("seed")
    seeds = [{} if seed is None else {"seed": seed + number} for number in range(n)]
    return [replace(request, options={**request.options, **one}) for one in seeds]


@dataclass
class Choice:
    """One answer, as far as it has been written."""

    index: int
    text: str = ""
    reason: str | None = None
    logprobs: list[dict[str, Any]] = field(default_factory=list)


async def completions(request: Request) -> Response:
    """Answer a conversation."""
    state = state_of(request)
    body = await read(request, ChatBody, state.settings.body_seconds)
    name = state.name(body.model)
    _check(body)
    fields = given(body, ("max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", *TEXT_EXTRAS))
    likeliest = (body.top_logprobs or 0) if body.logprobs else None
    messages = [message.model_dump(include={"role", "content"}) for message in body.messages]
    note(request.scope, kind="chat", messages=_texts(messages) if state.settings.log_prompts else None)
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": name,
        "system_fingerprint": f"flashjanus-{state.facts.version}",
    }
    try:
        asked = await conversation(state.settings, messages, logprobs=likeliest, **state.adapted(body.model, fields))
        streams = await submitted(state, repeated(asked, body.n or 1))
    except FlashJanusError as error:
        raise told(error, "messages") from error
    events = merged([watched(stream, state, request.scope) for stream in streams])
    if body.stream:
        told_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        chunks = _chunks(events, head, len(streams), bool(body.logprobs), told_usage)
        return sse.EventStream(chunks, streams, state.settings)
    reply = _reply(events, head, len(streams), bool(body.logprobs))
    return await sse.unless_gone(reply, streams, request.scope, request.receive)


def _check(body: Any) -> None:
    """Check fields that depend on each other. Raises ApiError."""
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options: expected only with stream", "invalid_value", "stream_options")
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs: expected only with logprobs", "invalid_value", "top_logprobs")


def _texts(messages: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The texts for the log, without images."""
    parts = ((one["role"], one["content"]) for one in messages)
    return [
        [role, content if isinstance(content, str) else " ".join(part.get("text", "(image)") for part in content)]
        for role, content in parts
    ]


async def submitted(state: State, requests: Sequence[ChatRequest]) -> list[Stream]:
    """Submit all requests and return their streams. If one request is refused, all others are closed."""
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(await state.engine.submit(one)) for one in requests]
        stack.pop_all()
    return streams


async def merged(streams: Sequence[AsyncGenerator[Event, None]]) -> Numbered:
    """Yield the events of several streams as they arrive, each with the number of its stream. An error in one ends
    all."""
    if len(streams) == 1:  # a single stream needs no task per event
        async with aclosing(streams[0]) as events:
            async for event in events:
                yield 0, event
        return
    waiting = {asyncio.ensure_future(anext(one)): number for number, one in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                number = waiting.pop(task)
                try:
                    event = task.result()
                except StopAsyncIteration:
                    continue
                waiting[asyncio.ensure_future(anext(streams[number]))] = number
                yield number, event
    finally:
        for task in waiting:
            task.cancel()
        # Only one of several simultaneous errors is raised; retrieve the others so that asyncio does not log them as
        # lost.
        await asyncio.gather(*waiting, return_exceptions=True)
        for one in streams:
            await one.aclose()


async def _reply(events: Numbered, head: Mapping[str, Any], n: int, logprobs: bool) -> Response:
    choices, used = [Choice(number) for number in range(n)], list[Usage]()
    async with aclosing(events) as told_:
        async for number, event in told_:
            choice = choices[number]
            if isinstance(event, Piece | Answered):
                choice.text += event.text
            if isinstance(event, Piece):
                choice.logprobs += logprobs_of(event)
            elif isinstance(event, Answered):
                choice.reason = event.reason
                used.append(event.usage)
    shown: list[dict[str, Any]] = [
        {
            "index": one.index,
            "message": {"role": "assistant", "content": one.text, "refusal": None, "annotations": []},
            "logprobs": {"content": one.logprobs, "refusal": None} if logprobs else None,
            "finish_reason": one.reason,
        }
        for one in choices
    ]
    return JSONResponse({**head, "object": "chat.completion", "choices": shown, "usage": usage(used)})


def usage(used: Sequence[Usage]) -> dict[str, Any]:
    """Token counts of n answers to one conversation, whose prompt counts once."""
    prompt, made = used[0].prompt_tokens, sum(one.completion_tokens for one in used)
    return {
        "prompt_tokens": prompt,
        "prompt_tokens_details": {"cached_tokens": min(one.cached_tokens for one in used)},
        "completion_tokens": made,
        "total_tokens": prompt + made,
    }


def logprobs_of(piece: Piece) -> list[dict[str, Any]]:
    """A token in the API's form, if the piece has one. The token that ends an answer is not part of its text and
    gives none."""
    if piece.token is None or not piece.token.text:
        return []
    return [{**_logprob(piece.token), "top_logprobs": [*map(_logprob, piece.likeliest)]}]


def _logprob(token: Logprob) -> dict[str, Any]:
    """A token in the API's form. A token that holds part of a character has a replacement character as text; its
    bytes are exact."""
    return {"token": token.text.decode(errors="replace"), "logprob": token.logprob, "bytes": [*token.text]}


async def _chunks(
    events: Numbered, head: Mapping[str, Any], n: int, logprobs: bool, told_usage: bool
) -> AsyncGenerator[bytes, None]:
    used = list[Usage]()

    def chunk(number: int, delta: Mapping[str, Any], reason: str | None = None, tokens: Any = None) -> bytes:
        choice = {"index": number, "delta": delta, "logprobs": tokens, "finish_reason": reason}
        return whole([choice])

    def whole(choices: list[Any], **more: Any) -> bytes:
        unused = {"usage": None} if told_usage else {}
        return sse.event({**head, "object": "chat.completion.chunk", "choices": choices, **unused, **more})

    for number in range(n):
        yield chunk(number, {"role": "assistant", "content": "", "refusal": None})
    async with aclosing(events) as told_:
        async for number, event in told_:
            if isinstance(event, Piece):
                tokens = logprobs_of(event)
                if event.text or tokens:
                    about = {"content": tokens, "refusal": None} if logprobs else None
                    yield chunk(number, {"content": event.text}, tokens=about)
            elif isinstance(event, Answered):
                used.append(event.usage)
                if event.text:
                    yield chunk(number, {"content": event.text})
                yield chunk(number, {}, event.reason)
    if told_usage:
        yield whole([], usage=usage(used))
    yield sse.DONE
