"""Residual add, then scale and shift from the row's entry in its table, in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import Variant, options

POSITIONS = 8
BLOCK = 256
OPTIONS = options(POSITIONS * BLOCK)


@triton.jit
def residual_modulate_kernel(
    y_ptr,  # [branches, positions, channels]
    x_ptr,  # [branches, positions, channels]
    table_ptr,  # [images, steps, 2 * channels] float32, by its strides: scale, shift
    step_ptr,  # [images] int32
    o_ptr,  # [branches, positions, channels]
    images,
    positions,
    channels,
    steps,
    image_stride,
    step_stride,
    POSITIONS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per branch, block of positions and block of channels."""
    branch = tl.program_id(2)
    image = branch
    if branch >= images:
        image = branch - images  # the unconditional branch of an image
    step = tl.minimum(tl.load(step_ptr + image), steps - 1)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    entry = table_ptr + image.to(tl.int64) * image_stride + step.to(tl.int64) * step_stride
    scale = tl.load(entry + c, mask=c < channels, other=0.0)
    shift = tl.load(entry + channels + c, mask=c < channels, other=0.0)
    p = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)[:, None]
    inside = (p < positions) & (c < channels)
    first, at = branch.to(tl.int64) * positions * channels, p * channels + c
    x = tl.load(x_ptr + first + at, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + first + at, mask=inside, other=0.0).to(tl.float32)
    o = (x + y) * (1.0 + scale) + shift
    tl.store(o_ptr + first + at, o.to(o_ptr.dtype.element_ty), mask=inside)


def launch(y: torch.Tensor, x: torch.Tensor, table: torch.Tensor, step: torch.Tensor, o: torch.Tensor) -> None:
    """o = (x + y) (1 + scale) + shift, by the image's table at its step, or the last entry past the table's end.

    y, x and o [B, P, C] in any float types, table [R, T, 2 C] float32 (any strides, scale and shift side by side),
    step [R] int32, B rows being R images and then unconditional branches of the first of them, on one CUDA device (or
    on a CPU in Triton's interpreter). Arguments are checked by the op's schema.
    """
    branches, positions, channels = o.shape
    table = table if table.stride(2) == 1 else table.contiguous()
    grid = (triton.cdiv(positions, POSITIONS), triton.cdiv(channels, BLOCK), branches)
    residual_modulate_kernel[grid](
        y.contiguous(),
        x.contiguous(),
        table,
        step.contiguous(),
        o,
        len(step),
        positions,
        channels,
        table.shape[1],
        *table.stride()[:2],
        POSITIONS=POSITIONS,
        BLOCK=BLOCK,
        **OPTIONS,
    )


def variants(capability: int) -> list[Variant]:
    """The forms for one image and for several."""
    constants = {"POSITIONS": POSITIONS, "BLOCK": BLOCK}
    return [
        Variant(
            f"{name}-{dtype}",
            residual_modulate_kernel,
            {"y_ptr": f"*{dtype}", "x_ptr": "*fp32", "table_ptr": "*fp32", "step_ptr": "*i32", "o_ptr": "*fp32"},
            constants | images,
            OPTIONS,
            divisible=frozenset({"positions", "channels", "image_stride", "step_stride"}),
        )
        for dtype in ("bf16", "fp32")
        for name, images in (("image", {"images": 1}), ("images", {}))
    ]
