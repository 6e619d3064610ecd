"""GroupNorm with or without SiLU, NHWC, in Triton: two passes over x, with the statistics computed in between."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import Variant, options

POSITIONS = 32
BLOCK = 128
OPTIONS = options(POSITIONS * BLOCK // 2)
MAX_PARTS = 512
"""Most parts of an image, each at least two tiles. A program of the second kernel holds a group's in registers."""
MAX_GROUP = 16384 // MAX_PARTS
"""Most channels of a group, for the same reason."""


@triton.jit
def moments_kernel(
    x_ptr,  # [batch, positions, channels]
    parts_ptr,  # [batch, parts, 2, channels] float32: means, centered sums of squares
    positions,
    channels,
    tiles,
    POSITIONS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per image, part (`tiles` tiles of POSITIONS positions, or the remainder) and block of channels.

    Sums are of the distance to the part's first value: with a large mean and a small variance, plain sums would cancel.
    """
    part = tl.program_id(0)
    b = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    begin = part * tiles * POSITIONS
    end = tl.minimum(begin + tiles * POSITIONS, positions)
    image = x_ptr + b * positions * channels
    pivot = tl.load(image + begin * channels + c, mask=c < channels, other=0.0).to(tl.float32)
    sums = tl.zeros((POSITIONS, BLOCK), tl.float32)
    squares = tl.zeros((POSITIONS, BLOCK), tl.float32)
    for start in range(begin, end, POSITIONS):
        p = start + tl.arange(0, POSITIONS)[:, None]
        inside = (p < end) & (c[None, :] < channels)
        x = tl.load(image + p * channels + c[None, :], mask=inside, other=0.0).to(tl.float32)
        x = tl.where(inside, x - pivot[None, :], 0.0)
        sums += x
        squares += x * x
    total = tl.sum(sums, axis=0)
    mean = total / (end - begin)
    to = parts_ptr + (b * tl.num_programs(0) + part) * 2 * channels + c
    tl.store(to, pivot + mean, mask=c < channels)
    tl.store(to + channels, tl.sum(squares, axis=0) - total * mean, mask=c < channels)


@triton.jit
def combine_kernel(
    parts_ptr,  # [batch, parts, 2, channels] float32
    weight_ptr,  # [channels] float32
    affine_ptr,  # [batch, 2, channels] float32: mean, 1 / deviation * weight
    parts,
    positions,
    part_positions,
    channels,
    eps,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per image and group of WIDTH channels. It merges the moments of PARTS * BLOCK sets into one.

    Chan, Golub and LeVeque: squares = sum_i (squares_i + n_i (mean_i - mean)^2).
    """
    group = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    part = tl.arange(0, PARTS)[:, None]
    lane = tl.arange(0, BLOCK)[None, :]
    inside = (part < parts) & (lane < WIDTH)
    at = parts_ptr + b * parts * 2 * channels + part * 2 * channels + group * WIDTH + lane
    means = tl.load(at, mask=inside, other=0.0)
    squares = tl.load(at + channels, mask=inside, other=0.0)
    counts = tl.where(inside, tl.minimum(positions - part * part_positions, part_positions), 0).to(tl.float32)
    count = positions * 1.0 * WIDTH
    # relative to the first mean, so that a large mean does not cancel
    first = tl.load(parts_ptr + b * parts * 2 * channels + group * WIDTH)
    mean = first + tl.sum(counts * (means - first)) / count
    distance = means - mean
    scale = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(squares + counts * distance * distance) / count + eps))
    c = group * WIDTH + tl.arange(0, BLOCK)
    own = tl.arange(0, BLOCK) < WIDTH
    to = affine_ptr + b * 2 * channels + c
    tl.store(to, tl.zeros((BLOCK,), tl.float32) + mean, mask=own)
    tl.store(to + channels, scale * tl.load(weight_ptr + c, mask=own, other=0.0), mask=own)


