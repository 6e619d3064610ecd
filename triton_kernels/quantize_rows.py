"""Quantizes rows to 8 bits, in Triton: a kernel, and a function with which other kernels end."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import Variant, options, rows_of


@triton.jit
def quantized(y, DTYPE: tl.constexpr):
    """A row in DTYPE, y / scale rounded to even, and scale = max |y| / 127 or 448: see engine/formats/rows.py."""
    largest_q: tl.constexpr = 127.0 if tl.int8 == DTYPE else 448.0
    sizes = y.to(tl.int32, bitcast=True) & 0x7FFFFFFF  # |y| as integers, of which NaN is the largest
    largest = tl.max(sizes).to(tl.float32, bitcast=True)
    usable = (largest >= 1e-30) & (largest < float("inf"))
    steps = tl.where(usable, y * tl.div_rn(largest_q, largest), 0.0)
    if tl.int8 == DTYPE:
        bits = (steps + 12582912.0).to(tl.int32, bitcast=True)  # 1.5 * 2^23: rounds to an integer in the low bits
        q = bits.to(tl.int8)
    else:
        # This rounds, so that the conversion is exact: Triton's interpreter does not round to even. 1.5 * 2^20 times
        # the power of two of `steps`, or the smallest normal one, 2^-6, leaves three bits of fraction.
        power = tl.maximum((steps.to(tl.int32, bitcast=True) >> 23) & 0xFF, 127 - 6)
        magic = (((power + 20) << 23) | 0x400000).to(tl.float32, bitcast=True)
        q = ((steps + magic) - magic).to(DTYPE)
    return q, tl.div_rn(largest, largest_q)


@triton.jit
def quantize_rows_kernel(
    x_ptr,  # [rows, CHANNELS], rows x_stride apart
    q_ptr,  # [rows, CHANNELS] int8 or float8e4nv
    scale_ptr,  # [rows] float32
    x_stride,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per row, which it holds in registers."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    inside = c < CHANNELS
    x = tl.load(x_ptr + row * x_stride + c, mask=inside, other=0.0).to(tl.float32)
    q, scale = quantized(x, q_ptr.dtype.element_ty)
    tl.store(scale_ptr + row, scale)
    tl.store(q_ptr + row * CHANNELS + c, q, mask=inside)


def launch(x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> None:
    """x = q * scale, q [*, C] in int8 or float8_e4m3fn, contiguous, and scale [*] float32.

    x [*, C] in any float type, on one CUDA device (or on a CPU in Triton's interpreter). Arguments are checked by the
    op's schema.
    """
    x, channels = rows_of(x), q.shape[-1]
    block = triton.next_power_of_2(channels)
    quantize_rows_kernel[(len(x),)](x, q, scale, x.stride(0), CHANNELS=channels, BLOCK=block, **options(block))


def eight_bits(capability: int) -> tuple[str, ...]:
    """Triton's types of 8-bit rows on GPUs of that compute capability."""
    return ("i8",) if capability < 89 else ("i8", "fp8e4nv")


def variants(capability: int) -> list[Variant]:
    return [
        Variant(
            f"{x}-{q}",
            quantize_rows_kernel,
            {"x_ptr": f"*{x}", "q_ptr": f"*{q}", "scale_ptr": "*fp32"},
            {"CHANNELS": 2048, "BLOCK": 2048},
            options(2048),
            divisible=frozenset({"x_stride"}),
        )
        for x in ("bf16", "fp32")
        for q in eight_bits(capability)
    ]
