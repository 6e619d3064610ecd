"""Implementations of `linear` that multiply inputs in 8 bits by a weight in 8 bits, and scale sums by row and output.

q and its scales are what ops that end in rows of 8 bits write. Products of int8 are summed in int32, those of e4m3 in
float32. The plan gives them such inputs where that pays: on CPUs with VNNI torch's int8 takes a sixth of the time from
five rows on; what decodes up to four, a token each, is a matrix-vector kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from ... import triton_kernels
from ..device.capabilities import no_e4m3
from ..specs import TensorSpec, product, static
from .base import Given, Tunable
from .linear import MAX_ROWS, OP, few_to_decode, fused, too_many_rows

FAST_ACCUMULATION = False
"""Of e4m3 by torch: sums of 14 bits in Hopper's tensor cores, not taken into float32 until the end."""


@cache
def _sums_exactly() -> bool:
    """True if torch multiplies int8 on this CPU fast and right: oneDNN without VNNI adds pairs in 16 bits, which
    saturate, and torch without oneDNN has a plain loop."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    ones = torch.full((32, 256), 127, dtype=torch.int8)
    return bool((torch._int_mm(ones, ones.t()) == 256 * 127**2).all())


@cache
def scales_rows_on_cpu(dtype: torch.dtype) -> bool:
    """True if this torch has _scaled_mm with a scale for each row, into `dtype`, on CPUs."""
    q, scale = torch.zeros(16, 16, dtype=torch.float8_e4m3fn), torch.ones(16, 1)
    try:
        torch._scaled_mm(q, q.t(), scale, scale.t(), out_dtype=dtype)
    except (RuntimeError, ValueError):
        return False
    return True


def _not_by_torch(device: torch.device, rows: int, n: int, k: int, of: torch.dtype, to: torch.dtype) -> str | None:
    """Why torch has no product of these sizes and dtypes on `device`, so that it widens them to float32; or None."""
    if device.type == "cpu" and of is torch.int8:
        return None if _sums_exactly() else "torch multiplies int8 fast and exactly on CPUs with VNNI alone"
    if device.type == "cpu":
        return None if scales_rows_on_cpu(to) else f"this torch scales no rows of e4m3 into {to} on a CPU"
    if of is torch.int8:
        fits = rows > 16 and n % 8 == 0 and k % 8 == 0
        return None if fits else f"torch._int_mm takes over 16 rows and multiples of 8, not {rows} rows, {n} x {k}"
    if to is not torch.bfloat16 or n % 16 or k % 16:
        return f"torch._scaled_mm scales rows of multiples of 16 into bfloat16, not of {n} x {k} into {to}"
    # elsewhere torch 2.6 scales no rows, and on Ada before 2.12 not on the current stream, which a capture needs
    found = torch.cuda.get_device_capability(device) if torch.cuda.is_available() else (9, 0)
    if found[0] != 9:
        return f"torch scales rows of e4m3 on GPUs of compute capability 9 (Hopper), not {found[0]}.{found[1]}"
    return None


def _rows(specs: Sequence[TensorSpec | None]) -> int:
    assert specs[0] is not None
    return static(product(specs[0].shape[:-1]))


def _asked(call: Given) -> tuple[Any, ...]:
    return _rows([call.x]), static(call.weight.shape[0]), static(call.weight.shape[1]), call.x.dtype, call.dtype


def scaled(call: Given) -> str | None:
    if call.x_scale is None:
        return "multiplies inputs in 8 bits, a scale for each row"
    return "takes no neighbors" if fused(call) else None


def by_triton(call: Given) -> str | None:
    return (no_e4m3(call.device) if call.format == "e4m3" else None) or scaled(call)


def _few_rows(call: Given) -> str | None:
    few = few_to_decode(call.x) if call.device.type == "cpu" else too_many_rows(call.x) is None
    if call.x.dtype is torch.int8 and few:
        return f"up to {MAX_ROWS} rows of a token wait for the weight, which a matrix-vector kernel reads in one pass"
    return None


def slower_triton(call: Given) -> str | None:
    if call.x.dtype is torch.float8_e4m3fn and _not_by_torch(call.device, *_asked(call)) is None:
        return "torch has a product with these scales in its epilogue"
    return _few_rows(call)


def slower_scaled_mm(call: Given) -> str | None:
    return _few_rows(call) or (_not_by_torch(call.device, *_asked(call)) if call.x.dtype is torch.int8 else None)


KERNEL = "flashjanus.triton_kernels.scaled_matmul"
TILES = (
    Tunable(
        KERNEL,
        "MANY",
        ((128, 256, 128, 8, 3), (128, 256, 64, 8, 4), (128, 128, 64, 8, 4), (64, 256, 128, 8, 3)),
        lambda specs: _rows(specs) > 64,
    ),
    Tunable(KERNEL, "FEW", ((16, 32, 256, 4, 4), (16, 64, 256, 4, 3), (16, 128, 128, 4, 4)), lambda s: _rows(s) <= 16),
    Tunable(KERNEL, "GROUP", (4, 16), lambda specs: _rows(specs) > 64),
)


@OP.implementation("triton", triton_kernels.refuses, by_triton, slower_triton, tunables=TILES)
def run_triton(call: Given) -> None:
    from ...triton_kernels.scaled_matmul import launch

    launch(call.x, call.x_scale, call.weight, call.scale, call.bias, call.y)


BLOCK = 64
"""Rows that are scaled at a time on a CPU. A second temporary of the size of all sums takes the heap past the size at
which glibc gives memory back, and each call then faults it in anew: a fifth of a prefill's time."""
FAST = Tunable(__name__, "FAST_ACCUMULATION", (True,))


@OP.implementation("scaled_mm", cannot=scaled, should_not=slower_scaled_mm, tunables=[FAST])
def run_scaled_mm(call: Given) -> None:
    q, y = call.x.reshape(-1, call.x.shape[-1]).contiguous(), call.y.view(-1, call.y.shape[-1])
    q_scale, weight, bias = call.x_scale.reshape(-1, 1).contiguous(), call.weight.contiguous(), call.bias
    widened = _not_by_torch(q.device, len(q), y.shape[1], q.shape[1], q.dtype, call.dtype) is not None
    if q.dtype is torch.float8_e4m3fn and not widened:
        scales = q_scale, call.scale.contiguous()[None]
        torch._scaled_mm(q, weight.t(), *scales, out_dtype=call.dtype, out=y, use_fast_accum=FAST_ACCUMULATION)
        if bias is not None:
            y.add_(bias)
        return
    sums = q.float() @ weight.float().t() if widened else torch._int_mm(q, weight.t())
    rows = BLOCK if q.device.type == "cpu" else len(q)
    for begin in range(0, len(q), rows):
        block = slice(begin, begin + rows)
        if bias is None:
            torch.mul(sums[block] * q_scale[block], call.scale, out=y[block])
        else:
            y[block].copy_((sums[block] * q_scale[block]).mul_(call.scale).add_(bias))
