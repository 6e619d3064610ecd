"""What the native CPU kernels promise beside their ops' cases: the same bits on any number of threads, tails of GELU,
large means, non-finite values that stay where they belong, and one real size.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from flashjanus.engine.device import native
from flashjanus.engine.ops import Call, Op, all_ops, get_op
from op_check import check, error, make_call, reference, run, serving

pytestmark = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))

ISAS = [] if native.available() else native.instruction_sets()
NATIVE = [f"native {isa}" for isa in ISAS]


def native_calls() -> Iterator[Any]:
    for op in all_ops().values():
        for i, case in enumerate(op.cases):
            for dtype in (torch.float32, torch.bfloat16):
                call = make_call(op, case, dtype, False)
                if "native" in serving(op, call):
                    yield pytest.param(op, call, id=f"{op.name}-{i}-{str(dtype).removeprefix('torch.')}")


@pytest.mark.parametrize(("op", "call"), list(native_calls()))
def test_any_number_of_threads_gives_the_same_bits(op: Op, call: Call) -> None:
    outputs = []
    for threads in (1, 2, 5):
        with patch.object(native, "run", partial(native.run, threads=threads)):
            outputs.append(run(op, "native", call))
    for other in outputs[1:]:
        assert all(torch.equal(t.view(torch.uint8), other[name].view(torch.uint8)) for name, t in outputs[0].items())


def gelu_stats(x: torch.Tensor, isa: str) -> torch.Tensor:
    y, sums = torch.empty_like(x), torch.empty(len(x))
    shape = dict(batch=1, positions=1, channels=len(x), dtype=x.dtype)
    native.run("gelu_grn_stats", isa=isa, x=x, y=y, sumsq=sums, **shape)
    return y


@pytest.mark.parametrize("isa", ISAS)
def test_gelu_keeps_its_negative_tail(isa: str) -> None:
    """torch's formula, x (1 + erf(x / sqrt 2)) / 2, has lost every digit at -5.6."""
    x = torch.linspace(-6, 6, 200_001)
    exact = x.double() * torch.special.erfc(-x.double() / 2**0.5) / 2
    off = (gelu_stats(x, isa).double() - exact).abs()
    assert float((off / x.double().abs().clamp(min=1e-30)).max()) < 2**-23
    assert float((off / exact.abs().clamp(min=1e-30)).max()) < 1e-5
    ends = gelu_stats(torch.tensor([-torch.inf, -1e4, -20.0, -0.0, 0.0, 1e4, torch.inf, torch.nan]), isa)
    assert ends[[0, 7]].isnan().all()  # as -inf * 0 is in the formula
    assert ends[1:7].tolist() == [0, 0, 0, 0, 1e4, torch.inf]


@pytest.mark.parametrize("isa", ISAS)
def test_group_norm_with_a_mean_a_thousand_times_its_deviation(isa: str) -> None:
    """The mean of squares less the square of the mean would be off by 5 % of the variance."""
    op, generator = get_op("group_norm_silu"), torch.Generator().manual_seed(3)
    x = torch.randn(1, 20, 20, 48, generator=generator) + 1000
    call = Call((x, torch.ones(48), torch.zeros(48)), dict(groups=12, eps=1e-6, silu=False))
    exact = reference(op, call, exact=True)["y"]
    off = {name: error(run(op, name, call)["y"], exact, name) for name in (f"native {isa}", "torch")}
    assert off[f"native {isa}"] <= off["torch"]
    assert off[f"native {isa}"] <= 1e-4  # half a unit of 1000 in the last place is 3e-5


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_depthwise_norm_spreads_a_non_finite_value_over_its_own_window_only(value: float) -> None:
    op = get_op("depthwise_norm")
    call = make_call(op, dict(size=16, channels=19, bias=True), torch.float32, False)
    x = call.args[0]
    assert x is not None
    x[1, 7, 9, 4] = value
    for implementation in NATIVE:
        y = run(op, implementation, call)["y"]
        spoilt = (~y.isfinite()).any(-1)
        assert spoilt[1, 4:11, 6:13].all()
        assert int(spoilt.sum()) == 49


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("depthwise_norm", dict(size=24, channels=768, bias=True)),
        ("gelu_grn_stats", dict(b=1, p=576, c=3072)),
        ("group_norm_silu", dict(size=48, c=512, groups=32, silu=True)),
    ],
)
def test_real_sizes(name: str, case: dict[str, Any]) -> None:
    op = get_op(name)
    check(op, make_call(op, case, torch.bfloat16, False), ["native"])
