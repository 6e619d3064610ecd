"""y = x / sqrt(mean(x^2) + eps) * weight, and the same after a residual add; each also into 8 bits.

The mean is taken in float32. The normalized x is rounded to the weight's dtype before the product, as Llama's RMSNorm
does: float32 weights round once, bfloat16 weights round after each operation. Into 8 bits, rows have a scale each
(formats/rows.py): inputs of a `linear` that multiplies 8 bits by 8 bits. The weight is then float32, nothing is
rounded between the norm and q, and `dtype` is q's.
"""

from __future__ import annotations

from typing import Any

import torch

from ..formats import rows
from . import quantize
from .base import Call, Given, define, normal, quiet
from .refusals import WARPS, for_f32

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


def members(call: Given) -> dict[str, Any]:
    delta, scale, y, channels = call.get("delta"), call.get("scale"), call.y, call.x.shape[-1]
    count = call.x.numel() // channels
    alone = {} if delta is not None else dict(delta=None, delta_dtype=call.x.dtype, total=None)
    return dict(
        scale=scale,
        y_dtype=y.dtype if scale is None else torch.float32,
        rows=count,
        channels=channels,
        y_stride=y.stride(-2) if count > 1 else channels,
        **alone,
    )


def _register(adds: bool, quantizes: bool) -> None:
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

    reads = f"x: X[*, C],{' delta: T[*, C],' if adds else ''} weight: {'f32' if quantizes else 'W'}[C]"
    writes = f"{'total: X[*, C], ' if adds else ''}{'y: Q[*, C], scale: f32[*]' if quantizes else 'y: O[*, C]'}"
    op = define(
        f"{'add_' if adds else ''}rms_norm{'_quantized' if quantizes else ''}",
        f"{reads} -> {writes}",
        expected,
        QUANTIZED_CASES if quantizes else CASES,
        example,
        quantized=("y",) if quantizes else (),
        flops=f"{7 if quantizes else 4}*rows*C",
    )
    op.kernel("native", members, quantize.for_native() if quantizes else for_f32("weight"), kernel="rms_norm")
    op.triton("rms_norm", quantize.for_triton() if quantizes else for_f32("weight", row="x"), tunables=WARPS)

    @op.implementation("torch")
    def run_torch(call: Given) -> None:
        x = torch.add(call.x, call.delta, out=call.total) if adds else call.x
        if quantizes:
            # contiguous: summed in one order whatever the strides, since a sum's last bit can turn q's rounding
            rows.quantize(normalize(x.contiguous(), call.weight, call.eps), call.y, call.scale)
        else:
            call.y.copy_(normalize(x, call.weight, call.eps))


for _adds in (False, True):
    for _quantizes in (False, True):
        _register(_adds, _quantizes)
