"""Gated SiLU, optionally with 8-bit outputs, in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import Variant, options, rows_of
from .quantize_rows import eight_bits, quantized

BLOCK = 1024
OPTIONS = options(2 * BLOCK)


@triton.jit
def silu_mul_kernel(
    x_ptr,  # [rows, 2 * CHANNELS], rows x_stride apart
    y_ptr,  # [rows, CHANNELS]
    scale_ptr,  # [rows] float32 where y is in 8 bits (and a block is all channels), else None
    x_stride,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per row and block of channels."""
    blocks: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // blocks).to(tl.int64)
    c = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = c < CHANNELS
    gate = tl.load(x_ptr + row * x_stride + c, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * x_stride + CHANNELS + c, mask=inside, other=0.0).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    if scale_ptr is not None:
        y, scale = quantized(y, y_ptr.dtype.element_ty)
        tl.store(scale_ptr + row, scale)
    tl.store(y_ptr + row * CHANNELS + c, y.to(y_ptr.dtype.element_ty), mask=inside)


def launch(x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor | None = None) -> None:
    """y = silu(gate) * up, the two halves of x's last axis. With a scale [*] float32, y is int8 or float8_e4m3fn.

    x [*, 2 C] and y [*, C] (contiguous) in any float type, on one CUDA device (or on a CPU in Triton's interpreter).
    Arguments are checked by the op's schema.
    """
    x, channels = rows_of(x), y.shape[-1]
    block = BLOCK if scale is None else triton.next_power_of_2(channels)
    grid = (len(x) * (triton.cdiv(channels, BLOCK) if scale is None else 1),)
    taken = OPTIONS if scale is None else options(block)
    silu_mul_kernel[grid](x, y, scale, x.stride(0), CHANNELS=channels, BLOCK=block, **taken)


def variants(capability: int) -> list[Variant]:
    def variant(x: str, y: str) -> Variant:
        pointers = {"x_ptr": f"*{x}", "y_ptr": f"*{y}"}
        constants: dict[str, int | None] = {"CHANNELS": 5632, "BLOCK": BLOCK, "scale_ptr": None}
        taken = OPTIONS
        if y in eight_bits(capability):
            pointers |= {"scale_ptr": "*fp32"}
            constants = {"CHANNELS": 5632, "BLOCK": 8192}
            taken = options(8192)
        name = x if x == y else f"{x}-{y}"
        return Variant(name, silu_mul_kernel, pointers, constants, taken, divisible=frozenset({"x_stride"}))

    return [variant(x, y) for x in ("bf16", "fp32") for y in (x, *eight_bits(capability))]
