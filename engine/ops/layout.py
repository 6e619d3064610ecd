"""Changes of layout and dtype at a program's inputs and outputs: NCHW latents and pixels, NHWC activations."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .base import Call, Given, define, normal
from .flow_update import unpatchify


def reference_to_nhwc(z: torch.Tensor, divisor: float, dtype: torch.dtype) -> torch.Tensor:
    return z.float().permute(0, 2, 3, 1) / divisor


def example_to_nhwc(generator: torch.Generator, dtype: torch.dtype, size: int, c: int, divisor: float) -> Call:
    return Call((normal(generator, 2, c, size, size + 1),), dict(divisor=divisor, dtype=dtype))


TO_NHWC = define(
    "to_nhwc",
    "z: Z[B, C, H, W] -> x: O[B, H, W, C]",
    reference_to_nhwc,
    [dict(size=4, c=4, divisor=1.0), dict(size=3, c=5, divisor=0.13025)],
    example_to_nhwc,
)
"""x = z / divisor, channels last."""


@TO_NHWC.implementation("torch")
def run_to_nhwc(call: Given) -> None:
    z = call.z if call.divisor == 1.0 else call.z / call.divisor
    call.x.copy_(z.permute(0, 2, 3, 1))


def reference_to_nchw(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.float().permute(0, 3, 1, 2)


def example_to_nchw(generator: torch.Generator, dtype: torch.dtype, size: int, c: int) -> Call:
    return Call((normal(generator, 2, size, size + 1, c, dtype=dtype),), dict(dtype=torch.float32))


TO_NCHW = define(
    "to_nchw",
    "x: T[B, H, W, C] -> y: O[B, C, H, W]",
    reference_to_nchw,
    [dict(size=4, c=3)],
    example_to_nchw,
    rounding_steps=0.0,
)


@TO_NCHW.implementation("torch")
def run_to_nchw(call: Given) -> None:
    call.y.copy_(call.x.permute(0, 3, 1, 2))


def reference_patchify(x: torch.Tensor, patch: int, dtype: torch.dtype) -> torch.Tensor:
    return F.unfold(x.float(), patch, stride=patch).transpose(1, 2)


def example_patchify(generator: torch.Generator, dtype: torch.dtype, size: int, patch: int) -> Call:
    attrs = dict(patch=patch, N=(size // patch) ** 2, E=3 * patch**2, dtype=dtype)
    return Call((normal(generator, 2, 3, size, size),), attrs)


PATCHIFY = define(
    "patchify",
    "x: X[B, C, H, W] -> y: O[B, N, E]",
    lambda x, patch, dtype, N, E: reference_patchify(x, patch, dtype),
    [dict(size=32, patch=16), dict(size=15, patch=5)],
    example_patchify,
    rounding_steps=1.0,
)
"""Non-overlapping patches in raster order, each flattened as (channel, row, column): a patch convolution's im2col."""


@PATCHIFY.implementation("torch")
def run_patchify(call: Given) -> None:
    (b, c, h, w), patch = call.x.shape, call.patch
    patches = call.x.view(b, c, h // patch, patch, w // patch, patch).permute(0, 2, 4, 1, 3, 5)
    call.y.view(b, h // patch, w // patch, c, patch, patch).copy_(patches)


def reference_cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.float()


def example_cast(generator: torch.Generator, dtype: torch.dtype, n: int) -> Call:
    return Call((normal(generator, 2, n),), dict(dtype=dtype))


CAST = define("cast", "x: X[*, C] -> y: O[*, C]", reference_cast, [dict(n=33)], example_cast, rounding_steps=1.0)


@CAST.implementation("torch")
def run_cast(call: Given) -> None:
    call.y.copy_(call.x)


def reference_add(x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.float() + y.float()


def example_add(generator: torch.Generator, dtype: torch.dtype, rows: int, n: int, c: int) -> Call:
    y = normal(generator, n, c).expand(rows, n, c)
    return Call((normal(generator, rows, n, c, dtype=dtype), y), dict(dtype=torch.float32))


ADD = define(
    "add",
    "x: X[*, C], y: Y[*, C] -> o: O[*, C]",
    reference_add,
    [dict(rows=2, n=9, c=8), dict(rows=1, n=1, c=3)],
    example_add,
)
"""o = x + y. A y that all rows share (position embeddings) is a view with stride 0."""


@ADD.implementation("torch")
def run_add(call: Given) -> None:
    torch.add(call.x, call.y, out=call.o)


def reference_shuffle(x: torch.Tensor, H2: int, W2: int, C: int) -> torch.Tensor:
    return unpatchify(x.float(), C).permute(0, 2, 3, 1)


def example_shuffle(generator: torch.Generator, dtype: torch.dtype, h: int, w: int, c: int) -> Call:
    return Call((normal(generator, 2, h, w, 4 * c, dtype=dtype),), dict(H2=2 * h, W2=2 * w, C=c))


PIXEL_SHUFFLE = define(
    "pixel_shuffle",
    "x: T[B, H, W, E] -> y: T[B, H2, W2, C]",
    reference_shuffle,
    [dict(h=3, w=2, c=5)],
    example_shuffle,
    rounding_steps=0.0,
)


@PIXEL_SHUFFLE.implementation("torch")
def run_shuffle(call: Given) -> None:
    call.y.copy_(unpatchify(call.x, call.C).permute(0, 2, 3, 1))
