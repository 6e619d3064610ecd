"""Native calls whose arguments are ready: what is bound, and that runs stay what they were."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from flashjanus.engine.device import native
from flashjanus.engine.errors import NativeError
from flashjanus.engine.ops import Op, all_ops
from op_check import make_call, serving, specs_of
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))
F32 = torch.float32
SILU = dict(dtype=F32, scale=None, channels=1)
NATIVE = [op for op in all_ops().values() if "native" in op.implementations]


class OnlyViews(TorchDispatchMode):
    """Refuses all that torch could be asked for but views."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        assert all(it.alias_info is not None and not it.alias_info.is_write for it in func._schema.returns), func
        return func(*args, **(kwargs or {}))


def test_what_is_bound_runs_without_the_python_around_it() -> None:
    x, y = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), torch.full((3, 4), torch.nan)
    bound = native.bind(partial(all_ops()["silu_mul"].implementations["native"].run, x, y), [x, y])
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
    with patch.object(native, "_module", lambda: type("Module", (), {"k_bound": lambda **members: given.append})):
        bound = native.bind(lambda: native.run("k", rows=1), [])
        before = torch.get_num_threads()
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                bound()
        finally:
            torch.set_num_threads(before)
    assert given == [1, 2]


@pytest.mark.parametrize("calls", [0, 2])
def test_a_function_of_another_number_of_calls_stays_as_it_is(calls: int) -> None:
    x, y = torch.ones(4, 2), torch.zeros(4, 1)

    def run() -> None:
        for _ in range(calls):
            native.run("silu_mul", x=x, y=y, rows=4, **SILU)

    assert native.bind(run, [x, y]) is run
    assert y.tolist() == [[0.0]] * 4


@pytest.mark.parametrize("inference", [False, True])
def test_a_call_on_a_copy_is_not_bound(inference: bool) -> None:
    """The copy goes, and its address would stay."""
    run = all_ops()["rms_norm"].implementations["native"].run
    with torch.inference_mode(inference):
        x, weight, y = torch.ones(8, 4).t(), torch.ones(8), torch.empty(4, 8)
        call = partial(run, x, weight, y, eps=1e-6, dtype=F32)
        assert native.bind(call, [x, weight, y]) is call


def test_arguments_that_a_kernel_refuses_are_refused_when_they_are_bound() -> None:
    x = torch.zeros(2, 2)
    with pytest.raises(NativeError, match=r"silu_mul: expected every size >= 1.*rows=0"):
        native.bind(lambda: native.run("silu_mul", x=x, y=x, rows=0, **SILU), [x])
    native.run("silu_mul", x=x, y=x[:, :1].clone(), rows=2, **SILU)  # and calls run again at once


@pytest.mark.parametrize("op", [op for op in NATIVE if not op.implementations["native"].around], ids=lambda op: op.name)
def test_every_native_implementation_binds_and_does_no_more_than_its_call(op: Op) -> None:
    bound = 0
    for case in op.cases:
        call = make_call(op, case, F32, False)
        if "native" not in serving(op, call):
            continue
        outputs = [torch.empty(s.shape, dtype=s.dtype) for s in op.schema.infer(op.name, specs_of(call), call.attrs)]
        tensors = [t for t in (*call.args, *outputs) if t is not None]
        run = partial(op.implementations["native"].run, *call.args, *outputs, **call.attrs)
        if native.bind(run, tensors) is not run:
            bound += 1
            with OnlyViews():
                native.bind(run, tensors)
    assert bound
