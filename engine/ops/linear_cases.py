"""The cases of `linear`: every format with every neighbor, at odd sizes; and what a case is made into."""

from __future__ import annotations

from typing import Any

import torch

from ..formats import FORMATS, rows
from ..formats.rows import Rows
from .base import Call, normal, quiet

CASES: list[dict[str, Any]] = [
    dict(m=1, k=64, n=96),
    dict(m=1, k=33, n=7, bias=True),
    dict(m=37, k=200, n=65, bias=True),
    dict(m=5, k=40, n=24, bias=True, split_bias=True),
    dict(m=6, k=16, n=8),
    dict(m=2, k=70, n=19, bias=True),
    dict(m=3, k=48, n=32),
    dict(m=4, k=129, n=5, bias=True),
    dict(m=1, k=2600, n=5, bias=True),
    dict(m=4, k=2056, n=3),
    dict(m=2, k=1031, n=3),
    dict(m=1, k=64, n=96, norm=True),
    dict(m=1, k=33, n=7, residual=True),
    dict(m=2, k=72, n=38, norm=True, act="gated_silu"),
    dict(m=3, k=200, n=65, norm=True),
    dict(m=4, k=129, n=66, norm=True, act="gated_silu"),
    dict(m=1, k=2600, n=5, residual=True),
    dict(m=1, k=2048, n=6, norm=True, act="gated_silu"),
    dict(m=4, k=1031, n=3, norm=True),
    dict(m=2, k=40, n=24, act="gated_silu", residual=True),
    dict(m=6, k=40, n=24, norm=True),
    dict(m=1, k=2080, n=4, norm=True),
    dict(m=3, k=64, n=38, norm=True, eps_decides=True),
    dict(m=3, k=40, n=24, bias=True, act="gelu"),
    *(
        dict(of="int8", **case)
        for case in (
            dict(m=1, k=64, n=96),
            dict(m=1, k=33, n=7, bias=True),
            dict(m=2, k=592, n=19, bias=True),
            dict(m=3, k=72, n=32),
            dict(m=4, k=129, n=5, bias=True),
            dict(m=1, k=4624, n=5, bias=True),
            dict(m=4, k=2128, n=3),
            dict(m=2, k=1031, n=3),
            dict(m=9, k=40, n=24, bias=True),
            dict(m=1, k=96, n=10, norm=True),
            dict(m=2, k=600, n=34, norm=True, act="gated_silu"),
            dict(m=4, k=77, n=9, residual=True),
            dict(m=3, k=96, n=10, norm=True, eps_decides=True),
            dict(m=1, k=64, n=96, quantized=True),
            dict(m=5, k=33, n=7, bias=True, quantized=True),
            dict(m=17, k=256, n=64, edges=True, quantized=True),
            dict(m=37, k=200, n=72, bias=True, quantized=True),
            dict(m=130, k=384, n=136, quantized=True),
            dict(m=20, k=2048, n=16, quantized=True),
        )
    ),
    *(
        dict(of="e4m3", **case)
        for case in (
            dict(m=2, k=40, n=24, bias=True),
            dict(m=9, k=72, n=32),
            dict(m=1, k=64, n=96, quantized=True),
            dict(m=5, k=33, n=7, bias=True, quantized=True),
            dict(m=17, k=256, n=64, edges=True, quantized=True),
            dict(m=130, k=384, n=144, bias=True, quantized=True),
            dict(m=20, k=2048, n=16, quantized=True),
        )
    ),
    *(
        dict(of="tiles", **case)
        for case in (
            dict(m=1, k=64, n=96, norm=True),
            dict(m=16, k=32, n=16, bias=True),
            dict(m=3, k=96, n=160, norm=True, act="gated_silu"),
            dict(m=17, k=160, n=48, residual=True),
            dict(m=33, k=64, n=80, bias=True, act="gelu"),
            dict(m=70, k=1056, n=96, norm=True, act="gated_silu"),
            dict(m=200, k=4128, n=48, residual=True),
            dict(m=130, k=5632, n=64, bias=True),
            dict(m=3, k=96, n=48, norm=True, eps_decides=True),
        )
    ),
    *(
        dict(of="int8_tiles", **case)
        for case in (
            dict(m=1, k=128, n=80, norm=True),
            dict(m=5, k=192, n=32, norm=True, act="gated_silu"),
            dict(m=40, k=640, n=48, residual=True),
            dict(m=300, k=8192, n=32, bias=True, act="gelu"),
            dict(m=3, k=128, n=48, norm=True, eps_decides=True),
        )
    ),
    *(
        dict(of="int4", **case)
        for case in (
            dict(m=1, k=32, n=16),
            dict(m=1, k=128, n=80, norm=True),
            dict(m=1, k=5632, n=48, residual=True),
            dict(m=2, k=96, n=160, norm=True, act="gated_silu"),
            dict(m=3, k=160, n=48, residual=True),
            dict(m=4, k=2048, n=32, norm=True),
            dict(m=4, k=192, n=32, norm=True, act="gated_silu"),
            dict(m=3, k=64, n=96, act="gated_silu", residual=True),
            dict(m=2, k=8192, n=32),
            dict(m=9, k=64, n=48, residual=True),
            dict(m=3, k=96, n=32, edges=True),
            dict(m=3, k=96, n=32, norm=True, eps_decides=True),
        )
    ),
]


