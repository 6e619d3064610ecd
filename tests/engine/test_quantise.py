"""Rows in int8: half a step is all that rounding may cost, and what is wrong by more is noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from flashjanus.engine.ops import get_op, quantise
from flashjanus.engine.ops.activations import reference_silu_mul
from flashjanus.engine.ops.base import Implementation
from op_check import CPU, check, make_call, specs_of

Fault = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], object]


def truncates(y: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> None:
    q.copy_(y / scale[..., None])


def rounds_to_bfloat16_first(y: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> None:
    q.copy_((y.bfloat16() / scale[..., None]).round())


FAULTS: dict[str, tuple[Fault, bool, str]] = {
    "truncates": (truncates, False, "q"),
    "rounds to bfloat16 first": (rounds_to_bfloat16_first, False, "q"),
    "is one off": (lambda y, q, scale: q.sub_(1), False, "q"),
    "divides by another row's scale": (lambda y, q, scale: q.copy_((y / scale.roll(1)[..., None]).round()), False, "q"),
    "gives another row's scale": (lambda y, q, scale: scale.copy_(scale.roll(1)), False, "scale"),
    "drops a NaN": (lambda y, q, scale: scale.nan_to_num_(nan=1.0, posinf=torch.inf), True, "scale"),
    "spreads a NaN into q": (lambda y, q, scale: q.masked_fill_(scale.isnan()[..., None], -128), True, "q"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_quantiser_is_caught(name: str) -> None:
    fault, edges, output = FAULTS[name]
    op = get_op("silu_mul_int8")
    call = make_call(op, dict(m=3, c=131, edges=edges), torch.float32, False)

    def run(x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> None:
        y = reference_silu_mul(x)
        quantise.quantise(y.clone(), q, scale)
        fault(y, q, scale)

    torchs = op.implementations["torch"]
    op = replace(op, implementations={"torch": torchs, "wrong": Implementation("wrong", run, torchs.refuses_call)})
    with pytest.raises(AssertionError, match=rf"silu_mul_int8\.{output} by wrong: "):
        check(op, call, ["wrong"])


def test_rows_that_cannot_be_scaled_are_zeros() -> None:
    y = torch.tensor(
        [[0.0, -0.0], [2e-31, 1e-31], [torch.nan, 1.0], [-torch.inf, 1.0], [-torch.inf, torch.nan], [-4, 1]]
    )
    q, scale = torch.full((6, 2), 9, dtype=torch.int8), torch.full((6,), -1.0)
    quantise.quantise(y, q, scale)
    assert q.tolist() == [[0, 0]] * 5 + [[-127, 32]]
    torch.testing.assert_close(
        scale, torch.tensor([0, 2e-31 / 127, torch.nan, torch.inf, torch.nan, 4 / 127]), equal_nan=True
    )


@pytest.mark.parametrize("name", ["rms_norm_int8", "add_rms_norm_int8", "silu_mul_int8"])
def test_a_row_too_long_for_the_stack_is_left_to_torch(name: str) -> None:
    op = get_op(name)
    call = make_call(op, dict(m=1, c=8193, edges=False), torch.float32, False)
    chosen, reasons = op.choose(CPU, specs_of(call), call.attrs)
    assert chosen.name == "torch"
    assert "rows of at most 8192 channels, not 8193" in reasons["native"]
