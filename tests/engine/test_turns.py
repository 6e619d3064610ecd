"""Turns at the cores: in order, no more cores than there are, and none lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
from flashjanus.engine.runtime.turns import Turns


def started(run: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=run)
    thread.start()
    return thread


def waiting(turns: Turns, count: int) -> None:
    while len(turns._waiting) < count:
        threading.Event().wait(1e-3)


def test_they_come_in_the_order_in_which_they_were_asked_for() -> None:
    turns, order, handed = Turns(2), list[int](), list[int]()

    def ask(name: int) -> None:
        with turns.call(), turns.turn(2, lambda: handed.append(name)):
            order.append(name)

    assert not turns.several
    with turns.call(), turns.turn(9, lambda: handed.append(-1)), turns.turn(1, lambda: handed.append(-2)):
        threads = []
        for name in range(4):
            threads.append(started(lambda name=name: ask(name)))  # type: ignore[misc]
            waiting(turns, name + 1)
        assert order == []
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3]
    assert handed[:4] == [0, 1, 2, 3], "each before it waits"
    assert handed[4:8] == [-1, 0, 1, 2], "at the end, while others make calls"
    assert turns.several


def test_those_that_fit_run_at_once() -> None:
    turns, both = Turns(3), threading.Barrier(2, timeout=60)

    def meet(threads: int) -> None:
        with turns.turn(threads, lambda: None):
            both.wait()

    threads = [started(lambda count=count: meet(count)) for count in (1, 2)]  # type: ignore[misc]
    for thread in threads:
        thread.join()
    assert not both.broken


def test_what_fails_gives_its_turn_back() -> None:
    turns = Turns(1)
    for _ in range(2):
        with pytest.raises(KeyError), turns.turn(1, lambda: None):
            raise KeyError


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="interrupts a thread")
def test_a_wait_that_is_interrupted_is_forgotten() -> None:
    turns, held, done = Turns(1), threading.Event(), threading.Event()

    def hold() -> None:
        with turns.turn(1, lambda: None):
            held.set()
            done.wait()

    def interrupt() -> None:
        waiting(turns, 1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    holder = started(hold)
    held.wait()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background ignores SIGINT
    interrupter = started(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt), turns.turn(1, lambda: None):
            pass
    finally:
        signal.signal(signal.SIGINT, before)
    assert not turns._waiting
    done.set()
    holder.join()
    interrupter.join()
    with turns.turn(1, lambda: None):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_in_a_forked_child_nobody_has_a_turn() -> None:
    turns = Turns(1)
    with turns.turn(1, lambda: None):
        child = os.fork()
        if child == 0:
            with turns.turn(1, lambda: None):
                os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


SEVERAL = """
import os, sys, threading, torch
sys.path.insert(0, "tests")
from flashjanus import JanusFlow
model = JanusFlow.from_pretrained("shapes", dtype="bfloat16")
torch.set_num_threads(8)
draw = lambda: model.generate_image("a star", num_inference_steps=10, seed=1, output_type="pt").images
right, most, done = draw(), 0, threading.Event()
def count():
    global most
    while not done.wait(1e-3):
        most = max(most, len(os.listdir("/proc/self/task")))
def check():
    assert torch.equal(draw(), right)
    found.append(1)
found, callers = [], [threading.Thread(target=check) for _ in range(6)]
before, watch = len(os.listdir("/proc/self/task")), threading.Thread(target=count)
for thread in [watch, *callers]:
    thread.start()
for thread in callers:
    thread.join()
done.set()
watch.join()
print(len(found), most - before - len(callers) - 1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads, of GNU's OpenMP runtime")
def test_several_callers_do_not_bring_as_many_times_the_threads() -> None:
    """Six callers with eight threads each would bring 42 more; two teams may meet while one of them ends."""
    ran = subprocess.run([sys.executable, "-c", SEVERAL], capture_output=True, text=True, timeout=300, check=True)
    finished, more = map(int, ran.stdout.split())
    assert finished == 6
    assert more < 21
