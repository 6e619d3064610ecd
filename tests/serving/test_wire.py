"""The wire: what is sent arrives as it was, and nothing else is taken for a message."""

from __future__ import annotations

import io
import json
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flashjanus import errors
from flashjanus.errors import DeviceError, InputError
from flashjanus.serving import messages
from flashjanus.serving.messages import ChatRequest, Failure, ImageRequest, Usage
from flashjanus.serving.outbox import Outbox
from flashjanus.serving.portable import portable
from flashjanus.serving.together import afterward, together
from flashjanus.serving.wire import HEAD, MAGIC, MOST_BYTES, MOST_JSON, TYPES, Wire, WireError, frame
from PIL import Image

PICTURE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


@pytest.fixture
def ends() -> Iterator[tuple[Wire, Wire]]:
    wires = Wire((pair := socket.socketpair())[0]), Wire(pair[1])
    yield wires
    for wire in wires:
        wire.close()


def sent(wires: tuple[Wire, Wire], body: Any) -> Any:
    parts = frame(body)
    writer = threading.Thread(target=wires[0].send, args=(parts,))
    writer.start()
    received = wires[1].receive()
    writer.join()
    return received


EVENTS = [
    messages.Accepted(3, 2, 1),
    messages.Begun(),
    messages.Step(1, 30),
    messages.Piece("é", messages.Logprob(5, b"\xc3", -0.5), [messages.Logprob(6, b"", float("-inf"))]),
    messages.Answered("\ud800 of a surrogate", "stop", Usage(1, 0, 1)),
    messages.Facts("shapes", (64, 64), 16, 16, 512, "float32", "cpu", None, "0", {"ink": "styles/ink"}),
    messages.Stats(turns={"piece": (1, 0.25)}, prefixes={"images": (1, 2)}),
    ImageRequest(prompt="x", options={"seed": [1, 2], "guidance_interval": (0.1, 0.9), "d": {"u": []}}, deadline=1.5),
    ChatRequest(messages=[{"role": "user", "content": [{"type": "image", "image": b"\0\xff"}]}], logprobs=2),
    {"b": None, "deep": [{"a": True}, "e", 2**70]},
]


@pytest.mark.parametrize("body", EVENTS, ids=lambda body: type(body).__name__)
def test_what_is_sent_arrives_as_it_was(ends: tuple[Wire, Wire], body: Any) -> None:
    assert sent(ends, body) == body


def test_every_kind_of_message_can_be_sent() -> None:
    own = {
        name for name, one in vars(messages).items() if isinstance(one, type) and one.__module__ == messages.__name__
    }
    assert own == set(TYPES)


@pytest.mark.parametrize(
    "array",
    [
        PICTURE,
        PICTURE[:, ::-1],
        PICTURE[:0],
        np.float32([[0.25]]),
        np.array([1, 2], ">i4"),
        np.array([True]),
        np.array(3),
    ],
)
def test_arrays_keep_their_shape_and_numbers(ends: tuple[Wire, Wire], array: Any) -> None:
    first, found = sent(ends, [b"odd", array])
    assert first == b"odd"
    assert found.dtype == array.dtype
    assert found.flags.aligned
    np.testing.assert_array_equal(found, array)
    assert found.shape == array.shape


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_keep_their_class(ends: tuple[Wire, Wire], name: str) -> None:
    error = getattr(errors, name)("expected a, got b")
    found = sent(ends, Failure(error)).error
    assert type(found) is type(error)
    assert str(found) == str(error)


