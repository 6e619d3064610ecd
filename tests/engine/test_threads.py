"""How native kernels are spread over threads: as their work is worth, and with the same bits on any number of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from flashjanus.engine.ops import Call, Op, all_ops
from flashjanus.engine.runtime import native
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
    ("press", "count", "nanoseconds", "expected"),
    [
        (0, 100, 100, 1),
        (0, 100, 9e3, 2),
        (0, 100, 1e6, 4),
        (0, 3, 1e6, 3),
        (0, 1, 1e9, 1),
        (0, 0, 0, 1),
        (1, 100, 1e6, 1),
        (1, 100, 1e9, 4),
    ],
)
def test_a_loop_takes_as_many_threads_as_its_work_is_worth(
    press: int, count: int, nanoseconds: float, expected: int, teams: Callable[..., None]
) -> None:
    teams(press=press)
    assert native._module().team_for(4, count, nanoseconds) == (expected, bool(press))
    assert native._module().team_for(1, count, nanoseconds) == (1, False)


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