def example(
    generator: torch.Generator,
    dtype: torch.dtype,
    m: int,
    k: int,
    n: int,
    of: str = "dense",
    bias: bool = False,
    split_bias: bool = False,
    norm: bool = False,
    act: str = "none",
    residual: bool = False,
    quantized: bool = False,
    edges: bool = False,
    eps_decides: bool = False,
) -> Call:
    """The residual stream is float32, as it is in exact numerics: x after a norm, and what is added to.

    of: the weight's format. quantized: x is in 8 bits. edges: of rows or groups that are quantized.
    """
    fmt = FORMATS[of]
    if not fmt.by_rows or (quantized and of == "e4m3"):
        # AMX multiplies bfloat16; Hopper's tensor cores keep 14 bits of a sum of e4m3, which float32 would show
        dtype = torch.bfloat16
    x = normal(generator, m, 1, k, dtype=torch.float32 if norm or quantized else dtype)
    if eps_decides:  # of the norm
        quiet(x)
    x_scale = None
    if quantized:
        assert isinstance(fmt, Rows)
        x, x_scale = rows.quantized(x, fmt.dtype)
        if edges:  # a row of zeros, and those that were not finite
            x[:3], x_scale[:3, 0] = 0, torch.tensor([0, torch.inf, torch.nan])
    elif edges:  # groups of zeros, of an outlier, of minute values, and one that is not finite
        x[0, 0, :32], x[0, 0, 33], x[-1, 0, :32] = 0, 1000, 1e-5
        x[1, 0, 5] = torch.inf
    weights = 1 + 0.3 * normal(generator, k) if norm else None
    scale: torch.Tensor | None
    if isinstance(fmt, Rows):
        scale = (0.5 + torch.rand(n, generator=generator)) / (74 * k**0.5)
        values = _eight_bits(generator, n, k, fmt.dtype)
    else:
        values, scale = fmt.pack((normal(generator, n, k) / k**0.5).to(dtype))
    added = normal(generator, n, dtype=dtype) if bias else None
    stream = normal(generator, m, 1, n // 2 if act == "gated_silu" else n) if residual else None
    attrs = dict(format=of, act=act, eps=1e-6, split_bias=split_bias, dtype=torch.float32 if residual else dtype)
    return Call((x, values, added, scale, x_scale, weights, stream), attrs)


def _eight_bits(generator: torch.Generator, n: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    """Values of root mean square 74, the largest and the smallest that `dtype` has among them."""
    if dtype is torch.int8:
        return torch.randint(-128, 128, (n, k), generator=generator, dtype=dtype)
    values = (74 * normal(generator, n, k)).clamp(-448, 448)
    values[0, 0], values[-1, -1], values[-1, 0] = 448, -448, 2**-9
    return values.to(dtype)
