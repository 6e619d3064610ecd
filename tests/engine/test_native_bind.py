"""Native calls whose arguments are ready: what is bound, and that runs stay what they were."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from flashjanus.engine.errors import NativeError
from flashjanus.engine.ops import Op, all_ops
from flashjanus.engine.runtime import native
from op_check import make_call, serving, specs_of

pytestmark = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))
F32 = torch.float32
MORE = {"norm_concat"}
"""Ops whose native implementation does more than one call."""
SILU = dict(dtype=F32, scale=None, channels=1)


def test_what_is_bound_runs_without_the_python_around_it() -> None:
    x, y = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), torch.full((3, 4), torch.nan)
    bound = native.bind(partial(all_ops()["silu_mul"].implementations["native"].run, x, y))
    assert y.isnan().all(), "nothing runs while it is bound"
    with patch.object(native, "plain", side_effect=AssertionError):
        bound()
    gate, up = x.chunk(2, -1)
    torch.testing.assert_close(y, torch.nn.functional.silu(gate) * up)
    x.mul_(2)
    bound()
    gate, up = x.chunk(2, -1)
    torch.testing.assert_close(y, torch.nn.functional.silu(gate) * up)


def test_the_number_of_threads_is_that_of_the_run() -> None:
    given: list[int] = []
    module: Any = native._module()
    with patch.object(native, "_module", lambda: type("Module", (), {"k_bound": lambda **members: given.append})):
        bound = native.bind(lambda: native.run("k", rows=1))
        before = torch.get_num_threads()
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                bound()
        finally:
            torch.set_num_threads(before)
    assert given == [1, 2]
    assert module is native._module()


@pytest.mark.parametrize("work", ["a copy", "an update", "a read", "two calls", "no call"])
def test_a_function_that_does_more_stays_as_it_is(work: str) -> None:
    x, y = torch.ones(4, 2), torch.zeros(4, 1)

    def run() -> None:
        if work == "a copy":
            x.t().contiguous()
        if work == "an update":
            y.add_(1)
        if work == "a read":
            bool(x.sum() > 0)
        for _ in range({"two calls": 2, "no call": 0}.get(work, 1)):
            native.run("silu_mul", x=x, y=y, rows=4, **SILU)

    assert native.bind(run) is run
    assert y.tolist() == [[0.0]] * 4


def test_arguments_that_a_kernel_refuses_are_refused_when_they_are_bound() -> None:
    x = torch.zeros(2, 2)
    with pytest.raises(NativeError, match=r"silu_mul: expected every size >= 1.*rows=0"):
        native.bind(lambda: native.run("silu_mul", x=x, y=x, rows=0, **SILU))
    native.run("silu_mul", x=x, y=x[:, :1].clone(), rows=2, **SILU)  # and calls run again at once


@pytest.mark.parametrize(
    "op",
    [op for op in all_ops().values() if "native" in op.implementations and op.name not in MORE],
    ids=lambda op: op.name,
)
def test_every_native_implementation_binds(op: Op) -> None:
    bound = 0
    for case in op.cases:
        call = make_call(op, case, torch.float32, False)
        if "native" not in serving(op, call):
            continue
        specs = op.schema.infer(op.name, specs_of(call), call.attrs)
        outputs = [torch.empty(s.shape, dtype=s.dtype) for s in specs]
        run = partial(op.implementations["native"].run, *call.args, *outputs, **call.attrs)
        bound += native.bind(run) is not run
    assert bound


@pytest.mark.parametrize("inference", [False, True])
def test_a_copy_is_no_view_in_inference_mode_either(inference: bool) -> None:
    """There torch does not take `contiguous` apart: a copy looks like a view."""
    run = all_ops()["rms_norm"].implementations["native"].run
    with torch.inference_mode(inference):
        x, y = torch.ones(8, 4).t(), torch.empty(4, 8)
        call = partial(run, x, torch.ones(8), y, eps=1e-6, dtype=F32)
        assert native.bind(call) is call
