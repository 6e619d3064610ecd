"""y = (x W^T) * scale + b with W in int8 and a scale for each output (W8A16): half the bytes of a bfloat16 weight.

For decoding, which waits for weights: W is widened in registers, x stays as it is, sums are float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..ir import TensorSpec
from ..runtime import native
from .base import Call, Op, Schema, normal, register
from .linear import flops, gemv_arguments, too_many_rows


def reference(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    y = (x.float() @ weight.float().T) * scale.float()
    return y if bias is None else y + bias.float()


def example(generator: torch.Generator, dtype: torch.dtype, m: int, k: int, n: int, bias: bool) -> Call:
    x = normal(generator, m, 1, k, dtype=dtype)
    weight = torch.randint(-128, 128, (n, k), generator=generator, dtype=torch.int8)
    scale = (0.5 + torch.rand(n, generator=generator)) / (74 * k**0.5)
    return Call((x, weight, scale, normal(generator, n, dtype=dtype) if bias else None))


OP = register(
    Op(
        "linear_int8",
        Schema.parse("x: T[*, K], weight: i8[N, K], scale: f32[N], bias?: T[N] -> y: T[*, N]"),
        reference,
        flops,
        cases=[
            dict(m=1, k=64, n=96, bias=False),
            dict(m=1, k=33, n=7, bias=True),
            dict(m=2, k=592, n=19, bias=True),
            dict(m=3, k=72, n=32, bias=False),
            dict(m=4, k=129, n=5, bias=True),
            dict(m=1, k=4624, n=5, bias=True),
            dict(m=4, k=2128, n=3, bias=False),
            dict(m=2, k=1031, n=3, bias=False),
            dict(m=9, k=40, n=24, bias=True),
        ],
        example=example,
    )
)


def _refuses_native(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    return (too_many_rows(specs[0]) if specs else None) or native.refuses(device, *_dtype(specs))


def _refuses_cuda(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    return (too_many_rows(specs[0]) if specs else None) or native.refuses_cuda(device, *_dtype(specs))


def _dtype(specs: Sequence[TensorSpec | None]) -> list[torch.dtype]:
    return [spec.dtype for spec in specs[:1] if spec is not None]


@OP.implementation("native", _refuses_native)
def run_native(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor
) -> None:
    native.run("gemv", **gemv_arguments(x, weight, y, scale=scale, bias=bias))


@OP.implementation("cuda", _refuses_cuda)
def run_cuda(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor
) -> None:
    native.run_cuda("gemv", x.device, **gemv_arguments(x, weight, y, scale=scale, bias=bias))


@OP.implementation("torch")
def run_torch(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor
) -> None:
    # an int8 is exact in bfloat16 too
    product = (x @ weight.to(x.dtype).t()).float() * scale
    y.copy_(product if bias is None else product + bias)
