"""ProcessBackend: another process gives what a thread gives, and the server outlives it."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asked import Asked, ask, descriptors, killed, model, until
from flashjanus.errors import BusyError, CheckpointError, DeadlineError, DeviceError, InputError, UnavailableError
from flashjanus.scheduling import Limits
from flashjanus.serving import AsyncEngine, ProcessBackend
from flashjanus.serving.backend import ThreadBackend
from flashjanus.serving.child import started
from flashjanus.serving.messages import (
    LAST,
    Accepted,
    Begun,
    ChatRequest,
    ImageRequest,
    Images,
    Partial,
    Step,
)
from flashjanus.serving.wire import Wire, frame
from flashjanus.serving.worker import loaded
from PIL import Image

LONG = ImageRequest(prompt="a red circle", options=dict(num_inference_steps=1000))
SHORT = ImageRequest(prompt="a red circle", options=dict(num_inference_steps=3, seed=5))
PICTURE = np.asarray(Image.linear_gradient("L").convert("RGB").resize((50, 40)))


@pytest.fixture(scope="module")
def served() -> Iterator[ProcessBackend]:
    with closing(ProcessBackend("shapes", dtype="float32")) as one:
        yield one


@pytest.fixture(scope="module")
def mortal() -> Iterator[ProcessBackend]:
    """One whose worker is killed, and started again at once."""
    with closing(ProcessBackend("shapes", dtype="float32", backoff=0.01)) as one:
        yield one


@pytest.fixture(scope="module")
def threaded() -> Iterator[ThreadBackend]:
    with closing(ThreadBackend(model())) as one:
        yield one


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "PNG")
    return file.getvalue()


def question(image: Any, **options: Any) -> ChatRequest:
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]
    return ChatRequest(messages=[{"role": "user", "content": content}], options=dict(max_new_tokens=8, **options))


@pytest.mark.parametrize(
    "request_",
    [
        SHORT,
        ImageRequest(prompt="a blue square", options=dict(num_images_per_prompt=2, seed=[3, 9], num_inference_steps=4)),
        ImageRequest(prompt="a circle", options=dict(num_inference_steps=8, seed=1), previews=3, full_previews=True),
        ImageRequest(prompt="a circle", options=dict(num_inference_steps=2, seed=1, guidance_interval=(0.1, 0.9))),
        ImageRequest(prompt="a circle", options=dict(num_inference_steps=2, seed=1, best_of=3)),
        question(png(), repetition_penalty=1.5),
        question(PICTURE),
        question(Image.fromarray(PICTURE), do_sample=True, seed=np.int64(1)),
    ],
)
def test_the_events_are_those_of_a_thread(served: ProcessBackend, threaded: ThreadBackend, request_: Any) -> None:
    there, here = ask(served, request_), ask(threaded, request_)
    assert [*map(type, there)] == [*map(type, here)]
    for one, other in zip(there, here, strict=True):
        if not isinstance(one, Partial | Images):
            assert one == other
            continue
        assert np.abs(np.subtract(one.images, other.images, dtype=np.int16)).max() <= 1
        assert {picture.dtype for picture in one.images} == {np.dtype(np.uint8)}
    last, same = there[-1], here[-1]
    if isinstance(last, Images):
        assert (last.seeds, last.usage) == (same.seeds, same.usage)
        assert last.scores == (None if same.scores is None else pytest.approx(same.scores, abs=1e-4))


def test_the_facts_are_those_of_a_thread(served: ProcessBackend, threaded: ThreadBackend) -> None:
    assert served.facts == threaded.facts


def test_its_figures_come_by_themselves(served: ProcessBackend) -> None:
    before = served.stats().images
    asked = Asked(served, LONG)
    until(lambda: served.stats().image_rows == 1)
    served.cancel(asked.ticket)
    ask(served, SHORT)
    until(lambda: served.stats().images == before + 1 and not served.stats().image_rows)
    assert served.stats().restarts == 0


@pytest.mark.parametrize(
    ("request_", "kind", "named"),
    [
        (ImageRequest(prompt=" "), InputError, "prompt"),
        (ImageRequest(prompt="x", options=dict(guidance_scal=2)), InputError, "guidance_scal"),
        (ImageRequest(prompt="x", options=dict(seed={1})), InputError, "options.seed"),
        (question(b"no image"), InputError, "not an image"),
        (question(Image.new("RGB", (0, 5))), InputError, "empty"),
        (ImageRequest(prompt="x", options=dict(num_inference_steps=1000), deadline=0.2), DeadlineError, "deadline"),
    ],
)
def test_errors_keep_their_class(served: ProcessBackend, request_: Any, kind: Any, named: str) -> None:
    error = Asked(served, request_).error()
    assert type(error) is kind
    assert named in str(error)


def test_a_request_that_is_cancelled_tells_nothing_more_and_frees_its_rows(served: ProcessBackend) -> None:
    asked = Asked(served, LONG)
    asked.until(Step)
    served.cancel(asked.ticket)
    served.cancel(asked.ticket)
    last = ask(served, SHORT)[-1]
    assert isinstance(last, Images)
    until(lambda: not served.stats().image_rows)
    while not asked.told.empty():
        assert not isinstance(asked.told.get(), LAST)


def test_a_listener_that_raises_loses_its_own_request_alone(
    served: ProcessBackend, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(event: Any) -> None:
        raise RuntimeError("a listener of a test's")

    other = Asked(served, SHORT)
    served.submit(LONG, refuse)
    assert isinstance(other.all()[-1], Images)
    until(lambda: not served.stats().image_rows and not served._running)
    assert "a listener raised" in caplog.text


def test_an_async_engine_takes_it(served: ProcessBackend) -> None:
    async def answers() -> tuple[Any, list[Any], str]:
        one = AsyncEngine(served)
        drawn = one.generate_image("a red circle", num_inference_steps=3, seed=5)
        streamed = [event async for event in one.stream_image("a red circle", num_inference_steps=3, seed=5)]
        content = [{"type": "text", "text": "Is a circle round?"}]
        text = "".join([piece async for piece in one.chat([{"role": "user", "content": content}], max_new_tokens=8)])
        return await drawn, streamed, text

    out, events, text = asyncio.run(asyncio.wait_for(answers(), 60))
    assert out.seeds == [5]
    assert isinstance(events[0], Begun)
    np.testing.assert_array_equal(np.asarray(out.images[0]), events[-1].images[0])
    assert text == model().chat([{"role": "user", "content": "Is a circle round?"}], max_new_tokens=8)


def test_a_worker_that_is_killed_is_started_again(mortal: ProcessBackend) -> None:
    """Each request in progress gets a clear error; ready goes down and up; what was counted stays counted."""
    ask(mortal, SHORT)
    until(lambda: mortal.stats().images == 1)
    restarts = mortal.stats().restarts
    asked = [Asked(mortal, LONG) for _ in range(3)]
    asked[0].until(Step)
    killed(mortal, signal.SIGKILL)
    for one in asked:
        error = one.error()
        assert type(error) is UnavailableError
        assert "during the request: it was killed by SIGKILL" in str(error)
        assert "send it again" in str(error)
    assert not mortal.ready
    assert "in a moment" in str(Asked(mortal, SHORT).error())
    assert mortal.wait_ready(60)
    assert mortal.ready
    assert isinstance(ask(mortal, SHORT)[-1], Images)
    until(lambda: mortal.stats().images == 2)
    assert mortal.stats().restarts == restarts + 1
    assert mortal.stats().image_rows == 0


def test_signals_of_a_terminal_and_of_a_service_manager_leave_a_worker_alone(served: ProcessBackend) -> None:
    asked = Asked(served, ImageRequest(prompt="a red circle", options=dict(num_inference_steps=30, seed=5)))
    asked.until(Step)
    killed(served, signal.SIGINT)
    killed(served, signal.SIGTERM)
    assert isinstance(asked.all()[-1], Images)
    assert served.stats().restarts == 0


def test_a_model_that_cannot_be_loaded_is_a_typed_error() -> None:
    with pytest.raises(CheckpointError, match="/no/such/folder"):
        ProcessBackend("/no/such/folder")


@pytest.mark.parametrize(
    ("options", "limits", "named"), [({"dtyp": "float32"}, None, "dtyp"), ({}, {"rows": 1}, "rows")]
)
def test_options_that_there_are_not_are_named(options: Any, limits: Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        loaded({"source": "shapes", "options": options, "limits": limits})


def ended(process: int) -> bool:
    """Gone, or a zombie that its parent has not seen."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_it_drains_and_leaves_nothing() -> None:
    open_, threads = descriptors(), threading.active_count()
    one = ProcessBackend("shapes", dtype="float32", limits=Limits(images=1, queued=1), wait=False)
    with pytest.raises(UnavailableError, match="is starting"):
        one.facts  # noqa: B018
    assert "is starting" in str(Asked(one, SHORT).error())
    assert not one.ready
    assert not one.wait_ready(0.0)
    assert one.wait_ready(60)
    process = one._child.process.pid
    last = [asked.all()[-1] for asked in [Asked(one, SHORT) for _ in range(8)]]
    assert {Images} < {*map(type, last)}
    assert all(isinstance(event, Images) or isinstance(event.error, BusyError) for event in last)
    until(lambda: not (one.stats().queued or one.stats().image_rows))
    going = Asked(one, SHORT)
    going.until(Begun)
    endless = Asked(one, LONG)
    assert isinstance(endless.next(), Accepted)
    assert not one.drain(0.0)
    assert not one.ready
    assert "shutting down" in str(Asked(one, SHORT).error())
    assert isinstance(going.all()[-1], Images)
    one.cancel(endless.ticket)
    assert one.drain(60)
    one.close()
    one.close()
    assert ended(process)
    assert (descriptors(), threading.active_count()) == (open_, threads)
    with pytest.raises(UnavailableError, match="was closed"):
        one.wait_ready()


