"""y = x / sqrt(mean(x^2) + eps) * weight, and the same after a residual add; each also into 8 bits.

The mean is taken in float32. The normalized x is rounded to the weight's dtype before the product, as Llama's RMSNorm
does: float32 weights round once, bfloat16 weights round after each operation. Into 8 bits, rows have a scale each
(formats/rows.py): inputs of a `linear` that multiplies 8 bits by 8 bits. The weight is then float32, nothing is
rounded between the norm and q, and `dtype` is q's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ..device import native
from ..formats import rows
from . import quantize
from .base import Bound, Call, Op, Schema, normal, quiet, register
from .dims import rows_of
from .refusals import WARPS, native_for_f32, triton_for_f32

CASES: list[dict[str, Any]] = [dict(m=1, c=64), dict(m=5, c=1000), dict(m=2, c=7), dict(m=3, c=96, eps_decides=True)]
E4M3 = torch.float8_e4m3fn
QUANTIZED_CASES: list[dict[str, Any]] = [
    *CASES,
    dict(m=3, c=1),
    dict(m=40, c=33),
    dict(m=3, c=131, edges=True),
    dict(m=1, c=2048),
    dict(m=5, c=1000, to=E4M3),
    dict(m=3, c=131, edges=True, to=E4M3),
    dict(m=1, c=2048, to=E4M3),
    dict(m=3, c=96, eps_decides=True, to=E4M3),
]


def normalize(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm over the last axis; float32 inside, the result in the weight's dtype."""
    x = x.float()
    rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    normed: torch.Tensor = (x * rms).to(weight.dtype) * weight
    return normed


def reference(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()


class Tensors(NamedTuple):
    """Of a call of any of these ops."""

    x: torch.Tensor
    delta: torch.Tensor | None
    weight: torch.Tensor
    total: torch.Tensor | None
    y: torch.Tensor
    scale: torch.Tensor | None = None


def normalize_native(tensors: Tensors, eps: float) -> None:
    """RMSNorm of x, or of x + delta = total, into y, whose rows may be apart; with a scale, y is int8."""
    x, delta, weight, total, y, scale = tensors
    x, delta = x.contiguous(), None if delta is None else delta.contiguous()
    count, channels = x.numel() // x.shape[-1], x.shape[-1]
    native.run(
        "rms_norm",
        x=x,
        delta=delta,
        weight=weight,
        total=total,
        y=y,
        scale=scale,
        x_dtype=x.dtype,
        delta_dtype=x.dtype if delta is None else delta.dtype,
        y_dtype=y.dtype if scale is None else torch.float32,
        eps=eps,
        rows=count,
        channels=channels,
        y_stride=y.stride(-2) if count > 1 else channels,
    )


def _register(adds: bool, quantizes: bool) -> None:
    def tensors(arguments: tuple[torch.Tensor, ...]) -> Tensors:
        left = iter(arguments)
        given = (True, adds, True, adds, True, quantizes)
        return Tensors(*(next(left) if there else None for there in given))  # type: ignore[arg-type]

    def expected(*inputs: torch.Tensor, eps: float, dtype: torch.dtype) -> Any:
        x, *delta, weight = inputs
        total = x.float() + delta[0].float() if adds else x
        y = reference(total.to(x.dtype), weight, eps, dtype)
        written = (*((total,) if adds else ()), *(rows.reference(y, dtype) if quantizes else (y,)))
        return written if len(written) > 1 else y

    def example(
        generator: torch.Generator,
        dtype: torch.dtype,
        m: int,
        c: int,
        edges: bool = False,
        eps_decides: bool = False,
        to: torch.dtype = torch.int8,
    ) -> Call:
        x = 5 * normal(generator, m, 3, c + 8)[..., :c]  # rows further apart than they are long
        x = x.to(dtype) if quantizes and not adds else x
        delta = normal(generator, m, 3, c, dtype=dtype)
        if edges:
            quantize.with_edges(x)
            delta[0, 0] = 0
        if eps_decides:
            quiet(x, 0.5 if adds else 0.0)
            delta[0], delta[-1] = -0.5, 0
        inputs = (x, *((delta,) if adds else ()), 1 + 0.1 * normal(generator, c))
        return Call(inputs, dict(eps=1e-6, dtype=to if quantizes else dtype))

    def flops(bound: Bound, attrs: Mapping[str, Any]) -> int:
        return (7 if quantizes else 4) * rows_of(bound) * int(bound["C"])

    reads = f"x: X[*, C],{' delta: T[*, C],' if adds else ''} weight: {'f32' if quantizes else 'W'}[C]"
    writes = f"{'total: X[*, C], ' if adds else ''}{'q: Q[*, C], scale: f32[*]' if quantizes else 'y: O[*, C]'}"
    op = register(
        Op(
            f"{'add_' if adds else ''}rms_norm{'_quantized' if quantizes else ''}",
            Schema.parse(f"{reads} -> {writes}"),
            expected,
            flops,
            QUANTIZED_CASES if quantizes else CASES,
            example,
            quantized=("q",) if quantizes else (),
        )
    )
    weight = 2 if adds else 1

    @op.implementation("native", quantize.refuses_native if quantizes else native_for_f32(weight))
    def run_native(*arguments: torch.Tensor, eps: float, dtype: torch.dtype) -> None:
        normalize_native(tensors(arguments), eps)

    refuses_triton = quantize.refuses_triton if quantizes else triton_for_f32(weight, row=True)

    @op.implementation("triton", refuses_triton, tunables=WARPS)
    def run_triton(*arguments: torch.Tensor, eps: float, dtype: torch.dtype) -> None:
        from ...triton_kernels.rms_norm import launch

        launch(*tensors(arguments), eps)

    @op.implementation("torch")
    def run_torch(*arguments: torch.Tensor, eps: float, dtype: torch.dtype) -> None:
        x, delta, weight, total, y, scale = tensors(arguments)
        if delta is not None and total is not None:
            x = torch.add(x, delta, out=total)
        if scale is None:
            y.copy_(normalize(x, weight, eps))
        else:
            # contiguous: summed in one order whatever the strides, since a sum's last bit can turn q's rounding
            rows.quantize(normalize(x.contiguous(), weight, eps), y, scale)


for _adds in (False, True):
    for _quantizes in (False, True):
        _register(_adds, _quantizes)