@triton.jit
def normalize_kernel(
    x_ptr,  # [batch, positions, channels]
    affine_ptr,  # [batch, 2, channels] float32
    bias_ptr,  # [channels] float32
    y_ptr,  # [batch, positions, channels]
    positions,
    channels,
    SILU: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per image, POSITIONS positions and block of channels."""
    b = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    affine = affine_ptr + b * 2 * channels + c
    mean = tl.load(affine, mask=c < channels, other=0.0)
    scale = tl.load(affine + channels, mask=c < channels, other=0.0)
    bias = tl.load(bias_ptr + c, mask=c < channels, other=0.0)
    p = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)[:, None]
    inside = (p < positions) & (c < channels)
    first, at = b * positions * channels, p * channels + c
    x = tl.load(x_ptr + first + at, mask=inside, other=0.0).to(tl.float32)
    y = (x - mean) * scale + bias
    if SILU:
        y = y / (1.0 + tl.exp(-y))
    tl.store(y_ptr + first + at, y.to(y_ptr.dtype.element_ty), mask=inside)


def launch(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, y: torch.Tensor, *, groups: int, eps: float, silu: bool
) -> None:
    """y = GroupNorm(x), followed by SiLU if `silu`. Every run gives the same bits.

    x and y [B, H, W, C] in one float type, weight and bias [C] float32, groups of at most MAX_GROUP channels, on one
    CUDA device (or on a CPU in Triton's interpreter). Arguments are checked by the op's schema.
    """
    batch, height, width, channels = x.shape
    x, positions = x.contiguous(), height * width
    tiles = max(triton.cdiv(positions, POSITIONS * MAX_PARTS), 2)
    count = triton.cdiv(positions, POSITIONS * tiles)
    parts = torch.empty((batch, count, 2, channels), dtype=torch.float32, device=x.device)
    affine = torch.empty((batch, 2, channels), dtype=torch.float32, device=x.device)
    blocks = triton.cdiv(channels, BLOCK)
    tile = {"POSITIONS": POSITIONS, "BLOCK": BLOCK}
    moments_kernel[(count, blocks, batch)](x, parts, positions, channels, tiles, **tile, **OPTIONS)
    constants = _combine_tile(count, channels // groups)
    combine_kernel[(groups, batch)](
        parts,
        weight,
        affine,
        count,
        positions,
        tiles * POSITIONS,
        channels,
        eps,
        **constants,
        **options(constants["PARTS"] * constants["BLOCK"]),
    )
    normalize_kernel[(triton.cdiv(positions, POSITIONS), blocks, batch)](
        x, affine, bias, y, positions, channels, SILU=silu, **tile, **OPTIONS
    )


def _combine_tile(parts: int, width: int) -> dict[str, int]:
    return {"WIDTH": width, "PARTS": triton.next_power_of_2(parts), "BLOCK": triton.next_power_of_2(width)}


def variants(capability: int) -> list[Variant]:
    tile = {"POSITIONS": POSITIONS, "BLOCK": BLOCK}
    sizes = frozenset({"positions", "channels"})
    listed = []
    for dtype in ("bf16", "fp32"):
        pointers = {"x_ptr": f"*{dtype}", "parts_ptr": "*fp32"}
        listed.append(Variant(f"moments-{dtype}", moments_kernel, pointers, tile, OPTIONS, divisible=sizes))
        for silu in (False, True):
            pointers = {"x_ptr": f"*{dtype}", "affine_ptr": "*fp32", "bias_ptr": "*fp32", "y_ptr": f"*{dtype}"}
            name = f"normalize{'-silu' if silu else ''}-{dtype}"
            listed.append(Variant(name, normalize_kernel, pointers, {"SILU": silu} | tile, OPTIONS, divisible=sizes))
    # parts of 48^2, 96^2, 192^2 and 384^2 positions; 32 groups of 512, 256 and 128 channels
    for parts, width in ((36, 16), (144, 16), (384, 16), (384, 8), (512, 8), (512, 4)):
        constants = _combine_tile(parts, width)
        listed.append(
            Variant(
                f"combine-{constants['PARTS']}x{width}",
                combine_kernel,
                dict.fromkeys(("parts_ptr", "weight_ptr", "affine_ptr"), "*fp32"),
                constants,
                options(constants["PARTS"] * constants["BLOCK"]),
                frozenset({"eps"}),
                sizes | {"part_positions"},
            )
        )
    return list({variant.name: variant for variant in listed}.values())
