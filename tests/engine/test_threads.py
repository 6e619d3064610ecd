"""How native kernels are spread over threads: as their work is worth, and with the same bits on any number of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from flashjanus.engine.device import native
from flashjanus.engine.ops import Call, Op, all_ops
from flashjanus.engine.runtime import openmp
from op_check import make_call, run, serving

pytestmark = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))
OURS = [(op, name) for op in all_ops().values() for name in ("native", "amx") if name in op.implementations]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux's scheduler")


@pytest.fixture
def teams() -> Iterator[Callable[..., None]]:
    """The arguments of force_teams: whether others press on the cores, and what work is worth a thread."""
    module, threads = native._module(), torch.get_num_threads()
    yield module.force_teams
    module.force_teams()
    torch.set_num_threads(threads)


def bits(op: Op, name: str, call: Call) -> list[bytes]:
    return [t.contiguous().view(torch.uint8).numpy().tobytes() for t in run(op, name, call).values() if t.numel()]


@pytest.mark.parametrize(("op", "name"), OURS, ids=[f"{op.name}-{name}" for op, name in OURS])
def test_the_bits_do_not_depend_on_the_threads(op: Op, name: str, teams: Callable[..., None]) -> None:
    served = 0
    for case in op.cases:
        for dtype in (torch.float32, torch.bfloat16):
            call = make_call(op, case, dtype, False)
            if name not in serving(op, call):
                continue
            served += 1
            torch.set_num_threads(1)
            teams(press=0)
            alone = bits(op, name, call)
            for threads, press in ((2, 0), (3, 0), (3, 1)):
                torch.set_num_threads(threads)
                teams(press=press, worth=0.0)
                assert bits(op, name, call) == alone, f"{case} in {dtype} on {threads} threads"
    assert served or name == "amx"


@LINUX
@pytest.mark.parametrize(
    ("press", "count", "nanoseconds", "threads", "parts"),
    [
        (0, 100, 100, 1, 1),
        (0, 100, 5e3, 4, 2),
        (0, 100, 1e6, 4, 4),
        (0, 3, 1e6, 4, 3),
        (0, 1, 1e9, 1, 1),
        (0, 0, 0, 1, 1),
        (1, 100, 1e6, 1, 1),
        (1, 100, 1e9, 4, 32),
        (1, 5, 1e9, 4, 5),
    ],
)
def test_a_loop_takes_all_threads_or_one_and_parts_by_its_work(
    press: int, count: int, nanoseconds: float, threads: int, parts: int, teams: Callable[..., None]
) -> None:
    """No other number of threads: the runtime would end the rest of them and make new ones for the next loop."""
    teams(press=press)
    assert native._module().team_for(4, count, nanoseconds) == (threads, parts, bool(press))
    assert native._module().team_for(1, count, nanoseconds) == (1, 1, False)


@pytest.mark.parametrize("press", [0, 1])
def test_several_callers_at_once(press: int, teams: Callable[..., None]) -> None:
    op = all_ops()["rms_norm"]
    calls = [make_call(op, case, torch.float32, False) for case in op.cases]
    calls = [call for call in calls if "native" in serving(op, call)]
    alone = [bits(op, "native", call) for call in calls]
    torch.set_num_threads(3)
    teams(press=press, worth=0.0)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            assert list(pool.map(lambda call: bits(op, "native", call), calls)) == alone


ON_ONE_CORE = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import torch, flashjanus._C as native
from flashjanus.engine.device.native import bind
from flashjanus.engine.ops import all_ops
torch.set_num_threads(2)
native.force_teams(worth=0.0)
x, y = torch.ones(64, 512), torch.ones(64, 256)
# bound, as in plans: with Python between the calls, the threads may wait too little of the time
run = bind(all_ops()["silu_mul"].implementations["native"].bound([x, y], {}), [x, y])
while not native.pressed(2):
    run()
assert native.team_for(2, 64, 1e5) == (2, 16, True), "all work was said to be worth a thread"
native.force_teams()
"""
FORKED = """
import os, sys, torch, flashjanus._C as native
from flashjanus.engine.ops import all_ops
from flashjanus.engine.runtime import openmp
torch.set_num_threads(3)
x, y = torch.randn(64, 512), torch.ones(64, 256)
def run():
    native.force_teams(press=int(sys.argv[1]), worth=0.0)
    all_ops()["silu_mul"].implementations["native"].run(x, y)
    return y.numpy().tobytes()
right = run()
for _ in range(20):
    child = os.fork()
    if child == 0:
        pressed = native.pressed(3)
        os._exit(0 if not pressed and run() == right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert run() == right
"""


@LINUX
@pytest.mark.parametrize("script", [[ON_ONE_CORE], [FORKED, "0"], [FORKED, "1"]], ids=["one core", "fork", "pressed"])
def test_in_a_process_of_its_own(script: list[str]) -> None:
    """Two threads on one core press on each other, which is noticed; a forked child starts with nobody watched."""
    found = openmp.runtime()
    if script[0] is FORKED and not (found and (found.survives_forks or found.end_team())):
        pytest.skip("the OpenMP runtime of this torch cannot end its threads before a fork")
    subprocess.run([sys.executable, "-c", *script], check=True, timeout=120)
