"""RMSNorm, alone or after a residual add, optionally with 8-bit outputs, in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import Variant, options, rows_of
from .quantize_rows import eight_bits, quantized


@triton.jit
def rms_norm_kernel(
    x_ptr,  # [rows, CHANNELS], rows x_stride apart
    delta_ptr,  # [rows, CHANNELS], rows delta_stride apart, or None
    weight_ptr,  # [CHANNELS] float32
    total_ptr,  # [rows, CHANNELS] in x's dtype, or None
    y_ptr,  # [rows, CHANNELS], rows y_stride apart
    scale_ptr,  # [rows] float32 where y is in 8 bits, else None
    x_stride,
    delta_stride,
    y_stride,
    eps,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per row, held in registers."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    inside = c < CHANNELS
    weight = tl.load(weight_ptr + c, mask=inside, other=0.0)
    x = tl.load(x_ptr + row * x_stride + c, mask=inside, other=0.0)
    if delta_ptr is not None:
        delta = tl.load(delta_ptr + row * delta_stride + c, mask=inside, other=0.0)
        # The norm uses the total as it is stored.
        x = (x.to(tl.float32) + delta.to(tl.float32)).to(x_ptr.dtype.element_ty)
        tl.store(total_ptr + row * CHANNELS + c, x, mask=inside)
    x = x.to(tl.float32)
    y = x * tl.div_rn(1.0, tl.sqrt_rn(tl.sum(x * x) / CHANNELS + eps)) * weight
    if scale_ptr is not None:
        y, scale = quantized(y, y_ptr.dtype.element_ty)
        tl.store(scale_ptr + row, scale)
    tl.store(y_ptr + row * y_stride + c, y.to(y_ptr.dtype.element_ty), mask=inside)


def launch(
    x: torch.Tensor,
    delta: torch.Tensor | None,
    weight: torch.Tensor,
    total: torch.Tensor | None,
    y: torch.Tensor,
    scale: torch.Tensor | None,
    eps: float,
) -> None:
    """y = x / sqrt(mean(x^2) + eps) * weight over the last axis; with a delta, of total = x + delta.

    x and delta [*, C], y [*, C] (rows equally far apart) in any float type, total contiguous in x's dtype, weight [C]
    float32; with a scale [*] float32, y in int8 or float8_e4m3fn. On one CUDA device (or on a CPU in Triton's
    interpreter). Arguments are checked by the op's schema.
    """
    x, delta, y = rows_of(x), None if delta is None else rows_of(delta), y.view(-1, y.shape[-1])
    rows, channels = x.shape
    block = triton.next_power_of_2(channels)
    rms_norm_kernel[(rows,)](
        x,
        delta,
        weight,
        total,
        y,
        scale,
        x.stride(0),
        0 if delta is None else delta.stride(0),
        y.stride(0),
        eps,
        CHANNELS=channels,
        BLOCK=block,
        **options(block),
    )


def variants(capability: int) -> list[Variant]:
    def variant(channels: int, x: str, delta: str | None, y: str) -> Variant:
        block = triton.next_power_of_2(channels)
        pointers = {"x_ptr": f"*{x}", "weight_ptr": "*fp32", "y_ptr": f"*{y}"}
        constants: dict[str, int | None] = {"CHANNELS": channels, "BLOCK": block}
        if y in eight_bits(capability):
            pointers |= {"scale_ptr": "*fp32"}
        else:
            constants |= {"scale_ptr": None}
        if delta is None:
            constants |= {"delta_ptr": None, "total_ptr": None}
        else:
            pointers |= {"delta_ptr": f"*{delta}", "total_ptr": f"*{x}"}
        return Variant(
            f"{channels}-{x}{'' if delta is None else f'+{delta}'}-{y}",
            rms_norm_kernel,
            pointers,
            constants,
            options(block),
            frozenset({"eps"}),
            frozenset({"x_stride", "delta_stride", "y_stride"}),
        )

    return [
        *(
            variant(2048, "fp32", delta, y)
            for delta in (None, "bf16")
            for y in ("bf16", "fp32", *eight_bits(capability))
        ),
        variant(2048, "fp32", "fp32", "fp32"),
        variant(1536, "fp32", None, "fp32"),
        *(variant(768, x, None, "fp32") for x in ("bf16", "fp32")),
    ]
