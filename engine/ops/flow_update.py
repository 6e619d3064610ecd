"""z = z_z z + z_w w + z_h h, h = h_z z + h_w w, step += 1: one evaluation of a flow's solver, in place.

w is the guided velocity g v_cond - (g - 1) v_uncond of a row, unpatchified; h is the solver's history; the coefficients
come from the row's schedule at its own step. Rows b < R of v are conditional. Row R + r is the unconditional branch of
image r, for the first B - R images; the other images, and rows whose g is 1 at this step, take no guidance. A row whose
step has reached its number of steps is left unchanged. Arithmetic is in z's dtype: float32, or bfloat16 with rounding
after every operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ..errors import SchemaError
from ..specs import Size, static
from .base import Call, Given, define, normal
from .dims import branches_of_rows
from .schema import Bound

MAX_PATCH_VALUES = 4096
"""Limit: kMaxPatchValues of csrc/cpu/flow_update.h."""


class Evaluation(NamedTuple):
    """A row's numbers for one evaluation: the columns of `schedule`, and FlowEvaluation of csrc/cpu/flow_update.h."""

    z_z: float = 1.0
    z_w: float = 0.0
    z_h: float = 0.0
    h_z: float = 0.0
    h_w: float = 0.0
    """If z_h, h_z and h_w are all 0, h is neither read nor written."""
    guidance: float = 1.0
    rescale: float = 0.0
    """The share by which w is rescaled toward the standard deviation of v_cond over the image (Lin et al. 2023)."""
    reuse: float = 0.0
    """Not 0: use the stored v_uncond."""
    keep: float = 0.0
    """Not 0: store v_uncond."""


COLUMNS = len(Evaluation._fields)


