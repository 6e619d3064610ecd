"""Parses a stream of bytes into server-sent events, following the WHATWG's specification."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One event. `name` is "message" if the server gives none."""

    name: str
    data: str


class Reader:
    """`feed` it data as it arrives, in pieces of any length, which may even split a character. Text after the last
    blank line of a stream is not an event."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._begun, self._parts = False, list[str]()
        self._name, self._data = "", list[str]()
        self._after_return = False

    def feed(self, piece: bytes) -> Iterator[Event]:
        text = self._decode(piece)
        if not self._begun and text:
            self._begun, text = True, text.removeprefix("\ufeff")
        if self._after_return and text:  # the other half of \r\n does not end a second line
            self._after_return, text = False, text.removeprefix("\n")
        if text.endswith("\r"):
            self._after_return = True
        *lines, rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for line in lines:
            whole, self._parts = "".join([*self._parts, line]), []
            event = self._line(whole)
            if event is not None:
                yield event
        if rest:
            self._parts.append(rest)

    def _line(self, line: str) -> Event | None:
        if not line:
            name, data = self._name or "message", self._data
            self._name, self._data = "", []
            return Event(name, "\n".join(data)) if data else None
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        return None  # comments, ids and retry times matter only to clients that reconnect
