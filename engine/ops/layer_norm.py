"""y = (x - mean) / sqrt(var + eps) * weight + bias in float32, and the same after a residual add."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from ..device import native
from .base import Bound, Call, Op, Schema, normal, quiet, register
from .dims import rows_of
from .refusals import WARPS, native_for_f32, triton_for_f32

CASES = [dict(m=1, c=64), dict(m=3, c=1001), dict(m=3, c=96, eps_decides=True)]


def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    x = x.float()
    centered = x - x.mean(-1, keepdim=True)
    return centered * torch.rsqrt(centered.square().mean(-1, keepdim=True) + eps) * weight.float() + bias.float()


def flops(bound: Bound, attrs: Mapping[str, Any]) -> int:
    return 7 * rows_of(bound) * int(bound["C"])


def _register(adds: bool) -> None:
    def tensors(arguments: tuple[torch.Tensor, ...]) -> tuple[Any, Any, Any, Any, Any, Any]:
        """x, delta, weight, bias, total, y; delta and total are None for a norm without an add."""
        x, *delta, weight, bias = arguments[: 4 if adds else 3]
        return x, delta[0] if adds else None, weight, bias, arguments[4] if adds else None, arguments[-1]

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

    schema = "x: X[*, C], weight: W[C], bias: W[C] -> y: O[*, C]"
    if adds:
        schema = "x: X[*, C], delta: T[*, C], weight: W[C], bias: W[C] -> total: X[*, C], y: O[*, C]"
    name, weight = ("add_layer_norm", 2) if adds else ("layer_norm", 1)
    op = register(Op(name, Schema.parse(schema), expected, flops, CASES, example))

    @op.implementation("native", native_for_f32(weight))
    def run_native(*arguments: torch.Tensor, eps: float, dtype: torch.dtype) -> None:
        x, delta, weight, bias, total, y = tensors(arguments)
        x, delta = x.contiguous(), None if delta is None else delta.contiguous()
        native.run(
            "layer_norm",
            x=x,
            delta=delta,
            weight=weight,
            bias=bias,
            total=total,
            y=y,
            x_dtype=x.dtype,
            delta_dtype=x.dtype if delta is None else delta.dtype,
            y_dtype=y.dtype,
            eps=eps,
            rows=x.numel() // x.shape[-1],
            channels=x.shape[-1],
        )

    @op.implementation("triton", triton_for_f32(weight, row=True), tunables=WARPS)
    def run_triton(*arguments: torch.Tensor, eps: float, dtype: torch.dtype) -> None:
        from ...triton_kernels.layer_norm import launch

        launch(*tensors(arguments), eps)

    @op.implementation("torch")
    def run_torch(*arguments: torch.Tensor, eps: float, dtype: torch.dtype) -> None:
        x, delta, weight, bias, total, y = tensors(arguments)
        if adds:
            x = torch.add(x, delta, out=total)
        y.copy_(F.layer_norm(x.to(weight.dtype), (x.shape[-1],), weight, bias, eps))


for _adds in (False, True):
    _register(_adds)
