"""z += (g v_cond - (g - 1) v_uncond) / steps; step += 1: unpatchify, guidance and one Euler step, in place.

Rows b < R of v are conditional; row R + r is the unconditional branch of image r, for the first B - R images; the
others take no guidance. A row whose step has reached its number of steps is left as it is. Arithmetic is in z's dtype:
float32, or bfloat16 rounded after every operation as the official bfloat16 loop does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ... import triton_kernels
from ..errors import SchemaError
from ..ir import Size, TensorSpec, static
from ..runtime import native
from .base import Bound, Call, Op, Schema, normal, register
from .shapes import branches_of_images, elements

MAX_PATCH_VALUES = 4096
"""kMaxPatchValues of csrc/params.h."""


def unpatchify(v: torch.Tensor, channels: int) -> torch.Tensor:
    """(B, H, W, C p p) -> (B, C, H p, W p), channel order (c, dy, dx) as in PixelShuffle."""
    b, h, w, e = v.shape
    p = round((e // channels) ** 0.5)
    return v.view(b, h, w, channels, p, p).permute(0, 3, 1, 4, 2, 5).reshape(b, channels, h * p, w * p)


def reference(
    v: torch.Tensor, z: torch.Tensor, guidance: torch.Tensor, step: torch.Tensor, steps: torch.Tensor
) -> None:
    v = unpatchify(v.float(), z.shape[1])
    images, guided = len(z), len(v) - len(z)
    for r in range(images):
        if step[r] < steps[r]:
            g = guidance[r]
            velocity = g * v[r] - (g - 1) * v[images + r] if r < guided else v[r]
            z[r] += (velocity / steps[r]).to(z.dtype)
            step[r] += 1


def derive(bound: Bound, attrs: Mapping[str, Any]) -> Mapping[str, Size]:
    v, z = ([bound[s] for s in names] for names in ("BHWE", "RCYX"))
    if all(isinstance(s, int) for s in (*v, *z)):
        _, h, w, e = v
        _, c, y, x = z
        p = y // h if h else 0
        if (h * p, w * p, c * p * p) != (y, x, e):
            raise SchemaError(f"expected v[B, H, W, C p p] for z[R, C, H p, W p], got v {v} and z {z}")
    return branches_of_images(bound, attrs)


def flops(bound: Bound, attrs: Mapping[str, Any]) -> int:
    return 5 * elements(bound, "R", "C", "Y", "X")


def example(
    generator: torch.Generator, dtype: torch.dtype, images: int, guided: int, h: int, w: int, c: int, p: int
) -> Call:
    v = normal(generator, images + guided, h, w, c * p * p, dtype=dtype)
    z = normal(generator, images, c, h * p, w * p)
    guidance = 1 + 4 * torch.rand(images, generator=generator)
    steps = torch.randint(1, 9, (images,), generator=generator, dtype=torch.int32)
    step = torch.randint(0, 10, (images,), generator=generator, dtype=torch.int32)
    step[0] = 0  # at least this row moves
    return Call((v, z, guidance, step, steps))


OP = register(
    Op(
        "cfg_euler",
        Schema.parse("v: T[B, H, W, E], z!: Z[R, C, Y, X], guidance: f32[R], step!: i32[R], steps: i32[R] ->", derive),
        reference,
        flops,
        cases=[
            dict(images=2, guided=2, h=5, w=3, c=4, p=2),
            dict(images=3, guided=1, h=4, w=4, c=3, p=1),
            dict(images=1, guided=0, h=1, w=7, c=4, p=2),
            dict(images=3, guided=2, h=9, w=11, c=4, p=2),
            dict(images=2, guided=1, h=3, w=2, c=2, p=3),
            dict(images=1, guided=1, h=24, w=24, c=4, p=2),
        ],
        example=example,
    )
)


def _needs_f32(specs: Sequence[TensorSpec | None]) -> str | None:
    if len(specs) > 1 and specs[1] is not None and specs[1].dtype is not torch.float32:
        return "keeps the latents in float32; numerics='official' keeps them in bfloat16"
    return None


def _needs_kernel_input(specs: Sequence[TensorSpec | None]) -> str | None:
    if specs and specs[0] is not None and specs[0].dtype not in (torch.float32, torch.bfloat16):
        return f"reads velocities in float32 or bfloat16, not in {specs[0].dtype}"
    if specs and specs[0] is not None and static(specs[0].shape[-1]) > MAX_PATCH_VALUES:
        return f"takes at most {MAX_PATCH_VALUES} values a token, not {specs[0].shape[-1]}"
    return None


def _refuses_native(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    return native.refuses(device) or _needs_f32(specs) or _needs_kernel_input(specs)


def _refuses_cuda(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    return native.refuses_cuda(device) or _needs_f32(specs) or _needs_kernel_input(specs)


def _refuses_triton(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    return triton_kernels.refuses(device) or _needs_f32(specs)


@OP.implementation("native", _refuses_native)
def run_native(
    v: torch.Tensor, z: torch.Tensor, guidance: torch.Tensor, step: torch.Tensor, steps: torch.Tensor
) -> None:
    native.cfg_euler(v, z, guidance, step, steps)


@OP.implementation("cuda", _refuses_cuda)
def run_cuda(v: torch.Tensor, z: torch.Tensor, guidance: torch.Tensor, step: torch.Tensor, steps: torch.Tensor) -> None:
    native.cfg_euler_cuda(v, z, guidance, step, steps)


@OP.implementation("triton", _refuses_triton)
def run_triton(
    v: torch.Tensor, z: torch.Tensor, guidance: torch.Tensor, step: torch.Tensor, steps: torch.Tensor
) -> None:
    from ...triton_kernels.cfg_euler import launch  # imports triton, which may be absent

    launch(v, z, guidance, step, steps)


@OP.implementation("torch")
def run_torch(
    v: torch.Tensor, z: torch.Tensor, guidance: torch.Tensor, step: torch.Tensor, steps: torch.Tensor
) -> None:
    dtype, images = z.dtype, len(z)
    v = unpatchify(v, z.shape[1])
    velocity = v[:images].to(dtype)
    guided = len(v) - images
    if guided:
        g = guidance[:guided, None, None, None]
        mixed = (g * v[:guided]).to(dtype) - ((g - 1) * v[images:]).to(dtype)
        velocity = torch.cat([mixed, velocity[guided:]])
    active = step < steps
    dt = torch.where(active, steps.float().reciprocal(), 0.0).to(dtype)[:, None, None, None]
    # a finished row keeps its latents even if its velocity is no longer finite
    torch.where(active[:, None, None, None], z + dt * velocity, z, out=z)
    step.add_(active)
