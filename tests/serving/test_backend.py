"""ThreadBackend: whatever a request or its listener does, others are served, and each request has one end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from asked import Asked, ask, model, until
from flashjanus.errors import BusyError, DeadlineError, DeviceError, InputError, UnavailableError
from flashjanus.scheduling import Limits
from flashjanus.serving import AsyncEngine, orders
from flashjanus.serving.backend import ThreadBackend
from flashjanus.serving.desk import Desk
from flashjanus.serving.messages import LAST, ChatRequest, Failure, ImageRequest, Images, Step

QUESTION = [{"role": "user", "content": "Is a circle round?"}]
LONG = ImageRequest(prompt="a red circle", options=dict(num_inference_steps=1000))
SHORT = ImageRequest(prompt="a red circle", options=dict(num_inference_steps=3, seed=5))


@pytest.fixture
def backend() -> Iterator[ThreadBackend]:
    with closing(ThreadBackend(model())) as one:
        yield one


def settled(backend: ThreadBackend) -> None:
    until(lambda: not (backend.stats().queued or backend.stats().image_rows or backend._running))


def test_a_listener_that_raises_loses_its_own_request_alone(
    backend: ThreadBackend, caplog: pytest.LogCaptureFixture
) -> None:
    told = []

    def refuse(event: Any) -> None:
        told.append(event)
        if isinstance(event, Step):
            raise RuntimeError("a listener of a test's")

    backend.submit(LONG, refuse)
    until(lambda: any(isinstance(event, Step) for event in told))
    assert isinstance(ask(backend, SHORT)[-1], Images)
    settled(backend)
    assert [type(event) for event in told].count(Step) == 1
    assert "a listener raised" in caplog.text


@pytest.mark.parametrize(
    "wrong",
    [
        dict(priority="high"),
        dict(priority=2**40),
        dict(deadline="5"),
        dict(deadline=-1.0),
        dict(deadline=float("nan")),
        dict(previews=-1),
        dict(previews="3"),
    ],
)
def test_what_a_request_may_not_be_is_said_first_and_harms_nobody(backend: ThreadBackend, wrong: Any) -> None:
    [only] = ask(backend, ImageRequest(prompt="x", **wrong))
    assert isinstance(only, Failure)
    assert isinstance(only.error, InputError)
    assert next(iter(wrong)) in str(only.error)
    if "previews" not in wrong:
        assert isinstance(ask(backend, ChatRequest(messages=QUESTION, **wrong))[0].error, InputError)


def test_a_deadline_counts_from_the_submission(backend: ThreadBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    read = orders.order

    def slowly(*args: Any) -> Any:
        time.sleep(0.3)
        return read(*args)

    monkeypatch.setattr(orders, "order", slowly)
    [only] = ask(backend, ImageRequest(prompt="x", deadline=0.2))
    assert isinstance(only.error, DeadlineError)


def test_a_fault_between_the_jobs_of_a_request_ends_it_alone(
    backend: ThreadBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = Asked(backend, ImageRequest(prompt="a blue square", options=dict(num_inference_steps=40)))
    other.until(Step)
    with monkeypatch.context() as patch:
        patch.setattr(orders, "picture", lambda image: 1 / 0)
        error = Asked(backend, SHORT).error()
    assert type(error) is DeviceError
    assert "ZeroDivisionError" in str(error)
    assert "could not continue" in caplog.text
    assert isinstance(other.all()[-1], Images)


def test_requests_that_wait_to_be_read_are_bounded_and_none_is_read_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    go, began = threading.Event(), []
    read = orders.order

    def late(*args: Any) -> Any:
        began.append(args)
        go.wait(60)
        return read(*args)

    monkeypatch.setattr(orders, "order", late)
    with closing(ThreadBackend(model(), Limits(images=2, answers=1, queued=3))) as one:
        held = [Asked(one, SHORT) for _ in range(2)]
        until(lambda: len(began) == 2)  # the readers are busy
        waiting = [Asked(one, SHORT) for _ in range(6)]
        assert isinstance(Asked(one, SHORT).error(), BusyError)
        for asked in waiting:
            one.cancel(asked.ticket)
        go.set()
        assert all(isinstance(asked.all()[-1], Images) for asked in held)
        assert isinstance(ask(one, SHORT)[-1], Images)
        assert len(began) == 3


def test_who_drains_waits_until_the_last_is_told(backend: ThreadBackend) -> None:
    told = []

    def slow(event: Any) -> None:
        if isinstance(event, LAST):
            time.sleep(0.3)
        told.append(event)

    backend.submit(SHORT, slow)
    assert backend.drain(60)
    assert isinstance(told[-1], Images)


def test_each_request_has_one_end_though_the_engine_closes_meanwhile() -> None:
    one = ThreadBackend(model())
    ends: list[list[Any]] = []
    stop = threading.Event()

    def press() -> None:
        while not stop.is_set():
            own: list[Any] = []
            ends.append(own)
            one.submit(SHORT, lambda event, own=own: own.append(event) if isinstance(event, LAST) else None)
            time.sleep(0.001)

    pressing = [threading.Thread(target=press) for _ in range(2)]
    for thread in pressing:
        thread.start()
    until(lambda: len(ends) > 50)
    one.close()
    until(lambda: ends[-1] != [])
    stop.set()
    for thread in pressing:
        thread.join()
    assert {len(own) for own in ends} == {1}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_breaks_tells_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where nothing more can be done with its scheduler."""
    with closing(ThreadBackend(model())) as one:
        asked = [Asked(one, LONG) for _ in range(3)]
        asked[0].until(Step)

        def broken(*args: Any) -> Any:
            raise RuntimeError("broken")

        monkeypatch.setattr(Desk, "step", broken)
        monkeypatch.setattr(Desk, "lose", broken)
        errors = [request.error() for request in asked]
        assert {type(error) for error in errors} == {DeviceError}
        until(lambda: not one._thread.is_alive())
        assert not one.ready
        assert one.turn is None
        assert not one.stats().image_rows
        error = Asked(one, SHORT).error()
        assert isinstance(error, UnavailableError)
        assert "has ended" in str(error)
        one.cancel(asked[0].ticket)


def test_what_a_closed_loop_has_asked_for_is_cancelled(backend: ThreadBackend) -> None:
    engine = AsyncEngine(backend)
    loop = asyncio.new_event_loop()
    stream = loop.run_until_complete(engine.submit(LONG))
    assert loop.run_until_complete(anext(stream)) is not None
    loop.close()
    settled(backend)
    assert isinstance(ask(backend, SHORT)[-1], Images)
