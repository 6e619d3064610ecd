"""Gated SiLU in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import Variant, options, rows_of

BLOCK = 1024
OPTIONS = options(2 * BLOCK)


@triton.jit
def silu_mul_kernel(
    x_ptr,  # [rows, 2 * CHANNELS], rows x_stride apart
    y_ptr,  # [rows, CHANNELS]
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
    tl.store(y_ptr + row * CHANNELS + c, y.to(y_ptr.dtype.element_ty), mask=inside)


def launch(x: torch.Tensor, y: torch.Tensor) -> None:
    """y = silu(gate) * up, the halves of x's last axis.

    x [*, 2 C] and y [*, C] (contiguous) in any float type, on one CUDA device (or on a CPU in Triton's interpreter).
    Arguments are checked by the op's schema.
    """
    x, channels = rows_of(x), y.shape[-1]
    grid = (len(x) * triton.cdiv(channels, BLOCK),)
    silu_mul_kernel[grid](x, y, x.stride(0), CHANNELS=channels, BLOCK=BLOCK, **OPTIONS)


def variants(capability: int) -> list[Variant]:
    constants = {"CHANNELS": 5632, "BLOCK": BLOCK}
    return [
        Variant(
            dtype,
            silu_mul_kernel,
            {"x_ptr": f"*{dtype}", "y_ptr": f"*{dtype}"},
            constants,
            OPTIONS,
            divisible=frozenset({"x_stride"}),
        )
        for dtype in ("bf16", "fp32")
    ]
