"""Rows in 8 bits: half a step is all that rounding may cost, and what is wrong by more is noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from flashjanus.engine.formats import rows
from flashjanus.engine.ops import get_op
from flashjanus.engine.ops.activations import reference_silu_mul
from flashjanus.engine.ops.base import Given, Implementation
from op_check import CPU, check, make_call, specs_of

Fault = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], object]


E4M3 = torch.float8_e4m3fn


def rounded(steps: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return steps.round() if q.dtype is torch.int8 else steps.clamp(-448, 448)


def truncates(y: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> None:
    steps = y / scale[..., None]
    if q.dtype is torch.int8:
        q.copy_(steps)
        return
    near = steps.clamp(-448, 448).to(E4M3)
    away = near.float().abs() > steps.abs()
    q.view(torch.uint8).copy_(near.view(torch.uint8) - away.to(torch.uint8))  # the next value toward zero


def rounds_to_bfloat16_first(y: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> None:
    q.copy_(rounded(y.bfloat16() / scale[..., None], q))


def is_one_off(y: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> None:
    q.view(torch.int8).sub_(1)


def flushes_subnormals(y: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> None:
    q.copy_(torch.where(q.float().abs() < 2**-6, 0, q.float()))


FAULTS: dict[str, tuple[Fault, bool, str, tuple[torch.dtype, ...]]] = {
    "truncates": (truncates, False, "y", (torch.int8, E4M3)),
    "rounds to bfloat16 first": (rounds_to_bfloat16_first, False, "y", (torch.int8, E4M3)),
    "is one off": (is_one_off, False, "y", (torch.int8, E4M3)),
    "flushes subnormals": (flushes_subnormals, False, "y", (E4M3,)),
    "divides by another row's scale": (
        lambda y, q, scale: q.copy_(rounded(y / scale.roll(1)[..., None], q)),
        False,
        "y",
        (torch.int8, E4M3),
    ),
    "gives another row's scale": (lambda y, q, scale: scale.copy_(scale.roll(1)), False, "scale", (torch.int8, E4M3)),
    "drops a NaN": (lambda y, q, scale: scale.nan_to_num_(nan=1.0, posinf=torch.inf), True, "scale", (torch.int8,)),
    "spreads a NaN into q": (
        lambda y, q, scale: q.copy_(torch.where(scale.isnan()[..., None], -128, q.float())),
        True,
        "y",
        (torch.int8, E4M3),
    ),
}


@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name, fault in FAULTS.items() for dtype in fault[3]])
def test_a_wrong_quantizer_is_caught(name: str, dtype: torch.dtype) -> None:
    fault, edges, output, _ = FAULTS[name]
    op = get_op("silu_mul_quantized")
    call = make_call(op, dict(m=3, c=131, edges=edges, to=dtype), torch.float32, False)

    def run(call: Given) -> None:
        y = reference_silu_mul(call.x)
        rows.quantize(y.clone(), call.y, call.scale)
        fault(y, call.y, call.scale)

    op = replace(op, implementations={**op.implementations, "wrong": Implementation("wrong", op, run)})
    with pytest.raises(AssertionError, match=rf"silu_mul_quantized\.{output} by wrong: "):
        check(op, call, ["wrong"])


def test_every_value_of_e4m3_is_reached_and_rounds_to_even() -> None:
    """The row's largest value is 448, so that steps are the values themselves: all of them, and what lies between."""
    values = torch.arange(0, 127, dtype=torch.uint8).view(E4M3).float()
    between = (values[1:] + values[:-1]) / 2
    y = torch.cat([values, -values, between])[None]
    q, scale = rows.quantized(y, E4M3)
    assert scale.tolist() == [1.0]
    assert torch.equal(q[0, :254].float(), torch.cat([values, -values]))
    codes = torch.arange(126)
    assert torch.equal(q[0, 254:].view(torch.uint8).long(), codes + codes % 2)


def test_an_outlier_does_not_overflow_e4m3() -> None:
    """y * (448 / largest) may be above 448 by a last bit, and in e4m3 what is above may be NaN."""
    y = torch.randn(4096, 3, generator=torch.Generator().manual_seed(1)).exp()
    q, scale = rows.quantized(y, E4M3)
    assert (q.float().abs().amax(1) == 448).all()
    assert ((q.float() * scale[:, None] - y).abs() <= y / 15.9).all()


def test_rows_that_cannot_be_scaled_are_zeros() -> None:
    y = torch.tensor(
        [[0.0, -0.0], [2e-31, 1e-31], [torch.nan, 1.0], [-torch.inf, 1.0], [-torch.inf, torch.nan], [-4, 1]]
    )
    q, scale = torch.full((6, 2), 9, dtype=torch.int8), torch.full((6,), -1.0)
    rows.quantize(y, q, scale)
    assert q.tolist() == [[0, 0]] * 5 + [[-127, 32]]
    torch.testing.assert_close(
        scale, torch.tensor([0, 2e-31 / 127, torch.nan, torch.inf, torch.nan, 4 / 127]), equal_nan=True
    )


QUANTIZERS = ["rms_norm_quantized", "add_rms_norm_quantized", "silu_mul_quantized", "quantize_rows"]


@pytest.mark.parametrize("name", QUANTIZERS)
def test_native_kernels_say_why_they_leave_rows_to_torch(name: str) -> None:
    """Rows that are too long for the stack, and e4m3."""
    op = get_op(name)
    for case, reason in (
        (dict(m=1, c=8193), "rows of at most 8192 channels, not 8193"),
        (dict(m=1, c=64, to=E4M3), "quantizes to int8, not to torch.float8_e4m3fn"),
    ):
        call = make_call(op, case, torch.float32, False)
        chosen, reasons = op.choose(CPU, specs_of(call), call.attrs)
        assert chosen.name == "torch"
        assert reason in reasons["native"]
