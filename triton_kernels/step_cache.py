"""Stores what layers add in one of two slots, or recalls it from both, in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import Variant, options

BLOCK = 2048
OPTIONS = options(BLOCK)


@triton.jit
def step_cache_kernel(
    x_ptr,  # [images, elements]
    total_ptr,  # [branches, elements], or None
    slot_0_ptr,  # [branches, elements]
    slot_1_ptr,  # [branches, elements]
    lines_ptr,  # [images, evaluations, 4] float32: recall, slot, w_0, w_1
    step_ptr,  # [images] int32
    y_ptr,  # [branches, elements]
    images,
    elements,
    evaluations,
    BLOCK: tl.constexpr,
):
    """One program per branch and block of elements."""
    branch = tl.program_id(1)
    image = branch
    if branch >= images:
        image = branch - images  # the unconditional branch of an image
    step = tl.minimum(tl.load(step_ptr + image), evaluations - 1)
    line = lines_ptr + (image.to(tl.int64) * evaluations + step) * 4
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < elements
    first = branch.to(tl.int64) * elements
    x = tl.load(x_ptr + image.to(tl.int64) * elements + at, mask=inside, other=0.0).to(tl.float32)
    recalls = total_ptr is None
    if total_ptr is not None:
        recalls = tl.load(line) != 0
    if recalls:
        y = x
        w_0 = tl.load(line + 2)
        if w_0 != 0:
            y += w_0 * tl.load(slot_0_ptr + first + at, mask=inside, other=0.0).to(tl.float32)
        w_1 = tl.load(line + 3)
        if w_1 != 0:
            y += w_1 * tl.load(slot_1_ptr + first + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(y_ptr + first + at, y.to(y_ptr.dtype.element_ty), mask=inside)
    elif total_ptr is not None:
        total = tl.load(total_ptr + first + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(y_ptr + first + at, total.to(y_ptr.dtype.element_ty), mask=inside)
        added = (total - x).to(slot_0_ptr.dtype.element_ty)
        slot = tl.load(line + 1)
        if slot == 0:
            tl.store(slot_0_ptr + first + at, added, mask=inside)
        if slot == 1:
            tl.store(slot_1_ptr + first + at, added, mask=inside)


def launch(
    x: torch.Tensor,
    total: torch.Tensor | None,
    slot_0: torch.Tensor,
    slot_1: torch.Tensor,
    lines: torch.Tensor,
    step: torch.Tensor,
    y: torch.Tensor,
) -> None:
    """y = total, slot_s = total - x; in rows that recall (without total, all rows), y = x + w_0 slot_0 + w_1 slot_1.

    x [R, N, C], total and y [B, N, C], slots [B, N, C] in any float types, lines [R, K, 4] float32, step [R] int32, B
    rows being R images and then unconditional branches of the first of them, all contiguous, on one CUDA device (or on
    a CPU in Triton's interpreter). Arguments are checked by the op's schema.
    """
    branches, positions, channels = y.shape
    elements = positions * channels
    grid = (triton.cdiv(elements, BLOCK), branches)
    total = None if total is None else total.contiguous()
    numbers = (len(x), elements, lines.shape[1])
    step_cache_kernel[grid](x.contiguous(), total, slot_0, slot_1, lines, step, y, *numbers, BLOCK=BLOCK, **OPTIONS)


def variants(capability: int) -> list[Variant]:
    def variant(name: str, slot: str, **constants: int | None) -> Variant:
        pointers = {"x_ptr": "*fp32", "slot_0_ptr": f"*{slot}", "slot_1_ptr": f"*{slot}", "lines_ptr": "*fp32"}
        pointers |= {"step_ptr": "*i32", "y_ptr": "*fp32"}
        if "total_ptr" not in constants:
            pointers |= {"total_ptr": "*fp32"}
        divisible = frozenset({"elements"})
        return Variant(
            f"{name}-{slot}", step_cache_kernel, pointers, {"BLOCK": BLOCK, **constants}, OPTIONS, divisible=divisible
        )

    return [
        variant(name, slot, **constants)
        for slot in ("bf16", "fp32")
        for name, constants in (("keep", {}), ("recall", {"total_ptr": None}), ("keep-image", {"images": 1}))
    ]
