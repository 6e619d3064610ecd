"""Unpatchify, classifier-free guidance, one evaluation of a flow solver, and the advance of the rows, in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import Variant

BLOCK = 2048
# Without fused multiply-add, this gives the same bits as the CPU and CUDA kernels, except in rows that are rescaled.
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}


@triton.jit
def flow_update_kernel(
    v_ptr,  # [rows + unconditional, height, width, CHANNELS * PATCH * PATCH]
    z_ptr,  # [rows, CHANNELS, height * PATCH, width * PATCH] float32, in place
    history_ptr,  # like z
    kept_ptr,  # [rows, height, width, CHANNELS * PATCH * PATCH], of v's type
    schedule_ptr,  # [rows, evaluations, 9] float32: FlowEvaluation of csrc/cpu/flow_update.h
    step_ptr,  # [rows] int32, advanced
    steps_ptr,  # [rows] int32
    rows,
    unconditional,
    evaluations,
    height,
    width,
    CHANNELS: tl.constexpr,
    PATCH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per image row, so that one barrier orders every read of its step before the advance."""
    row = tl.program_id(0).to(tl.int64)
    step = tl.load(step_ptr + row)
    if step < tl.load(steps_ptr + row):
        now = schedule_ptr + (row * evaluations + tl.minimum(step, evaluations - 1)) * 9
        z_z, z_w, z_h = tl.load(now), tl.load(now + 1), tl.load(now + 2)
        h_z, h_w = tl.load(now + 3), tl.load(now + 4)
        guidance, rescale = tl.load(now + 5), tl.load(now + 6)
        reuse, keep = tl.load(now + 7) != 0.0, tl.load(now + 8) != 0.0
        remembers = (z_h != 0.0) | (h_z != 0.0) | (h_w != 0.0)
        guided = (guidance != 1.0) & (reuse | (row < unconditional))
        keeps = guided & keep & (not reuse)

        line = width * PATCH
        plane = height * PATCH * line
        size = CHANNELS * plane
        cond = v_ptr + row * size
        kept = kept_ptr + row * size
        uncond = v_ptr + (rows + row) * size
        if reuse:
            uncond = kept

        scale = 1.0
        if guided & (rescale != 0.0):
            total, squares = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
            cond_total, cond_squares = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
            for start in range(0, size, BLOCK):
                at = start + tl.arange(0, BLOCK)
                c = tl.load(cond + at, mask=at < size, other=0.0).to(tl.float32)
                u = tl.load(uncond + at, mask=at < size, other=0.0).to(tl.float32)
                w = guidance * c - (guidance - 1.0) * u
                cond_total += c
                cond_squares += c * c
                total += w
                squares += w * w
            mean, cond_mean = tl.sum(total) / size, tl.sum(cond_total) / size
            variance = tl.sum(squares) / size - mean * mean
            cond_variance = tl.sum(cond_squares) / size - cond_mean * cond_mean
            scale = 1.0 + rescale * (tl.sqrt(cond_variance / variance) - 1.0)

        for start in range(0, size, BLOCK):
            i = start + tl.arange(0, BLOCK)
            inside = i < size
            channel = i // plane
            y = i % plane // line
            x = i % line
            token = y // PATCH * width + x // PATCH
            value = channel * (PATCH * PATCH) + y % PATCH * PATCH + x % PATCH
            at = token * (CHANNELS * PATCH * PATCH) + value
            w = tl.load(cond + at, mask=inside, other=0.0).to(tl.float32)
            if guided:
                u = tl.load(uncond + at, mask=inside, other=0.0)
                w = (guidance * w - (guidance - 1.0) * u.to(tl.float32)) * scale
                if keeps:
                    tl.store(kept + at, u, mask=inside)
            before = tl.load(z_ptr + row * size + i, mask=inside, other=0.0)
            after = z_z * before + z_w * w
            if remembers:
                history = history_ptr + row * size + i
                after += z_h * tl.load(history, mask=inside, other=0.0)
                tl.store(history, h_z * before + h_w * w, mask=inside)
            tl.store(z_ptr + row * size + i, after, mask=inside)
        # Warps run apart: without the barrier, one could read the step after another has advanced it.
        tl.debug_barrier()
        tl.store(step_ptr + row, step + 1)


def launch(
    v: torch.Tensor,
    z: torch.Tensor,
    history: torch.Tensor,
    kept: torch.Tensor,
    schedule: torch.Tensor,
    step: torch.Tensor,
    steps: torch.Tensor,
) -> None:
    """The op `flow_update`, in place.

    v [B, H, W, C*p*p] and kept [R, H, W, C*p*p] in any float type, z and history [R, C, H*p, W*p] and schedule
    [R, K, 9] float32, step and steps [R] int32, all contiguous on one CUDA device (or on a CPU in Triton's
    interpreter). Arguments are checked by the op's schema.
    """
    branches, height, width, _ = v.shape
    rows, channels = z.shape[:2]
    flow_update_kernel[(rows,)](
        v,
        z,
        history,
        kept,
        schedule,
        step,
        steps,
        rows,
        branches - rows,
        schedule.shape[1],
        height,
        width,
        CHANNELS=channels,
        PATCH=z.shape[2] // height,
        BLOCK=BLOCK,
        **OPTIONS,
    )


def variants(capability: int) -> list[Variant]:
    pointers = {"z_ptr": "*fp32", "history_ptr": "*fp32", "schedule_ptr": "*fp32", "step_ptr": "*i32"}
    pointers["steps_ptr"] = "*i32"
    constants = {"CHANNELS": 4, "PATCH": 2, "BLOCK": BLOCK}
    return [
        Variant(v, flow_update_kernel, {"v_ptr": f"*{v}", "kept_ptr": f"*{v}"} | pointers, constants, OPTIONS)
        for v in ("bf16", "fp32")
    ]
