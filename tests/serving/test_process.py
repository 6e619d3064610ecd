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
from asked import Asked, ask, model, until
from flashjanus.errors import BusyError, CheckpointError, DeadlineError, DeviceError, InputError, UnavailableError
from flashjanus.scheduling import Limits
from flashjanus.serving import AsyncEngine, ProcessBackend
from flashjanus.serving.backend import ThreadBackend
from flashjanus.serving.child import Patience, Pulse, started
from flashjanus.serving.messages import (
    LAST,
    Accepted,
    Begun,
    ChatRequest,
    Failure,
    ImageRequest,
    Images,
    Partial,
    Piece,
    Stats,
    Step,
    Usage,
)
from flashjanus.serving.process import added
from flashjanus.serving.wire import Wire, frame
from flashjanus.serving.worker import Worker, loaded
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


def killed(backend: ProcessBackend, number: int) -> None:
    assert backend._child is not None
    os.kill(backend._child.process.pid, number)


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
        assert "in the midst of the request: it was killed by SIGKILL" in str(error)
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


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


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


def acting(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let workers run this code, in which `wire` is the wire, and facts are there to be told."""
    start = (
        "import os, socket, sys, time\n"
        "from flashjanus.serving.messages import *\n"
        "from flashjanus.serving.wire import Wire, frame\n"
        "wire = Wire(socket.socket(fileno=int(sys.argv[1])))\n"
        "facts = Facts('acted', None, 1, 1, 1, 'float32', 'cpu', None, '0')\n"
        "wire.receive()\n"
    )

    def other(descriptor: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", start + code, str(descriptor)], pass_fds=[descriptor])

    monkeypatch.setattr("flashjanus.serving.child.started", other)


@pytest.mark.parametrize("sent", ["b'x' * 99", "b''.join(frame('no message'))"])
def test_a_worker_that_sends_no_message_is_ended(monkeypatch: pytest.MonkeyPatch, sent: str) -> None:
    acting(monkeypatch, f"wire._socket.sendall({sent}); time.sleep(60)")
    with pytest.raises(UnavailableError, match=r"sent what is no message: expected a .* and was killed"):
        ProcessBackend()


def test_what_runs_when_it_closes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    acting(monkeypatch, "wire.send(frame({'loaded': facts}))\nwhile True: wire.receive()")
    one = ProcessBackend()
    asked = [Asked(one, SHORT) for _ in range(3)]
    assert not one.drain(0.1)
    one.close()
    for error in (request.error() for request in asked):
        assert type(error) is UnavailableError
        assert "was closed in the midst of the request" in str(error)
    assert one.drain(0.0)


def test_it_gives_up_where_no_worker_can_load_the_model_any_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    acting(
        monkeypatch,
        "from flashjanus.errors import CheckpointError\n"
        f"mark = {str(tmp_path / 'loaded')!r}\n"
        "if os.path.exists(mark): wire.send(frame({'ends': CheckpointError('a file is missing')})); os._exit(1)\n"
        "open(mark, 'w').close(); wire.send(frame({'loaded': facts})); wire.receive()\n",
    )
    with closing(ProcessBackend(restarts=2, backoff=0.01)) as one:
        Asked(one, SHORT).error()
        until(lambda: one.lost is not None)
        with pytest.raises(UnavailableError, match="is not started any more: a file is missing"):
            one.wait_ready()
        assert "a file is missing" in str(Asked(one, SHORT).error())
        assert one.facts.name == "acted"
        assert one.stats().restarts == 2


def test_a_worker_that_is_not_to_be_started_again_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    acting(monkeypatch, "wire.send(frame({'loaded': facts})); os.kill(os.getpid(), 11)")
    with closing(ProcessBackend(restarts=0, wait=False)) as one:
        until(lambda: one.lost is not None)
        assert "was killed by SIGSEGV" in str(one.lost)
        assert one.stats().restarts == 0


def test_a_worker_that_does_not_answer_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    acting(
        monkeypatch,
        "wire.send(frame({'loaded': facts}))\n"
        "while True:\n"
        "    if 'ping' in wire.receive(): wire.send(frame({'pong': None}))\n",
    )
    with closing(ProcessBackend(patience=Patience(heartbeat=3.0), backoff=0.01)) as one:
        asked = Asked(one, SHORT)
        killed(one, signal.SIGSTOP)
        error = asked.error()
        assert type(error) is UnavailableError
        assert "did not answer for 3 s, and was killed" in str(error)
        assert one.wait_ready(60)
        assert one.stats().restarts == 1


def test_a_worker_whose_engine_is_stuck_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it answers, and says so itself: that its engine is in the first turn still."""
    acting(
        monkeypatch,
        "wire.send(frame({'loaded': facts}))\n"
        "while True:\n"
        "    if 'ping' in wire.receive(): wire.send(frame({'pong': 1}))\n",
    )
    with closing(ProcessBackend(patience=Patience(turn=1.0), backoff=0.01)) as one:
        error = Asked(one, SHORT).error()
        assert "was in one turn of work for 1 s, and was killed" in str(error)
        until(lambda: one.stats().restarts > 0)


def test_a_worker_that_dies_young_is_started_ever_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    acting(monkeypatch, "wire.send(frame({'loaded': facts})); os._exit(7)")
    with closing(ProcessBackend(backoff=0.01, wait=False)) as one:
        until(lambda: one.stats().restarts >= 3)
    assert "exited with status 7" in caplog.text
    assert [f"again, {delay} s" in caplog.text for delay in ("0.0", "0.1")] == [True, False]
    assert one.lost is not None


def test_time_in_which_the_server_was_stopped_is_not_a_workers_silence() -> None:
    now = [0.0]
    pulse = Pulse(Patience(heartbeat=3.0, turn=5.0), lambda: now[0])
    pulse.works(1)

    def after(seconds: float) -> bool:
        now[0] += seconds
        return pulse.due()

    assert not after(0.1)
    assert after(1000.0)
    pulse.heard()
    assert all(after(1.0) for _ in range(3))
    with pytest.raises(UnavailableError, match="did not answer"):
        after(1.0)
    pulse.heard()
    with pytest.raises(UnavailableError, match="one turn"):
        after(1.0)
    pulse.heard()
    pulse.works(2)
    assert after(1.0)
    pulse.heard()
    pulse.works(None)
    now[0] += 1.0
    assert pulse.due()


def test_figures_of_workers_add_up() -> None:
    one = Stats(1, 2, 3, {"piece": (1, 0.5)}, 4, 5, {"images": (1, 2)}, 6, 7, 1)
    other = Stats(turns={"piece": (2, 0.5), "tokens": (1, 1.0)}, tokens=1, restarts=1)
    turns = {"piece": (3, 1.0), "tokens": (1, 1.0)}
    assert added(one, other) == Stats(1, 2, 3, turns, 5, 5, {"images": (1, 2)}, 6, 7, 2)


def test_a_process_that_cannot_be_started_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    open_ = descriptors()
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(UnavailableError, match="could not be started"):
        ProcessBackend()
    assert descriptors() == open_


class Told:
    """A backend that tells what the test says. cancelled: the requests that were."""

    def __init__(self) -> None:
        self.tells: list[Any] = []
        self.cancelled: list[int] = []

    def submit(self, request: Any, tell: Any) -> int:
        self.tells.append(tell)
        return len(self.tells) - 1

    def cancel(self, ticket: int) -> None:
        self.cancelled.append(ticket)


def test_a_server_that_does_not_read_costs_its_requests_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine never waits, memory is bounded, previews go first, and who reads again is served again."""
    monkeypatch.setattr("flashjanus.serving.worker.UNREAD", 2**20)
    ours, theirs = socket.socketpair()
    worker, server = Worker(Wire(ours)), Wire(theirs)
    worker._backend = backend = Told()
    for number in range(12):
        worker._receive({"submit": number, "request": SHORT})
    drawing, *drawn, writing = backend.tells
    picture = np.zeros((256, 256, 3), np.uint8)  # 192 KiB
    for n in range(40):
        drawing(Partial(n, n, [picture]))
    for tell in drawn:
        tell(Images([picture], None, None, Usage(1, 0, 1)))
    for _ in range(2000):
        writing(Piece("word"))
    told: dict[int, list[Any]] = {number: [] for number in range(12)}
    while not (told[11] and isinstance(told[11][-1], Failure)):
        body = server.receive()
        told[body["of"]].append(body["event"])
    assert 0 < len(told[0]) < 5
    kinds = [type(told[n][0]) for n in range(1, 11)]
    assert kinds in ([Images] * fit + [Failure] * (10 - fit) for fit in (3, 4, 5))
    assert backend.cancelled == [*(n + 1 for n, kind in enumerate(kinds) if kind is Failure), 11]
    assert all(len(told[n]) == 1 for n in range(1, 11))
    assert type(told[11][-1].error) is UnavailableError
    assert len(told[11]) < 1024
    drawing(Begun())
    assert server.receive() == {"event": Begun(), "of": 0}
    ours.close()
    theirs.close()
