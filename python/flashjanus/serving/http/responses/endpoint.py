"""POST /v1/responses: replies with an answer or an image, in one body or as a stream of events."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from flashjanus.errors import FlashJanusError
from flashjanus.serving.http import chat, images, sse
from flashjanus.serving.http.body import read
from flashjanus.serving.http.errors import ApiError, renamed, told
from flashjanus.serving.http.fields import given
from flashjanus.serving.http.images import Drawing
from flashjanus.serving.http.middleware import note
from flashjanus.serving.http.responses.bodies import LOGPROBS, ImageTool, ResponseBody
from flashjanus.serving.http.responses.reply import Reply, last, streamed
from flashjanus.serving.http.responses.turns import Turn, conversation_of, prompt_of, texts, tool_of, turns_of
from flashjanus.serving.http.schemas import IMAGE_EXTRAS, TEXT_EXTRAS
from flashjanus.serving.http.state import State, state_of
from flashjanus.serving.http.watch import watched
from flashjanus.serving.messages import ChatRequest

TOOL_NAMES = {name: f"tools[0].{name}" for name in ImageTool.model_fields if name != "model"} | {"prompt": "input"}
TEXT_NAMES = {"max_tokens": "max_output_tokens", "messages": "input"}
"""The names that fields of images and of chats have in this API."""


async def create(request: Request) -> Response:
    """Answer a conversation, or draw an image with the image_generation tool."""
    state = state_of(request)
    body: Any = await read(request, ResponseBody, state.settings.body_seconds)
    name = state.name(body.model)
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options: expected only with stream", "invalid_value", "stream_options")
    turns = turns_of(body)
    tool = tool_of(body, turns)
    note(request.scope, kind="chat" if tool is None else "image")
    if state.settings.log_prompts:
        note(request.scope, messages=texts(turns))
    asked: Drawing | ChatRequest
    try:
        asked = await _question(state, body, turns) if tool is None else _drawing(state, body, tool, turns)
        stream = await state.engine.submit(asked.request if isinstance(asked, Drawing) else asked)
    except FlashJanusError as error:
        raise renamed(told(error, "input"), TEXT_NAMES if tool is None else _tool_names(tool)) from error
    reply, events = Reply(name, _echo(body)), watched(stream, state, request.scope)
    made = reply.image(events, asked) if isinstance(asked, Drawing) else reply.text(events)
    if body.stream:
        return sse.EventStream(streamed(made, tool is not None), [stream], state.settings, reply.failed)
    whole = await sse.unless_gone(last(made), [stream], request.scope, request.receive)
    return await asyncio.to_thread(JSONResponse, whole)


async def _question(state: State, body: Any, turns: list[Turn]) -> ChatRequest:
    told_tokens = body.top_logprobs or LOGPROBS in (body.include or ())
    fields = given(body, ("temperature", "top_p", *TEXT_EXTRAS))
    return await chat.conversation(
        state.settings,
        conversation_of(turns),
        max_tokens=body.max_output_tokens,
        logprobs=(body.top_logprobs or 0) if told_tokens else None,
        origin="input",
        **state.adapted(body.model, fields),
    )


def _drawing(state: State, body: Any, tool: Any, turns: list[Turn]) -> Drawing:
    """Make a Drawing of the request. The response's seed and adapter apply if the tool gives none."""
    if tool.partial_images and not body.stream:
        where = "tools[0].partial_images"
        raise ApiError(400, f"{where}: expected 0 without stream", "invalid_value", where)
    try:
        state.name(tool.model)
    except ApiError as error:
        raise renamed(error, {"model": "tools[0].model"}) from error
    options = ("size", "quality", "output_format", "output_compression", "partial_images", *IMAGE_EXTRAS)
    chooser = tool if _chooses(tool) else body
    adapter = state.adapted(chooser.model, given(chooser, ("adapter",)))
    return images.drawing(state, prompt_of(turns), **{**given(body, ("seed",)), **given(tool, options), **adapter})


def _chooses(tool: Any) -> bool:
    """Whether the tool, and not the response, says which adapter draws."""
    return tool.model is not None or tool.adapter is not None


def _tool_names(tool: Any) -> dict[str, str]:
    return TOOL_NAMES if _chooses(tool) else {**TOOL_NAMES, "adapter": "adapter"}


def _echo(body: Any) -> dict[str, Any]:
    """The request fields that the reply repeats."""
    shown = body.model_dump(include={"tools", "tool_choice", "metadata"}, exclude_none=True)
    repeated = ("instructions", "max_output_tokens", "max_tool_calls", "user", "safety_identifier", "prompt_cache_key")
    return {
        **{name: getattr(body, name) for name in repeated},
        "background": False,
        "metadata": {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        **shown,
    }
