"""GELU with the sums of its squares per channel, and the scaling by them (global response normalization), in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import Variant, options

POSITIONS = 32
BLOCK = 64
STATS_OPTIONS = options(POSITIONS * BLOCK)
PARTS = 32
SUM_BLOCK = 32
SUM_OPTIONS = options(PARTS * SUM_BLOCK)
APPLY_POSITIONS = 4


@triton.jit
def gelu_partial_sums_kernel(
    x_ptr,  # [batch, positions, channels]
    y_ptr,  # [batch, positions, channels]
    parts_ptr,  # [batch, parts, channels] float32: a part is POSITIONS positions
    positions,
    channels,
    POSITIONS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per image, part and block of channels."""
    part = tl.program_id(0)
    b = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    p = part * POSITIONS + tl.arange(0, POSITIONS)[:, None]
    inside = (p < positions) & (c[None, :] < channels)
    first, at = b * positions * channels, p * channels + c[None, :]
    x = tl.load(x_ptr + first + at, mask=inside, other=0.0).to(tl.float32)
    y = (0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + first + at, y, mask=inside)
    stored = y.to(tl.float32)  # the sums use y as it is stored
    sums = tl.sum(stored * stored, axis=0)
    tl.store(parts_ptr + (b * tl.num_programs(0) + part) * channels + c, sums, mask=c < channels)


@triton.jit
def sum_parts_kernel(
    parts_ptr,  # [batch, parts, channels] float32
    sumsq_ptr,  # [batch, channels] float32
    parts,
    channels,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per image and block of channels. Parts are always added in the same order, so the bits are too."""
    b = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)[:, None]
        at = parts_ptr + b * parts * channels + part * channels + c[None, :]
        total += tl.sum(tl.load(at, mask=(part < parts) & (c[None, :] < channels), other=0.0), axis=0)
    tl.store(sumsq_ptr + b * channels + c, total, mask=c < channels)


@triton.jit
def grn_apply_kernel(
    y_ptr,  # [batch, positions, CHANNELS]
    sumsq_ptr,  # [batch, CHANNELS] float32
    weight_ptr,  # [CHANNELS] float32
    bias_ptr,  # [CHANNELS] float32
    o_ptr,  # [batch, positions, CHANNELS]
    positions,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """One program per image and POSITIONS positions. Each channel's factor and bias stay in registers."""
    b = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, BLOCK)
    inside = c < CHANNELS
    norm = tl.sqrt_rn(tl.load(sumsq_ptr + b * CHANNELS + c, mask=inside, other=0.0))
    share = tl.div_rn(1.0, tl.sum(norm) / CHANNELS + 1e-6)
    scale = tl.load(weight_ptr + c, mask=inside, other=0.0) * (norm * share) + 1.0
    bias = tl.load(bias_ptr + c, mask=inside, other=0.0)
    first = tl.program_id(0) * POSITIONS
    for p in range(first, tl.minimum(first + POSITIONS, positions)):
        at = (b * positions + p) * CHANNELS + c
        y = tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(o_ptr + at, (bias + scale * y).to(o_ptr.dtype.element_ty), mask=inside)


def launch_stats(x: torch.Tensor, y: torch.Tensor, sumsq: torch.Tensor) -> None:
    """y = gelu(x), sumsq[b, c] = sum_p y[b, p, c]^2, using y as stored. Every run gives the same bits.

    x and y [B, P, C] in one float type, sumsq [B, C] float32, on one CUDA device (or on a CPU in Triton's interpreter).
    Arguments are checked by the op's schema.
    """
    batch, positions, channels = y.shape
    count = triton.cdiv(positions, POSITIONS)
    parts = torch.empty((batch, count, channels), dtype=torch.float32, device=y.device)
    gelu_partial_sums_kernel[(count, triton.cdiv(channels, BLOCK), batch)](
        x.contiguous(), y, parts, positions, channels, POSITIONS=POSITIONS, BLOCK=BLOCK, **STATS_OPTIONS
    )
    sum_parts_kernel[(triton.cdiv(channels, SUM_BLOCK), batch)](
        parts, sumsq, count, channels, PARTS=PARTS, BLOCK=SUM_BLOCK, **SUM_OPTIONS
    )


def launch_apply(
    y: torch.Tensor, sumsq: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, o: torch.Tensor
) -> None:
    """o = bias + (weight n_c + 1) y, n_c = sqrt(sumsq_c) / (mean_c sqrt(sumsq_c) + 1e-6).

    y and o [B, P, C] in one float type, sumsq [B, C], weight and bias [C] float32. As `launch_stats`.
    """
    batch, positions, channels = o.shape
    block = triton.next_power_of_2(channels)
    grid = (triton.cdiv(positions, APPLY_POSITIONS), batch)
    grn_apply_kernel[grid](
        y.contiguous(),
        sumsq.contiguous(),
        weight,
        bias,
        o,
        positions,
        CHANNELS=channels,
        BLOCK=block,
        POSITIONS=APPLY_POSITIONS,
        **options(block),
    )


def variants(capability: int) -> list[Variant]:
    def stats(dtype: str) -> Variant:
        return Variant(
            f"gelu-{dtype}",
            gelu_partial_sums_kernel,
            {"x_ptr": f"*{dtype}", "y_ptr": f"*{dtype}", "parts_ptr": "*fp32"},
            {"POSITIONS": POSITIONS, "BLOCK": BLOCK},
            STATS_OPTIONS,
            divisible=frozenset({"positions", "channels"}),
        )

    def apply(dtype: str, channels: int) -> Variant:
        block = triton.next_power_of_2(channels)
        vectors = dict.fromkeys(("sumsq_ptr", "weight_ptr", "bias_ptr"), "*fp32")
        return Variant(
            f"apply-{channels}-{dtype}",
            grn_apply_kernel,
            {"y_ptr": f"*{dtype}", "o_ptr": f"*{dtype}"} | vectors,
            {"CHANNELS": channels, "BLOCK": block, "POSITIONS": APPLY_POSITIONS},
            options(block),
            divisible=frozenset({"positions"}),
        )

    parts = Variant(
        "sum",
        sum_parts_kernel,
        {"parts_ptr": "*fp32", "sumsq_ptr": "*fp32"},
        {"PARTS": PARTS, "BLOCK": SUM_BLOCK},
        SUM_OPTIONS,
        divisible=frozenset({"channels"}),
    )
    dtypes = ("bf16", "fp32")
    return [*map(stats, dtypes), parts, *(apply(dtype, channels) for channels in (3072, 6144) for dtype in dtypes)]
