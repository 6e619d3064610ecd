"""Every CUDA kernel's own source over its op's cases, run on the CPU with fibers for threads.

Each case runs in one of the two orders of threads, by its dtype: kernels have the same barriers for both.
What this cannot see: races that show in neither order, alignment faults, the device's own rounding of exp and rsqrt,
speed.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import fibers
import pytest
import torch
from fibers import CUDA, PRODUCTION_SHARED, running_on
from flashjanus.engine.ops import Call, Op, all_ops, get_op
from op_check import check, make_call, run, specs_of

pytest.importorskip("pybind11")
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
CASES = [
    pytest.param(op, case, dtype, id=f"{op.name}-{i}-{str(dtype).removeprefix('torch.')}")
    for op in all_ops().values()
    if "cuda" in op.implementations
    for i, case in enumerate(op.cases)
    for dtype in (torch.float32, torch.bfloat16)
]


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return fibers.module()


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(("op", "case", "dtype"), CASES)
def test_the_source_meets_the_reference(
    op: Op, case: Mapping[str, Any], dtype: torch.dtype, architecture: int, module: ModuleType
) -> None:
    call = make_call(op, case, dtype, False)
    with running_on(module, architecture, backwards=dtype is torch.bfloat16):
        reason = op.implementations["cuda"].refuses(CUDA, specs_of(call), call.attrs)
        if reason:
            pytest.skip(reason)
        check(op, call, ["cuda"])


def test_keys_that_are_not_on_sixteen_bytes_are_read_one_by_one(module: ModuleType) -> None:
    op, generator = get_op("attention"), torch.Generator().manual_seed(2)
    k, v = (torch.randn(2, 30, 33, generator=generator).bfloat16()[..., :32].unflatten(-1, (2, 16)) for _ in range(2))
    q = torch.randn(2, 1, 2, 16, generator=generator).bfloat16()
    start, end = torch.tensor([3, 11], dtype=torch.int32), torch.tensor([[30], [12]], dtype=torch.int32)
    with running_on(module, 90):
        check(op, Call((q, k, v, start, end, end - 1), {"scale": 0.25}), ["cuda"])


def test_decode_attention_needs_its_rule(module: ModuleType) -> None:
    q, k = torch.zeros(1, 1, 2, 16), torch.zeros(1, 5, 2, 16)
    with running_on(module, 90), pytest.raises(ValueError, match="decode_attention_cuda: expected non-null"):
        get_op("attention").implementations["cuda"].run(q, k, k, None, None, None, q.clone(), scale=1.0)


def test_production_sizes_ask_for_the_shared_memory_of_the_table(module: ModuleType) -> None:
    position = (torch.ones(1, 1, 1, 1536), torch.ones(7, 7, 1536).bfloat16(), None, torch.ones(1536))
    depthwise = Call(position, dict(eps=1e-6, dtype=torch.bfloat16))
    query, slot = torch.ones(1, 1, 1, 128).bfloat16(), torch.zeros(1, dtype=torch.int32)
    decode = Call((query, query, query, slot, slot[:, None] + 1, slot[:, None]), dict(scale=1.0))
    linear = get_op("linear").example(torch.Generator(), torch.float32, m=4, k=2048, n=2, norm=True)
    sample = get_op("sample_token").example(torch.Generator(), torch.float32, rows=1, vocab=9)
    asked = []
    for op, call, architecture in (
        ("depthwise_norm", depthwise, 90),
        ("depthwise_norm", depthwise, 80),
        ("attention", decode, 90),
        ("linear", linear, 90),
        ("sample_token", sample, 90),
    ):
        with running_on(module, architecture):
            run(get_op(op), "cuda", call)
        asked.append(module.launched()[1])
    assert asked == list(PRODUCTION_SHARED.values())


def test_arguments_are_checked_before_the_launch(module: ModuleType) -> None:
    with pytest.raises(ValueError, match="flow_update_cuda: expected rows and evaluations >= 1"):
        module.flow_update_cuda(
            **dict(v=64, z=64, history=64, kept=64, schedule=64, step=64, steps=64, v_dtype=0, rows=0, unconditional=0),
            **dict(evaluations=1, height=1, width=1, channels=4, patch=2, threads=1, stream=0),
        )


SelfTest = Callable[..., tuple[int, torch.Tensor]]


@pytest.fixture(scope="module")
def selftest(tmp_path_factory: pytest.TempPathFactory) -> SelfTest:
    """selftest(kernel, count, blocks, threads, ...) -> (status, what it wrote) on x = 1, 2, ..."""
    library = tmp_path_factory.mktemp("selftest") / "selftest.so"
    includes = [f"-I{fibers.HEADERS}", f"-I{fibers.ROOT / 'csrc'}"]
    source = fibers.HEADERS / "selftest.cpp"
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wno-unknown-pragmas", *includes]
    subprocess.run(["g++", *flags, str(source), "-o", str(library)], check=True)
    entry = ctypes.CDLL(str(library)).run

    def run_one(
        kernel: int,
        blocks: int,
        threads: int,
        *,
        shared: int = 512,
        leave_early: bool = False,
        barrier: bool = True,
        backwards: bool = False,
    ) -> tuple[int, torch.Tensor]:
        x, written = torch.arange(1.0, 129.0), torch.full((128,), torch.nan)
        addresses = (ctypes.c_void_p(t.data_ptr()) for t in (x, written))
        status = entry(kernel, *addresses, blocks, threads, shared, int(leave_early), int(barrier), int(backwards))
        return status, written

    return run_one


def test_a_missing_barrier_shows(selftest: SelfTest) -> None:
    status, total = selftest(0, 1, 128)
    assert (status, total[0].item()) == (0, 8256.0)
    status, total = selftest(0, 1, 128, barrier=False)
    assert status == 0
    assert total[0].isnan(), "shared memory starts as NaN"
    assert selftest(0, 1, 128, leave_early=True)[0] != 0, "a barrier that one thread skips"


def test_a_missing_barrier_of_a_cluster_shows(selftest: SelfTest) -> None:
    status, total = selftest(1, 8, 32)
    assert (status, total[0].item()) == (0, 36.0)
    assert selftest(1, 8, 32, barrier=False)[1][0].isnan()
    assert selftest(1, 8, 32, leave_early=True)[1][0].isnan(), "blocks that end before they are read"
    assert selftest(1, 8, 32, leave_early=True, backwards=True)[1][0] == 36, "the last block reads before they end"


def test_threads_take_turns_in_both_orders(selftest: SelfTest) -> None:
    for backwards in (False, True):
        status, order = selftest(3, 2, 64, backwards=backwards)
        assert status == 0
        assert order.tolist() == sorted(range(128), reverse=backwards)


def test_a_copy_that_is_not_waited_for_shows(selftest: SelfTest) -> None:
    status, copied = selftest(2, 1, 32)
    assert status == 0
    assert torch.equal(copied, torch.arange(1.0, 129.0))
    assert selftest(2, 1, 32, barrier=False)[1].isnan().all()


def test_a_launch_that_no_chip_takes_fails(selftest: SelfTest) -> None:
    assert selftest(0, 1, 2048)[0] != 0, "more threads than a block may have"
    assert selftest(0, 1, 128, shared=0)[0] != 0, "a write past the shared memory"
    assert selftest(0, 1, 128, shared=228 * 1024)[0] != 0, "more shared memory than a block may have"
    assert selftest(1, 9, 32)[0] != 0, "more blocks than a cluster may have"
