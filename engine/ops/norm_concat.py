"""o = [RMSNorm(h), skip] along channels: the U-ViT decoder's input.

`skip` holds image rows; row b of h belongs to image b, or b - R for an unconditional branch (b >= R).
"""

from __future__ import annotations

import torch

from ... import triton_kernels
from ..device import native
from .base import Call, Given, define, normal, quiet
from .dims import branches_of_rows
from .refusals import for_f32
from .residual_modulate import branched_row
from .rms_norm import normalize
from .rms_norm import reference as rms_reference


def reference(
    h: torch.Tensor, weight: torch.Tensor, skip: torch.Tensor, eps: float, dtype: torch.dtype
) -> torch.Tensor:
    return torch.cat(
        [rms_reference(h, weight, eps, dtype), skip.float()[branched_row(len(h), len(skip), h.device)]], dim=-1
    )


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
    h, skip = normal(generator, images + guided, p, c, dtype=dtype), normal(generator, images, p, e)
    if eps_decides:
        quiet(h)
    return Call((h, 1 + 0.1 * normal(generator, c), skip), dict(eps=1e-6, dtype=torch.float32))


OP = define(
    "norm_concat",
    "h: T[B, P, C], weight: W[C], skip: X[R, P, E] -> o: O[B, P, C+E]",
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
    """Fill the right part of o."""
    skip, o = call.skip, call.o
    images, channels = len(skip), o.shape[-1] - skip.shape[-1]
    o[:images, :, channels:].copy_(skip)
    o[images:, :, channels:].copy_(skip[: len(o) - images])


@OP.implementation("native", native.refuses, for_f32("weight"), around=True)
def run_native(call: Given) -> None:
    rows, channels = call.h.shape[:-1].numel(), call.h.shape[-1]
    native.run(
        "rms_norm",
        x=call.h.contiguous(),
        delta=None,
        weight=call.weight,
        total=None,
        y=call.o,
        scale=None,
        x_dtype=call.h.dtype,
        delta_dtype=call.h.dtype,
        y_dtype=call.o.dtype,
        eps=call.eps,
        rows=rows,
        channels=channels,
        y_stride=call.o.stride(-2),
    )
    copy_skip(call)


@OP.implementation("triton", triton_kernels.refuses, for_f32("weight", row="h"))
def run_triton(call: Given) -> None:
    from ...triton_kernels.rms_norm import launch

    launch(call.h, None, call.weight, None, call.o[..., : call.h.shape[-1]], None, call.eps)
    copy_skip(call)


@OP.implementation("torch")
def run_torch(call: Given) -> None:
    call.o[..., : call.h.shape[-1]].copy_(normalize(call.h, call.weight, call.eps))
    copy_skip(call)
