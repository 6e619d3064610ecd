"""y = total, and slot_s = total - x; or, in a row that recalls, y = x + w_0 slot_0 + w_1 slot_1 without a total.

What layers add to their input x changes slowly between the evaluations of a flow. An evaluation that runs the layers
stores it; one that recalls extrapolates it from the last two that ran, and skips the layers. A line of the row's
schedule at its own step says which, so rows that recall and rows that run can share a pass; without a total, every row
recalls.
Rows b < R are images; row R + r is the unconditional branch of image r, which has the same x.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .base import Call, Given, counted, define, normal
from .dims import branches_of_rows
from .residual_modulate import branched_row


class CacheLine(NamedTuple):
    """A row's numbers for one evaluation: the columns of `lines`, and StepCacheLine of csrc/cpu/step_cache.h."""

    recall: float = 0.0
    """Not 0: y is recalled, and no slot is written."""
    slot: float = -1.0
    """The slot that stores total - x, 0 or 1; -1: neither."""
    w_0: float = 0.0
    w_1: float = 0.0
    """Weights of the slots in a row that recalls; a slot with weight 0 is not read."""


COLUMNS = len(CacheLine._fields)


def reference(
    x: torch.Tensor,
    total: torch.Tensor | None,
    slot_0: torch.Tensor,
    slot_1: torch.Tensor,
    lines: torch.Tensor,
    step: torch.Tensor,
) -> torch.Tensor:
    slots, y = (slot_0, slot_1), torch.empty(slot_0.shape, dtype=x.float().dtype, device=x.device)
    for b, r in enumerate(branched_row(len(slot_0), len(x), x.device).tolist()):
        line = CacheLine(*lines[r, min(int(step[r]), lines.shape[1] - 1)].tolist())
        if total is None or line.recall:
            y[b] = x[r].float()
            for weight, slot in zip((line.w_0, line.w_1), slots, strict=True):
                if weight:
                    y[b] += weight * slot[b].float()
        else:
            y[b] = total[b].float()
            if line.slot >= 0:
                slots[int(line.slot)][b] = total[b].float() - x[r].float()
    return y


def example(
    generator: torch.Generator, dtype: torch.dtype, images: int, guided: int, n: int, c: int, ran: bool = True
) -> Call:
    """Rows in turns: recalls both slots; stores in slot 0; recalls slot 1 alone; stores in slot 1; stores nothing."""
    branches = images + guided
    x = normal(generator, images, n, c)
    total = normal(generator, branches, n, c) if ran else None
    slots = [normal(generator, branches, n, c, dtype=dtype) for _ in range(2)]
    kinds = [CacheLine(1, -1, 1.75, -0.75), CacheLine(0, 0), CacheLine(1, -1, 0, 1), CacheLine(0, 1), CacheLine()]
    lines = torch.tensor([[kinds[(image + k) % 5] for k in range(3)] for image in range(images)])
    step = torch.randint(0, 5, (images,), generator=generator, dtype=torch.int32)
    step[0] = 0
    if images > 1:
        step[-1] = 3  # the first step after its last line
    if images > 2:
        step[2] = 0
        slots[0][2] = torch.nan  # not read there
    return Call((x, total, *slots, lines, step))


MOVED = [counted(formula) for formula in ("2*B*N*C*X + 2*B*N*C*S", "3*B*N*C*X + B*N*C*S")]
OP = define(
    "step_cache",
    "x: X[R, N, C], total?: X[B, N, C], slot_0!: S[B, N, C], slot_1!: S[B, N, C], "
    f"lines: f32[R, K, {COLUMNS}], step: i32[R] -> y: X[B, N, C]",
    reference,
    cases=[
        dict(images=5, guided=5, n=3, c=16),
        dict(images=5, guided=2, n=2, c=5),
        dict(images=3, guided=1, n=4, c=33, ran=False),
        dict(images=1, guided=1, n=1, c=8, ran=False),
        dict(images=1, guided=0, n=5, c=1),
    ],
    example=example,
    derive=branches_of_rows,
    # x and y, plus two slots or a total and a slot
    read_bytes=lambda *call: max(cost(*call) for cost in MOVED),
    flops="4*B*N*C",
)


def members(call: Given) -> dict[str, Any]:
    branches, positions, channels = call.y.shape
    return dict(
        slot_dtype=call.slot_0.dtype,
        batch=branches,
        images=len(call.x),
        positions=positions,
        channels=channels,
        evaluations=call.lines.shape[1],
    )


OP.kernel("native", members)
OP.triton("step_cache")


@OP.implementation("torch")
def run_torch(call: Given) -> None:
    x, total, slot_0, slot_1, lines, step, y = call.tensors.values()
    images = branched_row(len(y), len(x), x.device)
    now = lines[images, step.clamp(max=lines.shape[1] - 1).long()[images]][:, :, None, None]
    recall, kept, *weights = now.unbind(1)
    x = x[images].float()
    recalled = x
    for weight, slot in zip(weights, (slot_0, slot_1), strict=True):
        recalled = torch.where(weight != 0, recalled + weight * slot, recalled)
    if total is None:
        y.copy_(recalled)
        return
    y.copy_(torch.where(recall != 0, recalled, total))
    for number, slot in enumerate((slot_0, slot_1)):
        slot.copy_(torch.where((recall == 0) & (kept == number), total - x, slot))
