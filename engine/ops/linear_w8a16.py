"""y = (x W^T) * scale + b, W in int8 or float8_e4m3fn and a scale for each output (W8A16): half of bfloat16's bytes.

For decoding, which waits for weights: W is widened in registers, x stays as it is, sums are float32. For more, and
in e4m3, which only torch widens, the plan takes `linear_w8a8` where that serves (plan/w8a8.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..device import native
from ..errors import SchemaError
from ..formats import rows
from ..specs import Size, TensorSpec, dtype_name
from .base import Bound, Call, Op, Schema, normal, register
from .linear import flops, gemv_arguments, many_tokens, too_many_rows


def derive(bound: Bound, attrs: Mapping[str, Any]) -> Mapping[str, Size]:
    """Nothing; refuses a weight in other dtypes."""
    if bound["Q"] not in rows.LARGEST:
        known = " or ".join(map(dtype_name, rows.LARGEST))
        raise SchemaError(f"expected a weight in {known}, got {dtype_name(bound['Q'])}")
    return {}


def reference(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    y = (x.float() @ weight.float().T) * scale.float()
    return y if bias is None else y + bias.float()


def example(
    generator: torch.Generator,
    dtype: torch.dtype,
    m: int,
    k: int,
    n: int,
    bias: bool = False,
    of: torch.dtype = torch.int8,
) -> Call:
    x = normal(generator, m, 1, k, dtype=dtype)
    weight = eight_bits(generator, n, k, of)
    scale = (0.5 + torch.rand(n, generator=generator)) / (74 * k**0.5)
    return Call((x, weight, scale, normal(generator, n, dtype=dtype) if bias else None))


def eight_bits(generator: torch.Generator, n: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    """Values of root mean square 74, the largest and the smallest that `dtype` has among them."""
    if dtype is torch.int8:
        return torch.randint(-128, 128, (n, k), generator=generator, dtype=dtype)
    values = (74 * normal(generator, n, k)).clamp(-448, 448)
    values[0, 0], values[-1, -1], values[-1, 0] = 448, -448, 2**-9
    return values.to(dtype)


OP = register(
    Op(
        "linear_w8a16",
        Schema.parse("x: T[*, K], weight: Q[N, K], scale: f32[N], bias?: T[N] -> y: T[*, N]", derive),
        reference,
        flops,
        cases=[
            dict(m=1, k=64, n=96),
            dict(m=1, k=33, n=7, bias=True),
            dict(m=2, k=592, n=19, bias=True),
            dict(m=3, k=72, n=32),
            dict(m=4, k=129, n=5, bias=True),
            dict(m=1, k=4624, n=5, bias=True),
            dict(m=4, k=2128, n=3),
            dict(m=2, k=1031, n=3),
            dict(m=9, k=40, n=24, bias=True),
            dict(m=2, k=40, n=24, bias=True, of=torch.float8_e4m3fn),
            dict(m=9, k=72, n=32, of=torch.float8_e4m3fn),
        ],
        example=example,
    )
)


def _refuses_dtype(specs: Sequence[TensorSpec | None]) -> str | None:
    weight = specs[1] if specs else None
    if weight is None or weight.dtype is torch.int8:
        return None
    return f"widens weights in int8, not in {weight.dtype}"


def _refuses_native(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    many = many_tokens(specs[0]) if specs else None
    return _refuses_dtype(specs) or many or native.refuses(device, *_dtype(specs))


def _refuses_cuda(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    many = too_many_rows(specs[0]) if specs else None
    return _refuses_dtype(specs) or many or native.refuses_cuda(device, *_dtype(specs))


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
    # contiguous: see linear.py; 8 bits are exact in bfloat16 too
    product = (x.contiguous() @ weight.to(x.dtype).t()).float() * scale
    y.copy_(product if bias is None else product + bias)
