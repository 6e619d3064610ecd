"""Attention of many queries per row under the one rule of engine/ops/attention.py, in Triton.

This is the online softmax of FlashAttention-2 (arXiv 2307.08691): a program holds one tile of queries and walks over
the tiles of keys that at least one of them sees, starting at the row's first visible key, so that only the last tiles
need a mask. A query's own key, which it sees even outside its range, is added after the walk.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from . import Variant

LOWEST = tl.constexpr(-1e30)  # "no score yet": unlike -inf it may be subtracted from itself


@triton.jit
def take(acc, largest, total, q, k, v, visible, scale_log2):
    """One step of the online softmax: (sum of p v, largest score, sum of p). visible None: all keys are visible."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if visible is not None:
        scores = tl.where(visible, scores, float("-inf"))
    larger = tl.maximum(largest, tl.max(scores, 1) * scale_log2)
    p = tl.exp2(scores * scale_log2 - larger[:, None])
    keep = tl.exp2(largest - larger)
    acc = tl.dot(p.to(v.dtype), v, acc * keep[:, None], input_precision="ieee")
    return acc, larger, total * keep + tl.sum(p, 1)


@triton.jit
def attention_kernel(
    q_ptr,  # [rows, queries, heads, HEAD]
    k_ptr,  # [rows, keys, kv_heads, HEAD]
    v_ptr,  # [rows, keys, kv_heads, HEAD]
    o_ptr,  # [rows, queries, heads, HEAD], contiguous
    kv_start_ptr,  # [rows] int32; None, like the next two, if all keys are visible
    kv_end_ptr,  # [rows, queries] int32
    slots_ptr,  # [rows, queries] int32
    scale_log2,  # scale * log2(e)
    queries,
    keys,
    heads,
    kv_heads,
    q_row,
    q_token,
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    kv_head = head * kv_heads // heads
    # Programs start in order, and under a causal rule later queries see more: the longest programs start first.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    first_query = tile * BLOCK_M
    m = first_query + tl.arange(0, BLOCK_M)
    there = m < queries
    d = tl.arange(0, HEAD_BLOCK)[None, :]
    inside = d < HEAD if HEAD < HEAD_BLOCK else tl.full([1, HEAD_BLOCK], True, tl.int1)
    q_ptr += row * q_row + head * q_head
    k_ptr += row * k_row + kv_head * k_head
    v_ptr += row * v_row + kv_head * v_head
    q = tl.load(q_ptr + m[:, None] * q_token + d, mask=there[:, None] & inside, other=0.0)

    if kv_start_ptr is None:
        start = tl.full([], 0, tl.int32)
        end = tl.full([BLOCK_M], keys, tl.int32)
        least = keys
        last = keys
        slot = end - 1
    else:
        start = tl.maximum(tl.load(kv_start_ptr + row), 0)
        end = tl.minimum(tl.load(kv_end_ptr + row * end_row + m, mask=there, other=0), keys)
        least = tl.min(tl.where(there, end, keys), 0)
        last = tl.max(end, 0)
        slots_ptr += row * slot_row
        slot = tl.load(slots_ptr + m, mask=there, other=0)
    unmasked = start + tl.maximum(least - start, 0) // BLOCK_N * BLOCK_N

    acc = tl.zeros([BLOCK_M, HEAD_BLOCK], tl.float32)
    largest = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    n = tl.arange(0, BLOCK_N)
    k_at = k_ptr + start.to(tl.int64) * k_token
    v_at = v_ptr + start.to(tl.int64) * v_token
    for _ in range(start, unmasked, BLOCK_N):
        k = tl.load(k_at + n[:, None] * k_token + d, mask=inside, other=0.0)
        v = tl.load(v_at + n[:, None] * v_token + d, mask=inside, other=0.0)
        acc, largest, total = take(acc, largest, total, q, k, v, None, scale_log2)
        k_at += BLOCK_N * k_token
        v_at += BLOCK_N * v_token

    # Then the tiles that some queries see. If a query's own key is out of its range, all own keys follow.
    apart = there & ((slot < start) | (slot >= end))
    seen_end = unmasked + tl.cdiv(tl.maximum(last - unmasked, 0), BLOCK_N) * BLOCK_N
    for at in range(unmasked, seen_end + tl.max(apart.to(tl.int32), 0) * BLOCK_M, BLOCK_N):
        ranged = at < seen_end
        column = n + tl.where(ranged, at, first_query + at - seen_end)
        # A key that no query sees may be NaN, and then 0 * NaN would be NaN too.
        seen = column < tl.where(ranged, last, queries)
        key = column
        if slots_ptr is not None:
            own = tl.load(slots_ptr + column, mask=column < tl.where(ranged, 0, queries), other=0)
            key = tl.where(ranged, column, own)
        k = tl.load(k_ptr + key[:, None] * k_token + d, mask=seen[:, None] & inside, other=0.0)
        v = tl.load(v_ptr + key[:, None] * v_token + d, mask=seen[:, None] & inside, other=0.0)
        low = tl.where(ranged, start, m)
        high = tl.where(ranged, end, m + apart.to(tl.int32))
        visible = (column[None, :] >= low[:, None]) & (column[None, :] < high[:, None])
        acc, largest, total = take(acc, largest, total, q, k, v, visible, scale_log2)
    o_ptr += (row * queries * heads + head) * HEAD
    tl.store(o_ptr + m[:, None] * (heads * HEAD) + d, acc / total[:, None], mask=there[:, None] & inside)


WIDE = (64, 64, 4, 3)
"""Queries and keys per tile, warps and stages on a chip whose tensor cores read shared memory. With 64 queries, the 9
tiles of 576 queries over 16 heads of 2 rows are 288 programs, which balance well on 132 SMs that run two each; 128
queries would give 160 programs and leave most SMs idle while the longest finish."""


def configuration(capability: int, head: int, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, Any]]:
    """Tile sizes and compiler options for a compute capability (90 for 9.0), head size and dtype.

    Products of float32 run on the plain cores from registers, and need smaller tiles and more threads.
    """
    block = max(16, triton.next_power_of_2(head))
    if dtype is torch.float32:
        queries, keys, warps, stages = 32, 16, 8, 2
    elif capability // 10 in (9, 10) or block <= 64:
        queries, keys, warps, stages = WIDE
    else:  # mma.sync has queries and scores in registers, and other chips of 8 and 12 have 99 KiB of shared memory
        queries, keys, warps, stages = 64, 32, 4, 3
    constants = {"HEAD_BLOCK": block, "BLOCK_M": queries, "BLOCK_N": keys}
    return constants, {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


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

    q [B, N, H, D]; k and v [B, S, G, D], windows with any strides except that D's is 1; kv_start [B]; kv_end and slots
    [B, N] int32, where the tokens' stride is 1; o contiguous; D <= 128, scale > 0. All are on one CUDA device (or on a
    CPU in Triton's interpreter). The op's schema checks the arguments.
    """
    rows, queries, heads, head = q.shape
    major, minor = torch.cuda.get_device_capability(q.device) if q.is_cuda else (8, 0)
    constants, options = configuration(10 * major + minor, head, q.dtype)
    attention_kernel[(rows * heads, triton.cdiv(queries, constants["BLOCK_M"]))](
        q,
        k,
        v,
        o,
        kv_start,
        kv_end,
        slots,
        scale * math.log2(math.e),
        queries,
        k.shape[1],
        heads,
        k.shape[2],
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        0 if kv_end is None else kv_end.stride(0),
        0 if slots is None else slots.stride(0),
        HEAD=head,
        **constants,
        **options,
    )


def variants(capability: int) -> list[Variant]:
    """The forms of the language model (heads of 128 under the rule) and the image encoder (64, all keys visible)."""
    found = []
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        tensors = {f"{t}_ptr": f"*{name}" for t in "qkvo"}
        numbers = ("kv_start_ptr", "kv_end_ptr", "slots_ptr")
        strides = {f"{t}_{size}" for t in "qkv" for size in ("row", "token", "head")}
        for head, ruled in ((128, True), (64, False)):
            constants, options = configuration(capability, head, dtype)
            pointers: dict[str, str] = dict.fromkeys(numbers, "*i32") if ruled else {}
            absent: dict[str, Any] = {} if ruled else dict.fromkeys(numbers)
            found.append(
                Variant(
                    f"{name}-{head}",
                    attention_kernel,
                    tensors | pointers,
                    {"HEAD": head, **constants, **absent},
                    options,
                    frozenset({"scale_log2"}),
                    frozenset(strides | {"queries", "heads", "kv_heads"}),
                )
            )
    return found