def unpatchify(v: torch.Tensor, channels: int) -> torch.Tensor:
    """(B, H, W, C p p) -> (B, C, H p, W p), channel order (c, dy, dx) as in PixelShuffle."""
    b, h, w, e = v.shape
    p = round((e // channels) ** 0.5)
    return v.view(b, h, w, channels, p, p).permute(0, 3, 1, 4, 2, 5).reshape(b, channels, h * p, w * p)


def reference(
    v: torch.Tensor,
    z: torch.Tensor,
    history: torch.Tensor,
    kept: torch.Tensor,
    schedule: torch.Tensor,
    step: torch.Tensor,
    steps: torch.Tensor,
) -> None:
    images, guided = len(z), len(v) - len(z)
    for r in range(images):
        if step[r] >= steps[r]:
            continue
        e = Evaluation(*schedule[r, min(int(step[r]), schedule.shape[1] - 1)].tolist())
        w = v[r].float()
        if e.guidance != 1 and (e.reuse or r < guided):
            if e.keep and not e.reuse:
                kept[r] = v[images + r]
            uncond = kept[r] if e.reuse else v[images + r]
            cond, w = w, e.guidance * w - (e.guidance - 1) * uncond.float()
            if e.rescale:
                w *= 1 + e.rescale * (cond.std() / w.std() - 1)
        w, before, h = unpatchify(w[None], z.shape[1])[0], z[r].float().clone(), history[r].float()
        z[r] = e.z_z * before + e.z_w * w + (e.z_h * h if e.z_h else 0)
        if e.z_h or e.h_z or e.h_w:
            history[r] = e.h_z * before + e.h_w * w
        step[r] += 1


def derive(bound: Bound, attrs: Mapping[str, Any]) -> Mapping[str, Size]:
    v, z = ([bound[s] for s in names] for names in ("BHWE", "RCYX"))
    if all(isinstance(s, int) for s in (*v, *z)):
        _, h, w, e = v
        _, c, y, x = z
        p = y // h if h else 0
        if (h * p, w * p, c * p * p) != (y, x, e):
            raise SchemaError(f"expected v[B, H, W, C p p] for z[R, C, H p, W p], got v {v} and z {z}")
    return branches_of_rows(bound, attrs)


def example(
    generator: torch.Generator, dtype: torch.dtype, images: int, guided: int, h: int, w: int, c: int, p: int
) -> Call:
    """Rows in turns: Euler's; with history, storing v_uncond; the same, reusing it and rescaled; without guidance."""
    v = normal(generator, images + guided, h, w, c * p * p, dtype=dtype)
    z, history = (normal(generator, images, c, h * p, w * p) for _ in range(2))
    kept = normal(generator, images, h, w, c * p * p, dtype=dtype)
    schedule = normal(generator, images, 9, COLUMNS)
    kind = torch.arange(images)[:, None] % 4
    column = dict(zip(Evaluation._fields, schedule.unbind(2), strict=True))
    for name in ("z_h", "h_z", "h_w"):
        column[name].mul_(kind != 0)
    column["guidance"].copy_(torch.where(kind == 3, 1, 1 + 4 * torch.rand(images, 9, generator=generator)))
    column["rescale"].copy_((kind == 2) * torch.rand(images, 9, generator=generator))
    column["reuse"].copy_((kind == 2).expand(-1, 9))
    column["keep"].copy_((kind == 1).expand(-1, 9))
    steps = torch.randint(1, 9, (images,), generator=generator, dtype=torch.int32)
    step = torch.randint(0, 10, (images,), generator=generator, dtype=torch.int32)
    step[:3] = 0  # at least these rows move
    return Call((v, z, history, kept, schedule, step, steps))


OP = define(
    "flow_update",
    "v: T[B, H, W, E], z!: Z[R, C, Y, X], history!: Z[R, C, Y, X], kept!: T[R, H, W, E], "
    f"schedule: f32[R, K, {COLUMNS}], step!: i32[R], steps: i32[R] ->",
    reference,
    cases=[
        dict(images=2, guided=2, h=5, w=3, c=4, p=2),
        dict(images=3, guided=1, h=4, w=4, c=3, p=1),
        dict(images=1, guided=0, h=1, w=7, c=4, p=2),
        dict(images=3, guided=2, h=9, w=11, c=4, p=2),
        dict(images=6, guided=6, h=3, w=2, c=2, p=3),
        dict(images=3, guided=0, h=3, w=17, c=1, p=2),
        dict(images=3, guided=3, h=24, w=24, c=4, p=2),
    ],
    example=example,
    derive=derive,
    read_bytes="B*H*W*E*T + R*C*Y*X*Z",
    flops="5*R*C*Y*X",
)


def in_f32(call: Given) -> str | None:
    return None if call.z.dtype is torch.float32 else "keeps the latents in float32, not in bfloat16"


def many_values(call: Given) -> str | None:
    values = static(call.v.shape[-1])
    large = f"takes at most {MAX_PATCH_VALUES} values a token, not {values}" if values > MAX_PATCH_VALUES else None
    return large or in_f32(call)


def members(call: Given) -> dict[str, Any]:
    (branches, height, width, _), (rows, channels) = call.v.shape, call.z.shape[:2]
    return dict(
        rows=rows,
        unconditional=branches - rows,
        evaluations=call.schedule.shape[1],
        height=height,
        width=width,
        channels=channels,
        patch=call.z.shape[2] // height,
    )


OP.kernel("native", members, many_values)
OP.kernel("cuda", members, many_values)
OP.triton("flow_update", in_f32)


@OP.implementation("torch")
def run_torch(call: Given) -> None:
    v, z, history, kept, step, steps = call.v, call.z, call.history, call.kept, call.step, call.steps
    dtype, images, guided = z.dtype, len(z), len(v) - len(z)
    rows = torch.arange(images, device=z.device)
    now = call.schedule[rows, step.clamp(max=call.schedule.shape[1] - 1).long()][..., None, None, None]
    guidance, rescale, reuse, keep = now[:, 5:].unbind(1)
    active = (step < steps)[:, None, None, None]
    cond, uncond = v[:images], kept.clone()
    fresh = (reuse == 0)[:guided]
    torch.where(fresh, v[images:], uncond[:guided], out=uncond[:guided])
    torch.where(active[:guided] & fresh & (keep != 0)[:guided], v[images:], kept[:guided], out=kept[:guided])
    w = (guidance * cond).to(dtype) - ((guidance - 1) * uncond).to(dtype)
    spread = cond.float().std((1, 2, 3), keepdim=True) / w.float().std((1, 2, 3), keepdim=True)
    w = torch.where(rescale != 0, (w * (1 + rescale * (spread - 1))).to(dtype), w)
    has_branch = (reuse != 0) | (rows < guided)[:, None, None, None]
    w = unpatchify(torch.where((guidance != 1) & has_branch, w, cond.to(dtype)), z.shape[1])
    z_z, z_w, z_h, h_z, h_w = now[:, :5].to(dtype).unbind(1)
    after = z_z * z + z_w * w
    after = torch.where(z_h != 0, after + z_h * history, after)
    remembers = active & ((z_h != 0) | (h_z != 0) | (h_w != 0))
    torch.where(remembers, h_z * z + h_w * w, history, out=history)
    # a finished row keeps its latents even if its velocity is no longer finite
    torch.where(active, after, z, out=z)
    step.add_(active.flatten())
