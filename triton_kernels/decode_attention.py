"""Attention of one query per row under the one rule of engine/ops/attention.py, split over keys, in Triton.

This is flash-decoding: several programs share a row's visible keys, whose number only the device knows. Each writes its
sum of p v, its largest score and its sum of p, and a second kernel combines them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from . import Variant

LOWEST = tl.constexpr(-1e30)  # "no score yet": unlike -inf it may be subtracted from itself
MAX_SPLITS = 32
PROGRAMS = 512  # about four per SM, which keeps the memory busy
KEYS = 64  # with fewer keys, a program would not be worth its start
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def decode_attention_kernel(
    q_ptr,  # [rows, 1, heads, HEAD]
    k_ptr,  # [rows, keys, kv_heads, HEAD]
    v_ptr,  # [rows, keys, kv_heads, HEAD]
    o_ptr,  # [rows, heads, splits, HEAD], contiguous; float32 unless there is one split
    largest_ptr,  # [rows, heads, splits] float32; None, like the next, if there is one split
    total_ptr,  # [rows, heads, splits] float32
    kv_start_ptr,  # [rows] int32; None, like the next two, if all keys are visible
    kv_end_ptr,  # [rows, 1] int32
    slots_ptr,  # [rows, 1] int32
    scale_log2,  # scale * log2(e)
    keys,
    heads,
    kv_heads,
    q_row,
    q_head,
    k_row,
    k_token,
    k_head,
    v_row,
    v_token,
    v_head,
    end_row,
    slot_row,
    HEAD: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    kv_head = head * kv_heads // heads
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, HEAD_BLOCK)
    inside = d < HEAD
    q = tl.load(q_ptr + row * q_row + head * q_head + d, mask=inside, other=0.0).to(tl.float32)
    k_ptr += row * k_row + kv_head * k_head
    v_ptr += row * v_row + kv_head * v_head

    if kv_start_ptr is None:
        start = tl.full([], 0, tl.int32)
        end = keys
        largest = tl.full([], LOWEST, tl.float32)
        total = tl.full([], 0.0, tl.float32)
        acc = tl.zeros([HEAD_BLOCK], tl.float32)
    else:
        start = tl.maximum(tl.load(kv_start_ptr + row), 0)
        end = tl.minimum(tl.load(kv_end_ptr + row * end_row), keys)
        # The first split begins with the query's own key if its range does not include it.
        slot = tl.load(slots_ptr + row * slot_row)
        apart = (split == 0) & ((slot < start) | (slot >= end))
        there = d < tl.where(apart, HEAD, 0)
        own = tl.load(k_ptr + slot * k_token + d, mask=there, other=0.0).to(tl.float32)
        acc = tl.load(v_ptr + slot * v_token + d, mask=there, other=0.0).to(tl.float32)
        largest = tl.where(apart, tl.sum(q * own, 0) * scale_log2, LOWEST)
        total = tl.where(apart, 1.0, 0.0)

    share = tl.cdiv(tl.maximum(end - start, 0), splits)
    first = start + split * share
    last = tl.minimum(first + share, end)
    for at in range(first, last, BLOCK_N):
        seen = at + n < last
        mask = seen[:, None] & inside[None, :]
        k = tl.load(k_ptr + (at + n)[:, None] * k_token + d[None, :], mask=mask, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + (at + n)[:, None] * v_token + d[None, :], mask=mask, other=0.0).to(tl.float32)
        scores = tl.where(seen, tl.sum(q[None, :] * k, 1) * scale_log2, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 0))
        p = tl.exp2(scores - larger)
        keep = tl.exp2(largest - larger)
        total = total * keep + tl.sum(p, 0)
        acc = acc * keep + tl.sum(p[:, None] * v, 0)
        largest = larger

    at = tl.program_id(0).to(tl.int64) * splits + split
    if largest_ptr is None:
        acc = acc / total
    else:
        tl.store(largest_ptr + at, largest)
        tl.store(total_ptr + at, total)
    tl.store(o_ptr + at * HEAD + d, acc, mask=inside)


@triton.jit
def combine_kernel(
    o_ptr,  # [rows * heads, HEAD]
    acc_ptr,  # [rows * heads, splits, HEAD] float32
    largest_ptr,  # [rows * heads, splits] float32
    total_ptr,  # [rows * heads, splits] float32
    splits,
    HEAD: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
):
    """One program per row and head. A split without keys has a total of 0 and no weight."""
    at = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, MAX_SPLITS)
    d = tl.arange(0, HEAD_BLOCK)
    there = split < splits
    largest = tl.load(largest_ptr + at * splits + split, mask=there, other=float("-inf"))
    weight = tl.exp2(largest - tl.max(largest, 0))
    total = tl.sum(weight * tl.load(total_ptr + at * splits + split, mask=there, other=0.0), 0)
    mask = there[:, None] & (d < HEAD)[None, :]
    acc = tl.load(acc_ptr + (at * splits + split[:, None]) * HEAD + d[None, :], mask=mask, other=0.0)
    tl.store(o_ptr + at * HEAD + d, tl.sum(weight[:, None] * acc, 0) / total, mask=d < HEAD)


def splits_of(rows: int, heads: int, keys: int) -> int:
    """How many programs share a row's keys. It depends only on sizes, so every replay of a graph has the same."""
    return max(1, min(MAX_SPLITS, PROGRAMS // (rows * heads), keys // KEYS))


def configuration(head: int, dtype: torch.dtype) -> dict[str, int]:
    """Tile sizes for a head size and dtype, the same on every chip: at 128, one tile of keys takes 16 KiB."""
    return {"HEAD_BLOCK": triton.next_power_of_2(head), "BLOCK_N": 128 // dtype.itemsize}


def launch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kv_start: torch.Tensor | None,
    kv_end: torch.Tensor | None,
    slots: torch.Tensor | None,
    o: torch.Tensor,
    *,
    scale: float,
) -> None:
    """o = softmax(scale q K^T) V over the visible keys, or over all keys if the last three arguments are None.

    q [B, 1, H, D]; k and v [B, S, G, D], windows with any strides except that D's is 1; kv_start [B]; kv_end and slots
    [B, 1] int32; o contiguous; D <= 128. All are on one CUDA device (or on a CPU in Triton's interpreter). The op's
    schema checks the arguments.
    """
    rows, _, heads, head = q.shape
    splits = splits_of(rows, heads, k.shape[1])
    constants = configuration(head, q.dtype)
    partial, largest, total = o, None, None
    if splits > 1:
        # From the caching allocator: a captured graph has it in its own pool, at the same address in each replay.
        partial = torch.empty((rows, heads, splits, head), dtype=torch.float32, device=q.device)
        largest, total = torch.empty((2, rows, heads, splits), dtype=torch.float32, device=q.device)
    decode_attention_kernel[(rows * heads, splits)](
        q,
        k,
        v,
        partial,
        largest,
        total,
        kv_start,
        kv_end,
        slots,
        scale * math.log2(math.e),
        k.shape[1],
        heads,
        k.shape[2],
        q.stride(0),
        q.stride(2),
        *k.stride()[:3],
        *v.stride()[:3],
        0 if kv_end is None else kv_end.stride(0),
        0 if slots is None else slots.stride(0),
        HEAD=head,
        **constants,
        **OPTIONS,
    )
    if splits > 1:
        combine_kernel[(rows * heads,)](
            o,
            partial,
            largest,
            total,
            splits,
            HEAD=head,
            HEAD_BLOCK=constants["HEAD_BLOCK"],
            MAX_SPLITS=MAX_SPLITS,
            **OPTIONS,
        )


def variants(capability: int) -> list[Variant]:
    """Heads of 128 under the rule, with and without a split."""
    found = []
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        constants: dict[str, Any] = {"HEAD": 128, **configuration(128, dtype)}
        numbers = dict.fromkeys(("kv_start_ptr", "kv_end_ptr", "slots_ptr"), "*i32")
        inputs = {f"{t}_ptr": f"*{name}" for t in "qkv"} | numbers
        partial = dict.fromkeys(("o_ptr", "largest_ptr", "total_ptr"), "*fp32")
        sizes = {"q_row", "q_head", "heads", "kv_heads"} | {f"{t}_{s}" for t in "kv" for s in ("row", "token", "head")}
        for form, outputs, absent in (
            ("split", partial, {}),
            ("whole", {"o_ptr": f"*{name}"}, dict.fromkeys(("largest_ptr", "total_ptr"))),
        ):
            found.append(
                Variant(
                    f"{name}-{form}",
                    decode_attention_kernel,
                    inputs | outputs,
                    constants | absent,
                    OPTIONS,
                    frozenset({"scale_log2"}),
                    frozenset(sizes),
                )
            )
        pointers = {"o_ptr": f"*{name}"} | dict.fromkeys(("acc_ptr", "largest_ptr", "total_ptr"), "*fp32")
        blocks = {"HEAD": 128, "HEAD_BLOCK": constants["HEAD_BLOCK"], "MAX_SPLITS": MAX_SPLITS}
        found.append(Variant(f"{name}-combine", combine_kernel, pointers, blocks, OPTIONS))
    return found
