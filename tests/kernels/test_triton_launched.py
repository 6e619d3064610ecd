"""Every launch of every Triton kernel through Triton's own launcher, as on a GPU of sm_90 that is not here.

FLASHJANUS_TRITON_WHOLE=1 compiles to machine code instead of to Triton's IR (`make gpu-env` does).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from flashjanus.engine.ops import Op, all_ops
from flashjanus.engine.plan import PlannedNode
from op_check import make_call, specs_of
from released_plans import released_plans

pytest.importorskip("triton")
import triton
import triton.language as tl
from triton.errors import TritonError
from triton_stand_in import Launch, launched

CUDA = torch.device("cuda", 0)
WHOLE = os.environ.get("FLASHJANUS_TRITON_WHOLE") == "1"
OPS = [op for op in all_ops().values() if "triton" in op.implementations]
CALLS = [
    pytest.param(op, case, dtype, id=f"{op.name}-{i}-{str(dtype).removeprefix('torch.')}")
    for op in OPS
    for i, case in enumerate(op.cases)
    for dtype in op.dtypes
]
TUNED = [
    pytest.param(op, tunable, value, id=f"{op.name}-{tunable.name}-{value}")
    for op in OPS
    for tunable in op.implementations["triton"].tunables
    for value in tunable.values
]


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Launch]]:
    with launched(tmp_path_factory.mktemp("triton"), WHOLE) as found:
        yield found


def outputs(op: Op, specs: list[Any], attrs: Any) -> list[torch.Tensor]:
    return [torch.empty(spec.shape, dtype=spec.dtype) for spec in op.schema.infer(op.name, specs, attrs)]


@pytest.mark.parametrize(("op", "case", "dtype"), CALLS)
def test_every_case_is_launched(op: Op, case: Any, dtype: torch.dtype, launches: list[Launch]) -> None:
    call = make_call(op, case, dtype, False)
    triton_s = op.implementations["triton"]
    reason = triton_s.refuses(CUDA, specs_of(call), call.attrs)
    if reason:
        pytest.skip(reason)
    before = len(launches)
    triton_s.run(*call.args, *outputs(op, specs_of(call), call.attrs), **call.attrs)
    assert len(launches) > before


@pytest.mark.parametrize(("op", "tunable", "value"), TUNED)
def test_every_tunable_is_launched_at_a_size_that_it_is_for(
    op: Op, tunable: Any, value: Any, launches: list[Launch], plans: list[PlannedNode]
) -> None:
    node = max((node for node in plans if node.op == op.name and by_triton(node)), key=lambda node: node.flops)
    held = tunable.get()
    tunable.set(value)
    try:
        launch(node)
    finally:
        tunable.set(held)
    assert tunable.get() == held
    assert launches[-1].threads <= 1024


@pytest.fixture(scope="module")
def plans() -> list[PlannedNode]:
    """The nodes of the released model's plans, each form once."""
    found: dict[str, PlannedNode] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flashjanus.triton_kernels.unavailable", lambda: None)
        for node in (node for plan in released_plans() for node in plan.nodes):
            key = (node.op, *(ref and (str(ref.spec), ref.strides) for ref in node.inputs), node.attrs)
            found.setdefault(str(key), node)
    return list(found.values())


def by_triton(node: PlannedNode) -> bool:
    found = all_ops()[node.op].implementations.get("triton")
    specs = [None if ref is None else ref.spec for ref in node.inputs]
    return found is not None and found.refuses(CUDA, specs, node.attrs) is None


def launch(node: PlannedNode) -> None:
    """A node's call by Triton, on memory that nobody fills."""

    def tensor(ref: Any) -> torch.Tensor:
        shape = [int(size) for size in ref.spec.shape]
        return torch.empty_strided(shape, ref.strides, dtype=ref.spec.dtype)

    args = [None if ref is None else tensor(ref) for ref in node.inputs]
    all_ops()[node.op].implementations["triton"].run(*args, *map(tensor, node.outputs), **node.attrs)


def test_the_released_model_s_plans_are_launched(launches: list[Launch], plans: list[PlannedNode]) -> None:
    served = set()
    for node in plans:
        if not by_triton(node):
            continue
        before = len(launches)
        launch(node)
        assert len(launches) > before, node.label
        served.add(node.op)
    assert served == {op.name for op in OPS} & {node.op for node in plans}
    (step,) = {it.grid for it in launches if it.kernel == "attention_kernel" and it.arguments["queries"] == 576 and
               it.arguments["heads"] == 16 and it.arguments["HEAD"] == 128 and it.grid[0] == 32}  # fmt: skip
    assert step == (2 * 16, 9, 1), "two rows of 16 heads, 576 queries in tiles of 64"


def test_a_wrong_launch_is_noticed(launches: list[Launch]) -> None:
    x = torch.zeros(4)
    scaled[(1,)](x, 4, BLOCK=4)
    with pytest.raises(AssertionError, match=r"'scaled', \(0, 1, 1\)"):
        scaled[(0,)](x, 4, BLOCK=4)
    with pytest.raises(TritonError):
        scaled[(1,)](4, x, BLOCK=4)


@triton.jit
def scaled(x_ptr, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(x_ptr + at, tl.load(x_ptr + at, mask=at < n) * 2, mask=at < n)
