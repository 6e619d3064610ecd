"""o = (x + y) (1 + scale) + shift, with scale and shift from the row's table at the row's step.

Rows of x may be image rows followed by the unconditional branches of the first of them (classifier-free guidance):
row b of B reads image b, or b - R for b >= R. A step at or past the table's end reads its last entry, so that a row
that has finished stays in range.
"""

from __future__ import annotations

from typing import Any

import torch

from .base import Call, Given, define, normal
from .dims import branches_of_rows
from .refusals import for_f32


def branched_row(branches: int, images: int, device: torch.device) -> torch.Tensor:
    """The image row that each branch row belongs to, int64 (branches,)."""
    row = torch.arange(branches, device=device)
    return torch.where(row < images, row, row - images)


def reference(
    y: torch.Tensor, x: torch.Tensor, table: torch.Tensor, step: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    row = branched_row(len(y), len(step), y.device)
    entry = table.float()[row, step.long()[row].clamp(max=table.shape[1] - 1)]
    scale, shift = entry[:, None].chunk(2, dim=-1)
    return (x.float() + y.float()) * (1 + scale) + shift


def example(
    generator: torch.Generator, dtype: torch.dtype, images: int, guided: int, p: int, c: int, steps: int
) -> Call:
    branches = images + guided
    y, x = normal(generator, branches, p, c, dtype=dtype), normal(generator, branches, p, c)
    step = torch.randint(0, steps + 2, (images,), generator=generator, dtype=torch.int32)
    if images > 1:  # the table's last step, and the first one past its end
        step[0], step[-1] = steps - 1, steps
    table = normal(generator, images, steps, 2 * c + 8)[..., 4 : 4 + 2 * c]  # a block's entries of the whole table
    return Call((y, x, table, step), dict(dtype=torch.float32))


OP = define(
    "residual_modulate",
    "y: Y[B, P, C], x: X[B, P, C], table: W[R, T, 2*C], step: i32[R] -> o: O[B, P, C]",
    reference,
    cases=[
        dict(images=2, guided=2, p=9, c=16, steps=4),
        dict(images=3, guided=1, p=1, c=5, steps=1),
        dict(images=1, guided=0, p=4, c=8, steps=2),
    ],
    example=example,
    derive=branches_of_rows,
    read_bytes="B*P*C*Y + B*P*C*X + B*P*C*dtype",
    flops="3*B*P*C",
)


def members(call: Given) -> dict[str, Any]:
    # one block's columns of the whole table
    table = call.table if call.table.stride(-1) == 1 else call.table.contiguous()
    batch, positions, channels = call.x.shape
    return dict(
        table=table,
        batch=batch,
        images=len(call.step),
        positions=positions,
        channels=channels,
        steps=table.shape[1],
        image_stride=table.stride(0),
        step_stride=table.stride(1),
    )


OP.kernel("native", members, for_f32("table"))
OP.triton("residual_modulate", for_f32("table"))


@OP.implementation("torch")
def run_torch(call: Given) -> None:
    y, table, step = call.y, call.table, call.step
    images = branched_row(len(y), len(step), y.device)
    entry = table[images, step.clamp(max=table.shape[1] - 1)[images].long()]
    scale, shift = entry[:, None].chunk(2, dim=-1)
    call.o.copy_(torch.addcmul(shift, torch.add(y, call.x).to(table.dtype), 1 + scale))
