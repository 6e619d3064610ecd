"""y[b] += scale[s] (p(x[b]) a[s]) b[s], s = adapter[b] - 1: what a low-rank adapter adds to a linear, by row.

Slots hold adapters and are numbered from 1; a row without an adapter (0) keeps its bits and costs nothing. p is
RMSNorm if there is a norm, silu(gate) * up if `gated`, and else p(x) = x. A linear may stack several projections of the
same input: then a has the columns of all parts side by side, R for each; y has `first` columns for the first part, and
the others share the rest equally; and each part reads its own columns of p(x) a. ranks says how many of the R are not
zero.

The op after the linear may be fused with it only where the order of the two sums does not matter: if a linear is added
to a residual stream, its update is added to the stream before the linear is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import SchemaError
from ..specs import Size, static
from . import activations, rms_norm
from .base import Call, Given, Reason, counted, define, normal
from .refusals import rounds_once
from .schema import Bound

MAX_RANK = 1024
"""Limit: kMaxRank of csrc/cpu/low_rank.h."""
MAX_TRITON_RANK = 128
"""Limit: MAX_RANK of triton_kernels/low_rank.py, which imports triton."""


def derive(bound: Bound, attrs: Mapping[str, Any]) -> Mapping[str, Size]:
    """Derives no sizes; refuses sizes that do not fit together."""
    columns, parts, rank, outputs = (bound[name] for name in "KPRM")
    expected = columns * (2 if attrs["gated"] else 1)
    if bound["C"] != expected:
        raise SchemaError(f"expected x of {expected} channels, got {bound['C']}")
    if bound["Q"] != parts * rank:
        raise SchemaError(f"expected a of {parts} * {rank} columns, got {bound['Q']}")
    rest = outputs - attrs["first"]
    if (rest != 0) if parts == 1 else (rest <= 0 or rest % (parts - 1)):
        raise SchemaError(f"expected {outputs} outputs in {parts} parts, got the first of {attrs['first']}")
    return {}


def widths(first: int, parts: int, outputs: int) -> list[int]:
    """The number of outputs of each part."""
    return [first, *[(outputs - first) // max(1, parts - 1)] * (parts - 1)]


def reference(
    x: torch.Tensor,
    norm: torch.Tensor | None,
    adapter: torch.Tensor,
    ranks: torch.Tensor,
    scale: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    y: torch.Tensor,
    first: int,
    gated: bool,
    eps: float,
) -> None:
    rank = b.shape[1]
    for row, slot in enumerate((adapter - 1).tolist()):
        if not 0 <= slot < len(a):
            continue
        read = x[row].float()
        if norm is not None:
            read = rms_norm.reference(read, norm, eps, torch.float32)
        if gated:
            read = activations.reference_silu_mul(read)
        begin = 0
        for part, width in enumerate(widths(first, scale.shape[1], y.shape[-1])):
            used = int(ranks[slot, part])
            low = read @ a[slot, :, part * rank : part * rank + used].float()
            added = low @ b[slot, :used, begin : begin + width].float() * scale[slot, part].float()
            y[row, :, begin : begin + width] = y[row, :, begin : begin + width].float() + added
            begin += width


def example(
    generator: torch.Generator,
    dtype: torch.dtype,
    adapters: Sequence[int],
    n: int,
    k: int,
    outputs: Sequence[int],
    rank: int = 4,
    norm: bool = False,
    gated: bool = False,
    apart: int = 0,
) -> Call:
    """Three slots: with all ranks, with one fewer, and with none in the last part. apart: columns between y's rows."""
    rows, parts, width, slots = len(adapters), len(outputs), sum(outputs), 3
    x = normal(generator, rows, n, 2 * k if gated else k, dtype=torch.float32 if norm else dtype)
    weight = 1 + 0.3 * normal(generator, k) if norm else None
    ranks = torch.tensor([[rank] * parts, [max(1, rank - 1)] * parts, [rank] * (parts - 1) + [0]], dtype=torch.int32)
    a = (normal(generator, slots, k, parts * rank) / k**0.5).to(dtype)
    b = (normal(generator, slots, rank, width) / rank**0.5).to(dtype)
    y = normal(generator, rows, n, width + apart, dtype=dtype)[..., :width]
    scale = 0.5 + torch.rand(slots, parts, generator=generator)
    adapter = torch.tensor(adapters, dtype=torch.int32)
    return Call((x, weight, adapter, ranks, scale, a, b, y), dict(first=outputs[0], gated=gated, eps=1e-6))


