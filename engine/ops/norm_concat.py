"""y = [RMSNorm(x), skip] along channels: the U-ViT decoder's input.

`skip` holds image rows; row b of x belongs to image b, or b - R for an unconditional branch (b >= R).
"""

from __future__ import annotations

import torch

from ... import triton_kernels
from ..device import native
from . import rms_norm
from .base import Call, Given, define, filled, normal, quiet
from .dims import branches_of_rows
from .refusals import for_f32
from .residual_modulate import branched_row


def reference(
    x: torch.Tensor, weight: torch.Tensor, skip: torch.Tensor, eps: float, dtype: torch.dtype
) -> torch.Tensor:
    rows = branched_row(len(x), len(skip), x.device)
    return torch.cat([rms_norm.reference(x, weight, eps, dtype), skip.float()[rows]], dim=-1)


def example(
    generator: torch.Generator,
    dtype: torch.dtype,
    images: int,
    guided: int,
    p: int,
    c: int,
    e: int,
    eps_decides: bool = False,
) -> Call:
    x, skip = normal(generator, images + guided, p, c, dtype=dtype), normal(generator, images, p, e)
    if eps_decides:
        quiet(x)
    return Call((x, 1 + 0.1 * normal(generator, c), skip), dict(eps=1e-6, dtype=torch.float32))


OP = define(
    "norm_concat",
    "x: T[B, P, C], weight: W[C], skip: X[R, P, E] -> y: O[B, P, C+E]",
    reference,
    cases=[
        dict(images=2, guided=1, p=6, c=16, e=8),
        dict(images=1, guided=0, p=3, c=7, e=7),
        dict(images=3, guided=0, p=4, c=40, e=8, eps_decides=True),
    ],
    example=example,
    derive=branches_of_rows,
    flops="4*B*P*C",
)


def copy_skip(call: Given) -> None:
    """Fill the right part of y."""
    skip, right = call.skip, call.y[..., call.x.shape[-1] :]
    right[: len(skip)].copy_(skip)
    right[len(skip) :].copy_(skip[: len(right) - len(skip)])


@OP.implementation("native", native.refuses, for_f32("weight"), around=True)
def run_native(call: Given) -> None:
    native.run("rms_norm", **filled("rms_norm", call, rms_norm.members(call)))
    copy_skip(call)


@OP.implementation("triton", triton_kernels.refuses, for_f32("weight", row="x"))
def run_triton(call: Given) -> None:
    from ...triton_kernels.rms_norm import launch

    launch(call.x, None, call.weight, None, call.y[..., : call.x.shape[-1]], None, call.eps)
    copy_skip(call)


@OP.implementation("torch")
def run_torch(call: Given) -> None:
    call.y[..., : call.x.shape[-1]].copy_(rms_norm.normalize(call.x, call.weight, call.eps))
    copy_skip(call)
