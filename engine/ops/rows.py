"""Row bookkeeping of a batch: branching rows, filling cache slots from a table or another row, and advancing rows.

Caches are (L, B, S, G, D): layer, row, slot, key/value head, head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import SchemaError
from ..specs import Size
from .base import Call, Given, define, normal
from .dims import branches_of_rows, check_branches
from .residual_modulate import branched_row
from .schema import Bound

LAST = 2**31 - 2
"""The last position if none is given."""


def derive_branch(bound: Bound, attrs: Mapping[str, Any]) -> Mapping[str, Size]:
    check_branches(attrs["B"], bound["R"])
    return {}


def derive_slot(bound: Bound, attrs: Mapping[str, Any]) -> Mapping[str, Size]:
    slot, slots = attrs["slot"], bound["S"]
    if isinstance(slot, int) and isinstance(slots, int) and not 0 <= slot < slots:
        raise SchemaError(f"attribute 'slot' expected to be one of the cache's {slots} slots, got {slot}")
    return branches_of_rows(bound, attrs)


def reference_branch(x: torch.Tensor, B: int, dtype: torch.dtype) -> torch.Tensor:
    return x.float()[branched_row(B, len(x), x.device)]


def example_branch(generator: torch.Generator, dtype: torch.dtype, images: int, guided: int) -> Call:
    return Call((normal(generator, images, 3, 4, dtype=dtype),), dict(B=images + guided, dtype=torch.float32))


BRANCH_ROWS = define(
    "branch_rows",
    "x: T[R, N, C] -> y: O[B, N, C]",
    reference_branch,
    [dict(images=3, guided=2), dict(images=1, guided=0)],
    example_branch,
    derive=derive_branch,
    rounding_steps=0.0,
)
"""y = the R rows of x, then the first B - R of them again: both branches start from the same values."""


@BRANCH_ROWS.implementation("torch")
def run_branch(call: Given) -> None:
    x, y = call.x, call.y
    y[: len(x)].copy_(x)
    y[len(x) :].copy_(x[: len(y) - len(x)])


def reference_load(
    k_table: torch.Tensor,
    v_table: torch.Tensor,
    step: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot: int,
) -> None:
    for row, image in enumerate(branched_row(k_cache.shape[1], len(step), step.device).tolist()):
        s = min(int(step[image]), k_table.shape[2] - 1)
        k_cache[:, row, slot], v_cache[:, row, slot] = k_table[:, row, s], v_table[:, row, s]


def example_load(
    generator: torch.Generator, dtype: torch.dtype, images: int, guided: int, steps: int, slot: int
) -> Call:
    rows = images + guided
    tables = [normal(generator, 2, rows, steps, 2, 4, dtype=dtype) for _ in range(2)]
    caches = [normal(generator, 2, rows, 6, 2, 4, dtype=dtype) for _ in range(2)]
    step = torch.randint(0, steps + 2, (images,), generator=generator, dtype=torch.int32)
    if images > 1:  # its last one, and the first after it
        step[0], step[-1] = steps - 1, steps
    return Call((*tables, step, *caches), dict(slot=slot))


LOAD_SLOT = define(
    "load_slot",
    "k_table: T[L, B, K, G, D], v_table: T[L, B, K, G, D], step: i32[R], "
    "k_cache!: T[L, B, S, G, D], v_cache!: T[L, B, S, G, D] ->",
    reference_load,
    [dict(images=2, guided=1, steps=3, slot=4), dict(images=1, guided=0, steps=1, slot=0)],
    example_load,
    derive=derive_slot,
    rounding_steps=0.0,
)
"""Copy the keys/values at each row's own step, computed before the loop, from a table into the cache's slot."""


@LOAD_SLOT.implementation("torch")
def run_load(call: Given) -> None:
    k_table, v_table, step, k_cache, v_cache, slot = *call.tensors.values(), call.slot
    rows = torch.arange(k_cache.shape[1], device=step.device)
    steps = step.clamp(max=k_table.shape[2] - 1).long()[branched_row(len(rows), len(step), step.device)]
    k_cache[:, :, slot].copy_(k_table[:, rows, steps])
    v_cache[:, :, slot].copy_(v_table[:, rows, steps])


def reference_copy(k_cache: torch.Tensor, v_cache: torch.Tensor, source: torch.Tensor, slot: int) -> None:
    rows = len(source)
    for row in range(rows, k_cache.shape[1]):
        first = int(source[row - rows])
        k_cache[:, row, slot], v_cache[:, row, slot] = k_cache[:, row - rows, first], v_cache[:, row - rows, first]


def example_copy(generator: torch.Generator, dtype: torch.dtype, images: int, guided: int, slot: int) -> Call:
    caches = [normal(generator, 2, images + guided, 6, 2, 4, dtype=dtype) for _ in range(2)]
    source = torch.randint(0, slot + 1, (images,), generator=generator, dtype=torch.int32)
    return Call((*caches, source), dict(slot=slot))


COPY_SLOT = define(
    "copy_slot",
    "k_cache!: T[L, B, S, G, D], v_cache!: T[L, B, S, G, D], source: i32[R] ->",
    reference_copy,
    [dict(images=2, guided=1, slot=4), dict(images=2, guided=2, slot=5), dict(images=1, guided=0, slot=1)],
    example_copy,
    derive=derive_slot,
    rounding_steps=0.0,
)
"""Give each branch row R + r, in `slot`, the keys/values that row r holds in slot source[r]."""


@COPY_SLOT.implementation("torch")
def run_copy(call: Given) -> None:
    k_cache, v_cache, source, slot = call.k_cache, call.v_cache, call.source, call.slot
    branches = torch.arange(k_cache.shape[1] - len(source), device=source.device)
    slots = source[: len(branches)].long()
    k_cache[:, len(source) :, slot].copy_(k_cache[:, branches, slots])
    v_cache[:, len(source) :, slot].copy_(v_cache[:, branches, slots])


def reference_advance(
    position: torch.Tensor,
    slot: torch.Tensor,
    token: torch.Tensor | None,
    eos: torch.Tensor | None,
    live: torch.Tensor | None,
    last: int = LAST,
) -> None:
    for b in range(len(position)):
        if token is not None and eos is not None and live is not None:
            live[b] = int(live[b] and token[b] != eos[b] and position[b] < last)
        if live is None or live[b]:
            position[b] += 1
            slot[b] += 1


def example_advance(generator: torch.Generator, dtype: torch.dtype, rows: int, ends: bool = False) -> Call:
    def draw(high: int) -> torch.Tensor:
        return torch.randint(0, high, (rows,), generator=generator, dtype=torch.int32)

    if not ends:
        return Call((draw(99), draw(99), None, None, None))
    return Call((draw(9), draw(99), draw(3), draw(3) - 1, draw(2)), dict(last=6))


ADVANCE = define(
    "advance",
    "position!: i32[B], slot!: i32[B], token?: i32[B], eos?: i32[B], live?!: i32[B] ->",
    reference_advance,
    [dict(rows=1), dict(rows=5), dict(rows=40, ends=True)],
    example_advance,
    dtypes=(torch.float32,),
    rounding_steps=0.0,
    defaults={"last": LAST},
)
"""position += 1, slot += 1: a decoded token has been written, and every row advances.

With `live`, only those rows advance that have not met `eos` (-1: none) and are before `last`. Ended rows stay ended.
"""


@ADVANCE.implementation("torch")
def run_advance(call: Given) -> None:
    live = call.live
    if live is not None:
        live.mul_(call.token != call.eos).mul_(call.position < call.last)
    call.position.add_(1 if live is None else live)
    call.slot.add_(1 if live is None else live)
