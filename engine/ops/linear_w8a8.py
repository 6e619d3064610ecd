"""y = (q W^T) * q_scale * scale + b, inputs and weight in 8 bits (W8A8): int8 or float8_e4m3fn, a scale for each row.

q and q_scale are what ops that end in rows of 8 bits write, W has a scale for each output; `dtype` is y's. Products of
int8 are summed in int32, those of e4m3 in float32. The plan puts it in the place of `linear_w8a16` (plan/w8a8.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch

from ... import triton_kernels
from ..device.capabilities import no_e4m3
from ..formats import rows
from ..specs import TensorSpec, product, static
from .base import Call, Op, Schema, Tunable, normal, register
from .linear import MAX_ROWS, few_to_decode, flops, too_many_rows
from .linear_w8a16 import derive, eight_bits


def reference(
    q: torch.Tensor,
    q_scale: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    y = (q.float() @ weight.float().T) * q_scale.float()[..., None] * scale.float()
    return y if bias is None else y + bias.float()


def example(
    generator: torch.Generator,
    dtype: torch.dtype,
    m: int,
    k: int,
    n: int,
    bias: bool = False,
    of: torch.dtype = torch.int8,
    edges: bool = False,
) -> Call:
    q, q_scale = rows.quantized(normal(generator, m, 1, k), of)
    if edges:  # a row of zeros, and those that were not finite
        q[:3], q_scale[:3, 0] = 0, torch.tensor([0, torch.inf, torch.nan])
    scale = (0.5 + torch.rand(n, generator=generator)) / (74 * k**0.5)
    added = normal(generator, n, dtype=dtype) if bias else None
    if of is torch.float8_e4m3fn and dtype is torch.float32:
        dtype = torch.bfloat16  # Hopper's tensor cores keep 14 bits of a sum of e4m3, which float32 would show
    return Call((q, q_scale, eight_bits(generator, n, k, of), scale, added), dict(dtype=dtype))


OP = register(
    Op(
        "linear_w8a8",
        Schema.parse(
            "q: Q[*, K], q_scale: f32[*], weight: Q[N, K], scale: f32[N], bias?: T[N] -> y: Y[*, N]",
            derive,
        ),
        reference,
        flops,
        cases=[
            dict(m=1, k=64, n=96),
            dict(m=5, k=33, n=7, bias=True),
            dict(m=17, k=256, n=64, edges=True),
            dict(m=37, k=200, n=72, bias=True),
            dict(m=130, k=384, n=136),
            dict(m=20, k=2048, n=16),
            dict(m=1, k=64, n=96, of=torch.float8_e4m3fn),
            dict(m=5, k=33, n=7, bias=True, of=torch.float8_e4m3fn),
            dict(m=17, k=256, n=64, edges=True, of=torch.float8_e4m3fn),
            dict(m=130, k=384, n=144, bias=True, of=torch.float8_e4m3fn),
            dict(m=20, k=2048, n=16, of=torch.float8_e4m3fn),
        ],
        example=example,
    )
)


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


def _asked(specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> tuple[Any, ...]:
    q, _, weight, *_ = specs
    assert q is not None
    assert weight is not None
    return static(product(q.shape[:-1])), static(weight.shape[0]), static(weight.shape[1]), q.dtype, attrs["dtype"]


def _refuses_triton(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    e4m3 = bool(specs) and specs[0] is not None and specs[0].dtype is torch.float8_e4m3fn
    return triton_kernels.refuses(device) or (no_e4m3(device) if e4m3 else None)


def _few_rows(device: torch.device, specs: Sequence[TensorSpec | None]) -> str | None:
    x = specs[0]
    assert x is not None
    few = few_to_decode(x) if device.type == "cpu" else too_many_rows(x) is None
    if x.dtype is torch.int8 and few:
        return f"up to {MAX_ROWS} rows of a token wait for the weight, which linear_w8a16 reads in one pass"
    return None


def _yields_triton(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    if not specs:
        return None
    asked = _asked(specs, attrs)
    if asked[3] is torch.float8_e4m3fn and _not_by_torch(device, *asked) is None:
        return "torch has a product with these scales in its epilogue"
    return _few_rows(device, specs)


def _yields_torch(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    if not specs:
        return None
    asked = _asked(specs, attrs)
    return _few_rows(device, specs) or (_not_by_torch(device, *asked) if asked[3] is torch.int8 else None)


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


@OP.implementation("triton", _refuses_triton, _yields_triton, tunables=TILES)
def run_triton(
    q: torch.Tensor,
    q_scale: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    *,
    dtype: torch.dtype,
) -> None:
    from ...triton_kernels.scaled_matmul import launch

    launch(q, q_scale, weight, scale, bias, y)


@OP.implementation("torch", yields=_yields_torch, tunables=[Tunable(__name__, "FAST_ACCUMULATION", (True,))])
def run_torch(
    q: torch.Tensor,
    q_scale: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    *,
    dtype: torch.dtype,
) -> None:
    q, y = q.reshape(-1, q.shape[-1]).contiguous(), y.view(-1, y.shape[-1])
    q_scale, weight = q_scale.reshape(-1, 1).contiguous(), weight.contiguous()
    widened = _not_by_torch(q.device, len(q), y.shape[1], q.shape[1], q.dtype, dtype) is not None
    if q.dtype is torch.float8_e4m3fn and not widened:
        scales = q_scale, scale.contiguous()[None]
        torch._scaled_mm(q, weight.t(), *scales, out_dtype=dtype, out=y, use_fast_accum=FAST_ACCUMULATION)
        if bias is not None:
            y.add_(bias)
        return
    sums = q.float() @ weight.float().t() if widened else torch._int_mm(q, weight.t())
    if bias is None:
        torch.mul(sums * q_scale, scale, out=y)
    else:
        y.copy_((sums * q_scale).mul_(scale).add_(bias))
