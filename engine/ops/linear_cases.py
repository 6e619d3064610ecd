"""The cases of `linear`: every format with every neighbor, at odd sizes; and what a case is made into."""

from __future__ import annotations

from typing import Any

import torch

from ..formats import FORMATS, rows
from ..formats.rows import Rows
from .base import Call, normal, quiet

_CASES = {
    "dense": """
        1x64x96 1x33x7+bias 37x200x65+bias 5x40x24+bias+split_bias 6x16x8 2x70x19+bias 3x48x32 4x129x5+bias
        1x2600x5+bias 4x2056x3 2x1031x3 1x64x96+norm 1x33x7+residual 2x72x38+norm+gated_silu 3x200x65+norm
        4x129x66+norm+gated_silu 1x2600x5+residual 1x2048x6+norm+gated_silu 4x1031x3+norm 2x40x24+gated_silu+residual
        6x40x24+norm 1x2080x4+norm 3x64x38+norm+eps_decides 3x40x24+bias+gelu
        5x40x24+prompt 9x33x50+bias+prompt 37x200x65+bias+prompt 70x300x100+prompt 130x16x7+bias+prompt
    """,
    "int8": """
        1x64x96 1x33x7+bias 2x592x19+bias 3x72x32 4x129x5+bias 1x4624x5+bias 4x2128x3 2x1031x3 9x40x24+bias
        1x96x10+norm 2x600x34+norm+gated_silu 4x77x9+residual 3x96x10+norm+eps_decides 1x64x96+quantized
        5x33x7+bias+quantized 17x256x64+edges+quantized 37x200x72+bias+quantized 130x384x136+quantized
        20x2048x16+quantized 5x40x24+prompt 9x33x50+bias+prompt 70x300x100+prompt
    """,
    "e4m3": """
        2x40x24+bias 9x72x32 1x64x96+quantized 5x33x7+bias+quantized 17x256x64+edges+quantized
        130x384x144+bias+quantized 20x2048x16+quantized
    """,
    "tiles": """
        1x64x96+norm 16x32x16+bias 3x96x160+norm+gated_silu 17x160x48+residual 33x64x80+bias+gelu
        70x1056x96+norm+gated_silu 200x4128x48+residual 130x5632x64+bias 3x96x48+norm+eps_decides
    """,
    "int8_tiles": """
        1x128x80+norm 5x192x32+norm+gated_silu 40x640x48+residual 300x8192x32+bias+gelu 3x128x48+norm+eps_decides
    """,
    "int4": """
        1x32x16 1x128x80+norm 1x5632x48+residual 2x96x160+norm+gated_silu 3x160x48+residual 4x2048x32+norm
        4x192x32+norm+gated_silu 3x64x96+gated_silu+residual 2x8192x32 9x64x48+residual 3x96x32+edges
        3x96x32+norm+eps_decides
    """,
}
"""By format: rows x columns x outputs, and what there is besides."""


def _case(of: str, text: str) -> dict[str, Any]:
    sizes, *flags = text.split("+")
    m, k, n = map(int, sizes.split("x"))
    act = next((flag for flag in flags if flag in ("gated_silu", "gelu")), "none")
    return dict(m=m, k=k, n=n, of=of, act=act, **{flag: True for flag in flags if flag != act})


CASES = [_case(of, text) for of, texts in _CASES.items() for text in texts.split()]


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
    prompt: bool = False,
) -> Call:
    """The residual stream is float32, as it is in exact numerics: x after a norm, and what is added to.

    of: the weight's format. quantized: x is in 8 bits. edges: of rows or groups that are quantized.
    prompt: the rows of x are the tokens of one row, not a token each.
    """
    fmt = FORMATS[of]
    if not fmt.by_rows or (quantized and of == "e4m3"):
        # AMX multiplies bfloat16; Hopper's tensor cores keep 14 bits of a sum of e4m3, which float32 would show
        dtype = torch.bfloat16
    shape = (1, m, k) if prompt else (m, 1, k)
    x = normal(generator, *shape, dtype=torch.float32 if norm or quantized else dtype)
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