def test_an_error_that_is_not_public_becomes_a_device_error(ends: tuple[Wire, Wire]) -> None:
    found = sent(ends, WireError("broken"))
    assert type(found) is DeviceError
    assert str(found) == "broken"


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"latents": torch.zeros(1)}, "options.latents: .* got Tensor"),
        ({"seed": [1, {2}]}, r"options.seed\[1\]: .* got set"),
        ({"seed": {1: 2}}, "options.seed: expected names that are strings, got 1"),
        ({"seed": nested(100)}, "nested lists and objects"),
        ({"seed": 10**5000}, "cannot be sent"),
        ({"seed": np.array(["a"])}, "got ndarray"),
    ],
)
def test_what_cannot_be_sent_is_named(options: Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        frame({"request": ImageRequest(prompt="x", options=options)})


def test_what_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashjanus.serving.wire.MOST_BYTES", 17)
    with pytest.raises(InputError, match=r"at most .* and 17 of images .* and 18; send less"):
        frame(PICTURE)


def head(text: bytes, size: int = 0, magic: bytes = MAGIC) -> bytes:
    return HEAD.pack(magic, len(text), size) + text


def json_of(packed: Any, sizes: Any) -> bytes:
    return json.dumps([packed, sizes]).encode()


@pytest.mark.parametrize(
    "raw",
    [
        head(b"[1,[]]", magic=b"HTTP"),
        HEAD.pack(MAGIC, MOST_JSON + 1, 0),
        HEAD.pack(MAGIC, 1, MOST_BYTES + 1),
        head(b""),
        head(b"\xff\xfe"),
        head(b"{}"),
        head(json_of(1, [2])),
        head(json_of(1, [-1, 1])),
        head(json_of(1, ["x"])),
        head(json_of({"b": 0}, [])),
        head(json_of({"b": "0"}, [])),
        head(json_of({"a": [0, "O", [1]]}, [8]), 8) + bytes(8),
        head(json_of({"a": [0, "u1", [3]]}, [2]), 2) + bytes(2),
        head(json_of({"a": [0, "no", [3]]}, [2]), 2) + bytes(2),
        head(json_of({"t": ["Popen", {"args": "true"}]}, [])),
        head(json_of({"t": ["Step", {"steps": 1}]}, [])),
        head(json_of({"x": 1}, [])),
        head(json_of({"d": {}, "u": []}, [])),
        head(b"[" * 100_000),
    ],
)
def test_a_broken_frame_is_an_error(raw: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=ours.sendall, args=(raw,))
        sender.start()
        with pytest.raises(WireError, match="expected a frame of this protocol"):
            Wire(theirs).receive()
        theirs.shutdown(socket.SHUT_RDWR)
        sender.join()


@pytest.mark.parametrize("raw", [b"", HEAD.pack(MAGIC, 10, 0) + b"[1"])
def test_an_end_is_told_from_a_broken_frame(raw: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(raw)
        ours.close()
        with pytest.raises(EOFError):
            Wire(theirs).receive()


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "given",
    [
        Image.fromarray(PICTURE),
        Image.fromarray(PICTURE).convert("RGBA"),
        io.BytesIO(png()),
        torch.from_numpy(PICTURE).permute(2, 0, 1),
        PICTURE,
    ],
    ids=lambda given: type(given).__name__,
)
def test_images_are_sent_without_loss(ends: tuple[Wire, Wire], given: Any) -> None:
    content = [{"type": "image", "image": given}, {"type": "text", "text": "?"}]
    request = portable(ChatRequest(messages=[{"role": "user", "content": content}]))
    found = sent(ends, request).messages[0]["content"]
    np.testing.assert_array_equal(found[0]["image"], PICTURE)
    assert found[1] == content[1]


def test_a_path_is_sent_whole() -> None:
    request = portable(ChatRequest(messages=[{"image": Path("a.png")}]))
    assert request.messages == [{"image": str(Path.cwd() / "a.png")}]


def test_an_outbox_has_bounds_and_never_blocks(ends: tuple[Wire, Wire]) -> None:
    unsent: list[Any] = []
    outbox = Outbox(ends[0], 10 * 2**20, lambda body, error: unsent.append((body, error)))
    megabyte = bytes(2**20)
    taken = [outbox.put([n, megabyte], 2**20) for n in range(40)]  # nobody reads
    assert taken.count(True) in (10, 11)  # of which the thread may have taken one
    assert not outbox.put("half", 1, share=0.5)
    assert outbox.put({1, 2})
    assert outbox.put("the last")
    outbox.replace("figures", "old")
    outbox.replace("figures", "new")
    received = [ends[1].receive() for _ in range(taken.count(True) + 2)]
    assert [one[0] for one in received if isinstance(one, list)] == [n for n, was in enumerate(taken) if was]
    assert received[-1] == "the last"
    assert received.count("new") == 1
    assert "old" not in received
    assert unsent[0][0] == {1, 2}
    assert isinstance(unsent[0][1], InputError)
    outbox.close(5)


def test_an_outbox_whose_reader_has_gone_takes_no_more() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    outbox = Outbox(Wire(ours), 10, lambda body, error: None)
    outbox.put("lost")
    outbox.close(5)
    assert not outbox.put("more")
    ours.close()


def test_an_outbox_goes_on_after_an_image_that_cannot_be_read(ends: tuple[Wire, Wire]) -> None:
    class Broken:
        def read(self) -> bytes:
            raise RuntimeError("a secret")

    unsent: list[Any] = []
    outbox = Outbox(ends[0], 10, lambda body, error: unsent.append(error), lambda body: frame(portable(body)))
    outbox.put(ChatRequest(messages=[{"image": Broken()}]))
    outbox.put("next")
    assert ends[1].receive() == "next"
    assert isinstance(unsent[0], DeviceError)
    assert "secret" not in str(unsent[0])
    outbox.close(5)


def test_what_is_flushed_keeps_its_order_and_nobody_waits_for_room(ends: tuple[Wire, Wire]) -> None:
    """More than the system takes at once: the rest, and what comes after it, is sent by the outbox's thread."""
    outbox = Outbox(ends[0], 64 * 2**20, lambda body, error: None)
    picture = np.arange(2**20, dtype=np.uint8)
    for number in range(4):
        for part in ({"n": number}, {"n": number, "picture": picture}):
            assert outbox.put(part, picture.nbytes, wake=False)
        outbox.flush()
    outbox.put({"n": 4})
    received = [ends[1].receive() for _ in range(9)]
    assert [body["n"] for body in received] == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert all(np.array_equal(body["picture"], picture) for body in received[1:8:2])
    outbox.close(5.0)


def test_without_a_flush_nothing_is_sent_that_waits_for_one(ends: tuple[Wire, Wire]) -> None:
    outbox = Outbox(ends[0], 10, lambda body, error: None)
    assert outbox.put("first", 6, wake=False)
    assert not outbox.put("heavy", 6, wake=False)
    assert not select.select([ends[1]._socket], [], [], 0.05)[0]
    outbox.flush()
    assert outbox.put("second", 6, wake=False)  # for the first weighs no more
    outbox.flush()
    assert [ends[1].receive(), ends[1].receive()] == ["first", "second"]
    outbox.close(5.0)


def test_frames_that_have_come_together_are_known_to_be_there(ends: tuple[Wire, Wire]) -> None:
    ends[0].send([*frame("one"), *frame("two"), *frame("three")[:1]])
    assert not ends[1].holds
    assert ends[1].receive() == "one"
    assert ends[1].holds
    assert ends[1].receive() == "two"
    assert ends[1].receive() == "three"
    assert not ends[1].holds


def test_what_follows_from_several_things_is_done_once_after_all_of_them(caplog: pytest.LogCaptureFixture) -> None:
    done = list[str]()

    def fails() -> None:
        raise ValueError("planted")

    def follows() -> None:
        done.append("after")

    afterward(follows)
    with together():
        for number in range(3):
            done.append(str(number))
            afterward(fails)
            afterward(follows)
    assert done == ["after", "0", "1", "2", "after"]
    assert caplog.text.count("ValueError: planted") == 1