MOVED = [counted(f"B*N*C*X + 2*B*N*M*Y + {n}*K*Q*T + {n}*R*M*T") for n in "BS"]
OP = define(
    "low_rank",
    "x: X[B, N, C], norm?: W[K], adapter: i32[B], ranks: i32[S, P], scale: f32[S, P], a: T[S, K, Q], "
    "b: T[S, R, M], y!: Y[B, N, M] ->",
    reference,
    cases=[
        dict(adapters=[1], n=1, k=64, outputs=[96]),
        dict(adapters=[0, 2, 3, 1], n=3, k=33, outputs=[7, 5, 5], rank=3, norm=True),
        dict(adapters=[3, -1, 1], n=17, k=72, outputs=[48, 32, 32], rank=16, norm=True),
        dict(adapters=[2, 1], n=9, k=600, outputs=[40, 40], rank=20, norm=True, apart=8),
        dict(adapters=[1, 4, 2], n=11, k=130, outputs=[65], rank=33, gated=True),
        dict(adapters=[2], n=1, k=520, outputs=[35], rank=1, gated=True, apart=3),
        dict(adapters=[0, 0], n=2, k=16, outputs=[8]),
    ],
    example=example,
    derive=derive,
    # x once, y twice, and an adapter for each row, as long as there are that many
    read_bytes=lambda *call: min(cost(*call) for cost in MOVED),
    flops="2*B*N*K*Q + 2*B*N*R*M",
)


def members(call: Given) -> dict[str, Any]:
    rows, tokens, outputs = call.y.shape
    slots, columns, _ = call.a.shape
    return dict(
        dtype=call.a.dtype,
        rows=rows,
        tokens=tokens,
        columns=columns,
        outputs=outputs,
        parts=call.scale.shape[1],
        rank=call.b.shape[1],
        slots=slots,
        y_row_stride=call.y.stride(0),
        y_token_stride=call.y.stride(1),
    )


def up_to(most: int) -> Reason:
    """For kernels that have room for ranks of at most `most`."""

    def cannot(call: Given) -> str | None:
        rank = static(call.b.shape[1])
        large = f"has room for ranks of at most {most}, not {rank}" if rank > most else None
        return large or rounds_once(call.norm)

    return cannot


OP.kernel("native", members, up_to(MAX_RANK))
OP.triton("low_rank", up_to(MAX_TRITON_RANK))


@OP.implementation("torch")
def run_torch(call: Given) -> None:
    # All rows, with or without an adapter: the host must not read values from a device.
    x, adapter, scale, a, b, y = call.x, call.adapter, call.scale, call.a, call.b, call.y
    rank = b.shape[1]
    has = ((adapter >= 1) & (adapter <= len(a)))[:, None, None]
    slot = (adapter - 1).clamp(0, len(a) - 1).long()
    read = x.float() if call.norm is None else rms_norm.normalize(x, call.norm, call.eps).float()
    read = activations.silu_mul(read) if call.gated else read
    used = torch.arange(rank, device=x.device) < call.ranks[slot][..., None]  # (B, P, R)
    low = (read @ a[slot].float()) * (used * scale[slot][..., None]).flatten(1)[:, None]
    begin = 0
    for part, width in enumerate(widths(call.first, scale.shape[1], y.shape[-1])):
        columns = slice(begin, begin + width)
        added = low[..., part * rank : (part + 1) * rank] @ b[slot, :, columns].float()
        y[..., columns] = torch.where(has, (y[..., columns] + added).to(y.dtype), y[..., columns])
        begin += width
