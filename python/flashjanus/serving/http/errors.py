"""Errors as OpenAI's clients expect them: {"error": {"message", "type", "param", "code"}} and a status."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from flashjanus.errors import (
    BusyError,
    DeadlineError,
    FlashJanusError,
    InputError,
    NonFiniteError,
    OutOfMemoryError,
    UnavailableError,
)

NO_RETRY = {"x-should-retry": "false"}
"""The official clients retry 408, 409, 429 and 5xx unless this header tells them not to."""
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    504: "timeout_error",
}
"""Error types by status; others are "server_error" from 500 on and "invalid_request_error" below."""
NAMES = {
    "num_images_per_prompt": "n",
    "max_new_tokens": "max_tokens",
    "previews": "partial_images",
    "do_sample": "temperature",
}
"""The API's names of engine options that have other names there."""
_NAMED = re.compile(r"([a-z_]+(?:\[\d+\]|\.[a-z_]+)*): ")
TOO_LONG = "the prompt is too long"


@dataclass
class ApiError(Exception):
    """An error for the client. param: the field that it is about."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def type(self) -> str:
        return TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    @property
    def body(self) -> dict[str, Any]:
        told = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": told}


def renamed(error: ApiError, names: Mapping[str, str]) -> ApiError:
    """The same error for a request in which the field has another name."""
    old = error.param or ""
    new = names.get(old, old)
    return replace(error, message=error.message.replace(f"{old}:", f"{new}:", 1), param=new or None)


class Unsupported(ValueError):
    """A field of OpenAI's API has a value that this model cannot honor."""


class ErrorFields(BaseModel):
    """What went wrong, the field that it is about (if any), and a code for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every reply that reports an error."""

    error: ErrorFields


def told(error: FlashJanusError, param: str | None = None) -> ApiError:
    """Turn an engine error into an ApiError. param: the field, for an InputError that names none itself."""
    words = str(error)
    if isinstance(error, InputError):
        named = _NAMED.match(words)
        name = named[1] if named else param
        if name in NAMES:
            words, name = words.replace(f"{name}:", f"{NAMES[name]}:", 1), NAMES[name]
        code = "context_length_exceeded" if words.startswith(TOO_LONG) else "invalid_value"
        return ApiError(400, words, code, name)
    if isinstance(error, BusyError):
        return ApiError(429, words, "queue_full", headers={"retry-after": "1"})
    if isinstance(error, DeadlineError):
        return ApiError(504, words, "deadline_exceeded", headers=NO_RETRY)
    if isinstance(error, UnavailableError):
        return ApiError(503, words, "unavailable", headers={"retry-after": "2"})
    if isinstance(error, OutOfMemoryError):
        return ApiError(
            503,
            "not enough free memory for the request; ask for less, or try again later",
            "out_of_memory",
            headers={"retry-after": "5"},
        )
    if isinstance(error, NonFiniteError):
        return ApiError(500, words, "non_finite", headers=NO_RETRY)
    return unexpected()


def unexpected() -> ApiError:
    """A fault of ours. The client learns no details; the log has them, under the request's id."""
    return ApiError(
        500,
        "the server met an internal error; its log has the details under this reply's x-request-id",
        "internal_error",
    )


def plain(status: int, message: str | None = None, headers: Mapping[str, str] | None = None) -> ApiError:
    """A plain HTTP error."""
    words = HTTPStatus(status).phrase.lower()
    return ApiError(status, message or words, words.replace(" ", "_"), headers=headers or {})


def place(loc: tuple[int | str, ...]) -> str:
    """Format a location: ("messages", 0, "content") gives messages[0].content. A step such as "<...>" names the kind
    of a value and is left out."""
    path = ""
    for step in loc:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not step.startswith("<"):
            path += f".{step}" if path else step
    return path


def invalid(faults: list[ErrorDetails]) -> ApiError:
    """Report the first fault of a body that does not fit its model, by the name of its field."""
    fault = faults[0]
    param, kind, words = place(fault["loc"]), fault["type"], fault["msg"]
    if kind == "json_invalid":
        return ApiError(400, f"expected a body of JSON: {words}", "invalid_json")
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, Unsupported):
        return ApiError(400, f"{param}: {cause}", "unsupported_parameter", param)
    if isinstance(cause, InputError):
        said = told(cause, param)  # it names the field, but not its place in the body
        return renamed(said, {said.param or "": param})
    if kind == "extra_forbidden":
        return ApiError(
            400,
            f"{param}: unknown field; leave it out, because no field is ignored; /docs lists the fields",
            "unknown_parameter",
            param,
        )
    if kind == "missing":
        return ApiError(400, f"{param}: this field is required", "missing_required_parameter", param)
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    name = param or "the body"
    return ApiError(400, f"{name}: {words[:1].lower()}{words[1:]}, got {fault['input']!r:.80}", code, param or None)
