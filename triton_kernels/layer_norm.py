"""LayerNorm, alone or after a residual add, in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import Variant, options, rows_of


@triton.jit
def layer_norm_kernel(
    x_ptr,  # [rows, CHANNELS], rows x_stride apart
    delta_ptr,  # [rows, CHANNELS], rows delta_stride apart, or None
    weight_ptr,  # [CHANNELS] float32
    bias_ptr,  # [CHANNELS] float32
    total_ptr,  # [rows, CHANNELS] in x's dtype, or None
    y_ptr,  # [rows, CHANNELS]
    x_stride,
    delta_stride,
    eps,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per row, held in registers."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    inside = c < CHANNELS
    x = tl.load(x_ptr + row * x_stride + c, mask=inside, other=0.0)
    if delta_ptr is not None:
        delta = tl.load(delta_ptr + row * delta_stride + c, mask=inside, other=0.0)
        # The norm uses the total as it is stored.
        x = (x.to(tl.float32) + delta.to(tl.float32)).to(x_ptr.dtype.element_ty)
        tl.store(total_ptr + row * CHANNELS + c, x, mask=inside)
    x = x.to(tl.float32)
    centered = tl.where(inside, x - tl.sum(x) / CHANNELS, 0.0)
    scale = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(centered * centered) / CHANNELS + eps))
    weight = tl.load(weight_ptr + c, mask=inside, other=0.0)
    y = centered * scale * weight + tl.load(bias_ptr + c, mask=inside, other=0.0)
    tl.store(y_ptr + row * CHANNELS + c, y.to(y_ptr.dtype.element_ty), mask=inside)


def launch(
    x: torch.Tensor,
    delta: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    total: torch.Tensor | None,
    y: torch.Tensor,
    eps: float,
) -> None:
    """y = (x - mean) / sqrt(var + eps) * weight + bias over the last axis; with a delta, of total = x + delta.

    x, delta and y [*, C] (y contiguous) in any float type, total contiguous in x's dtype, weight and bias [C] float32,
    on one CUDA device (or on a CPU in Triton's interpreter). Arguments are checked by the op's schema.
    """
    x, delta = rows_of(x), None if delta is None else rows_of(delta)
    rows, channels = x.shape
    block = triton.next_power_of_2(channels)
    layer_norm_kernel[(rows,)](
        x,
        delta,
        weight,
        bias,
        total,
        y,
        x.stride(0),
        0 if delta is None else delta.stride(0),
        eps,
        CHANNELS=channels,
        BLOCK=block,
        **options(block),
    )


def variants(capability: int) -> list[Variant]:
    """The form for SigLIP-L's 1024 channels."""

    def variant(dtype: str, add: bool) -> Variant:
        pointers = {"x_ptr": "*fp32", "weight_ptr": "*fp32", "bias_ptr": "*fp32", "y_ptr": f"*{dtype}"}
        constants: dict[str, int | None] = {"CHANNELS": 1024, "BLOCK": 1024}
        if add:
            pointers |= {"delta_ptr": f"*{dtype}", "total_ptr": "*fp32"}
        else:
            constants |= {"delta_ptr": None, "total_ptr": None}
        return Variant(
            f"{'add-' if add else ''}{dtype}",
            layer_norm_kernel,
            pointers,
            constants,
            options(1024),
            frozenset({"eps"}),
            frozenset({"x_stride", "delta_stride"}),
        )

    return [variant(dtype, add) for dtype in ("bf16", "fp32") for add in (False, True)]