def test_it_may_be_closed_while_it_loads_and_while_it_works(served: ProcessBackend) -> None:
    one = ProcessBackend("shapes", wait=False)
    until(lambda: one._child is not None)
    process = one._child.process.pid
    one.close()
    assert ended(process)
    assert "shutting down" in str(Asked(one, SHORT).error())


SERVER = """
import os, sys, time
import flashjanus.serving.http
from flashjanus.serving import AsyncEngine
from flashjanus.serving.messages import ImageRequest, Step
from flashjanus.serving.process import ProcessBackend

def tell(event):
    if isinstance(event, Step) and event.step == 1:
        print(one._child.process.pid, flush=True)

if __name__ == "__main__":
    one = ProcessBackend("shapes", dtype="float32")
    assert AsyncEngine(one).ready and "torch" not in sys.modules
    forked = os.fork()
    if not forked:
        time.sleep(120)
        os._exit(0)
    print(forked, flush=True)
    one.submit(ImageRequest(prompt="x", options=dict(num_inference_steps=1000)), tell)
    time.sleep(120)
"""


def test_a_worker_ends_with_its_server(tmp_path: Path) -> None:
    """In the midst of work, and though a process that the server has forked holds its end of the wire."""
    (tmp_path / "server.py").write_text(SERVER)
    server = subprocess.Popen([sys.executable, tmp_path / "server.py"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    forked = int(server.stdout.readline())
    try:
        worker = int(server.stdout.readline())
        assert not ended(worker)
        server.kill()
        server.wait()
        until(lambda: ended(worker))
    finally:
        os.kill(forked, signal.SIGKILL)
        server.kill()
        server.wait()
        server.stdout.close()


@pytest.mark.parametrize("raw", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"".join(frame({"submit": 1}))])
def test_a_broken_frame_ends_a_worker_with_a_clear_error(raw: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = started(theirs.fileno())
        theirs.close()
        ours.sendall(raw)
        told = Wire(ours).receive()["ends"]
        assert process.wait(60) == 1
    assert isinstance(told, DeviceError)
    assert "expected a" in str(told)
