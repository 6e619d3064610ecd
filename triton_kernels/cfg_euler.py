"""Unpatchify + classifier-free guidance + Euler step + advance of the rows, in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import Variant

BLOCK = 2048
# No fusion: the same bits as the CPU and CUDA kernels.
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}


@triton.jit
def cfg_euler_kernel(
    v_ptr,  # [rows + unconditional, height, width, CHANNELS * PATCH * PATCH]
    z_ptr,  # [rows, CHANNELS, height * PATCH, width * PATCH] float32, in place
    guidance_ptr,  # [rows] float32
    step_ptr,  # [rows] int32, advanced
    steps_ptr,  # [rows] int32
    rows,
    unconditional,
    height,
    width,
    CHANNELS: tl.constexpr,
    PATCH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per image row, so that one barrier orders every read of its step before the advance."""
    row = tl.program_id(0).to(tl.int64)
    step = tl.load(step_ptr + row)
    steps = tl.load(steps_ptr + row)
    if step < steps:
        line = width * PATCH
        plane = height * PATCH * line
        size = CHANNELS * plane
        guidance = tl.load(guidance_ptr + row)
        scale = tl.div_rn(1.0, steps.to(tl.float32))
        cond = v_ptr + row * size
        uncond = v_ptr + (rows + row) * size
        z = z_ptr + row * size
        for start in range(0, size, BLOCK):
            i = start + tl.arange(0, BLOCK)
            inside = i < size
            channel = i // plane
            y = i % plane // line
            x = i % line
            token = y // PATCH * width + x // PATCH
            value = channel * (PATCH * PATCH) + y % PATCH * PATCH + x % PATCH
            at = token * (CHANNELS * PATCH * PATCH) + value
            velocity = tl.load(cond + at, mask=inside, other=0.0).to(tl.float32)
            if row < unconditional:
                against = tl.load(uncond + at, mask=inside, other=0.0).to(tl.float32)
                velocity = guidance * velocity - (guidance - 1.0) * against
            moved = tl.load(z + i, mask=inside, other=0.0) + velocity * scale
            tl.store(z + i, moved, mask=inside)
        # Warps drift: without the barrier one could read the step after another has advanced it.
        tl.debug_barrier()
        tl.store(step_ptr + row, step + 1)


def launch(v: torch.Tensor, z: torch.Tensor, guidance: torch.Tensor, step: torch.Tensor, steps: torch.Tensor) -> None:
    """z[r] += (g v[r] - (g - 1) v[R + r]) / steps[r], then step[r] += 1, where step[r] < steps[r]; in place.

    v [B, H, W, C*p*p] in any float type, z [R, C, H*p, W*p] and guidance [R] float32, step and steps [R] int32, all
    contiguous on one CUDA device (or on a CPU in Triton's interpreter). Arguments are checked by the op's schema.
    """
    branches, height, width, _ = v.shape
    rows, channels = z.shape[:2]
    cfg_euler_kernel[(rows,)](
        v,
        z,
        guidance,
        step,
        steps,
        rows,
        branches - rows,
        height,
        width,
        CHANNELS=channels,
        PATCH=z.shape[2] // height,
        BLOCK=BLOCK,
        **OPTIONS,
    )


def variants(capability: int) -> list[Variant]:
    pointers = {"z_ptr": "*fp32", "guidance_ptr": "*fp32", "step_ptr": "*i32", "steps_ptr": "*i32"}
    constants = {"CHANNELS": 4, "PATCH": 2, "BLOCK": BLOCK}
    return [Variant(v, cfg_euler_kernel, {"v_ptr": f"*{v}"} | pointers, constants, OPTIONS) for v in ("bf16", "fp32")]
