"""y = (x - mean) / sqrt(var + eps) * weight + bias in float32, and the same after a residual add."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from .base import Call, Given, define, normal, quiet
from .refusals import WARPS, for_f32

CASES = [dict(m=1, c=64), dict(m=3, c=1001), dict(m=3, c=96, eps_decides=True)]


def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    x = x.float()
    centered = x - x.mean(-1, keepdim=True)
    return centered * torch.rsqrt(centered.square().mean(-1, keepdim=True) + eps) * weight.float() + bias.float()


def members(call: Given) -> dict[str, Any]:
    delta, channels = call.get("delta"), call.x.shape[-1]
    alone = {} if delta is not None else dict(delta=None, delta_dtype=call.x.dtype, total=None)
    return dict(rows=call.x.numel() // channels, channels=channels, **alone)


def _register(adds: bool) -> None:
    def expected(*inputs: torch.Tensor, eps: float, dtype: torch.dtype) -> Any:
        x, *delta, weight, bias = inputs
        if not adds:
            return reference(x, weight, bias, eps)
        total = x.float() + delta[0].float()
        return total, reference(total.to(x.dtype), weight, bias, eps)

    def example(generator: torch.Generator, dtype: torch.dtype, m: int, c: int, eps_decides: bool = False) -> Call:
        x, delta = 3 * normal(generator, m, 2, c) + 1, normal(generator, m, 2, c, dtype=dtype)
        if eps_decides:
            quiet(x, 2.5 if adds else 2.0)
            delta[0], delta[-1] = -0.5, 0
        inputs = (x, *((delta,) if adds else ()), 1 + 0.1 * normal(generator, c), normal(generator, c))
        return Call(inputs, dict(eps=1e-6, dtype=dtype))

    signature = "x: X[*, C], weight: W[C], bias: W[C] -> y: O[*, C]"
    if adds:
        signature = "x: X[*, C], delta: T[*, C], weight: W[C], bias: W[C] -> total: X[*, C], y: O[*, C]"
    op = define("add_layer_norm" if adds else "layer_norm", signature, expected, CASES, example, flops="7*rows*C")
    op.kernel("native", members, for_f32("weight"), kernel="layer_norm")
    op.triton("layer_norm", for_f32("weight", row="x"), tunables=WARPS)

    @op.implementation("torch")
    def run_torch(call: Given) -> None:
        x, weight = torch.add(call.x, call.delta, out=call.total) if adds else call.x, call.weight
        call.y.copy_(F.layer_norm(x.to(weight.dtype), (x.shape[-1],), weight, call.bias, call.eps))


for _adds in (False, True):
    _register(_adds)
