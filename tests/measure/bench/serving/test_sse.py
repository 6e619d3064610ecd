"""Server-sent events come out the same however the bytes are cut."""

from __future__ import annotations

import itertools

import pytest
from flashjanus.measure.bench.serving.sse import Event, Reader
from hypothesis import given
from hypothesis import strategies as st

STREAM = (
    "\ufeff: a comment\r\n\r\nevent: image\r\ndata: {1}\r\n\r\n"
    "data:no space\ndata:  two spaces\ndata\n\nid: 7\nretry: 10\ndata: \u00e9\u20ac\n\n"
    "event: alone\n\ndata: carriage\r\rdata: after the last blank line\n"
).encode()
EVENTS = [
    Event("image", "{1}"),
    Event("message", "no space\n two spaces\n"),
    Event("message", "\u00e9\u20ac"),
    Event("message", "carriage"),
]


@given(st.lists(st.integers(0, len(STREAM))))
def test_the_cuts_do_not_matter(cuts: list[int]) -> None:
    reader, ends = Reader(), [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in itertools.pairwise(ends)]
    assert [event for piece in pieces for event in reader.feed(piece)] == EVENTS


@pytest.mark.parametrize("name", ["message", ""])
def test_an_event_without_a_name_is_a_message(name: str) -> None:
    assert [*Reader().feed(f"event: {name}\ndata: x\n\n".encode())] == [Event("message", "x")]


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert [*Reader().feed(b"data: \xff\n\n")] == [Event("message", "\ufffd")]
