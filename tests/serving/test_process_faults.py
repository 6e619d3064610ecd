"""Workers that hang, die, talk nonsense or are not read: what a ProcessBackend makes of them."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asked import Asked, descriptors, killed, until
from flashjanus.errors import UnavailableError
from flashjanus.serving import ProcessBackend
from flashjanus.serving.child import Patience, Pulse
from flashjanus.serving.messages import (
    Begun,
    Failure,
    ImageRequest,
    Images,
    Partial,
    Piece,
    Stats,
    Usage,
)
from flashjanus.serving.process import added
from flashjanus.serving.wire import Wire
from flashjanus.serving.worker import Worker

LONG = ImageRequest(prompt="a red circle", options=dict(num_inference_steps=1000))
SHORT = ImageRequest(prompt="a red circle", options=dict(num_inference_steps=3, seed=5))


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
    with pytest.raises(UnavailableError, match=r"sent a malformed message: expected a .* and was killed"):
        ProcessBackend()


def test_what_runs_when_it_closes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    acting(monkeypatch, "wire.send(frame({'loaded': facts}))\nwhile True: wire.receive()")
    one = ProcessBackend()
    asked = [Asked(one, SHORT) for _ in range(3)]
    assert not one.drain(0.1)
    one.close()
    for error in (request.error() for request in asked):
        assert type(error) is UnavailableError
        assert "was closed during the request" in str(error)
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
        with pytest.raises(UnavailableError, match="is not restarted any more: a file is missing"):
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
        assert "spent 1 s in one turn of work, and was killed" in str(error)
        until(lambda: one.stats().restarts > 0)


def test_a_worker_that_dies_young_is_started_ever_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    acting(monkeypatch, "wire.send(frame({'loaded': facts})); os._exit(7)")
    with closing(ProcessBackend(backoff=0.01, wait=False)) as one:
        until(lambda: one.stats().restarts >= 3)
    assert "exited with status 7" in caplog.text
    assert [f"process, {delay} s" in caplog.text for delay in ("0.0", "0.1")] == [True, False]
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
    worker._outbox.flush()  # as the engine does after each turn
    assert server.receive() == {"event": Begun(), "of": 0}
    ours.close()
    theirs.close()
