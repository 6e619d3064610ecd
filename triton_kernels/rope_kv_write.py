"""RoPE on queries and keys, and the write of keys and values into their caches, in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import Variant, options

TILE = 2048
"""Elements of a program, unless one head has more."""


@triton.jit
def rope_kv_write_kernel(
    qkv_ptr,  # [batch, tokens, heads + 2 * kv_heads, 2 * HALF]
    table_ptr,  # [positions, 2, HALF] float32: cosines, sines
    positions_ptr,  # [batch, tokens] int32
    slots_ptr,  # [batch, tokens] int32
    k_ptr,  # [batch, slots, kv_heads, 2 * HALF], by its strides
    v_ptr,
    q_ptr,  # [batch, tokens, heads, 2 * HALF]
    tokens,
    heads,
    kv_heads,
    k_batch_stride,
    k_slot_stride,
    v_batch_stride,
    v_slot_stride,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
):
    """One program per token, kind (queries, keys, values) and HEADS heads."""
    token = tl.program_id(0).to(tl.int64)
    kind = tl.program_id(1)
    first = tl.where(kind == 0, 0, heads + (kind - 1) * kv_heads)
    count = tl.where(kind == 0, heads, kv_heads)
    h = tl.program_id(2) * HEADS + tl.arange(0, HEADS)[:, None]
    i = tl.arange(0, BLOCK)[None, :]
    inside = (h < count) & (i < HALF)
    at = h * (2 * HALF) + i
    source = qkv_ptr + (token * (heads + 2 * kv_heads) + first) * (2 * HALF) + at
    a = tl.load(source, mask=inside, other=0.0)
    b = tl.load(source + HALF, mask=inside, other=0.0)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    if kind == 0:
        to = q_ptr + token * heads * (2 * HALF)
    elif kind == 1:
        to = k_ptr + token // tokens * k_batch_stride + slot * k_slot_stride
    else:
        to = v_ptr + token // tokens * v_batch_stride + slot * v_slot_stride
    if kind < 2:
        angles = table_ptr + tl.load(positions_ptr + token).to(tl.int64) * (2 * HALF) + i
        cos = tl.load(angles, mask=i < HALF, other=0.0)
        sin = tl.load(angles + HALF, mask=i < HALF, other=0.0)
        x, y = a.to(tl.float32), b.to(tl.float32)
        a = (x * cos - y * sin).to(q_ptr.dtype.element_ty)
        b = (y * cos + x * sin).to(q_ptr.dtype.element_ty)
    tl.store(to + at, a, mask=inside)
    tl.store(to + at + HALF, b, mask=inside)


def launch(
    qkv: torch.Tensor,
    table: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    q: torch.Tensor,
    *,
    heads: int,
) -> None:
    """q = RoPE(q); k_cache[b, slot] = RoPE(k), v_cache[b, slot] = v, by halves of a head.

    qkv [B, N, (heads + 2 G) D], caches [B, S, G, D] (a slot's G D values side by side) and q [B, N, heads, D] in one
    float type, table [M, 2, D/2] float32, positions and slots [B, N] int32, on one CUDA device (or on a CPU in Triton's
    interpreter). Arguments are checked by the op's schema; positions and slots are in range by the caller's word.
    """
    batch, tokens = positions.shape
    kv_heads, half = k_cache.shape[2], table.shape[2]
    block, per_program = _tile(half, heads, kv_heads)
    rope_kv_write_kernel[(batch * tokens, 3, triton.cdiv(max(heads, kv_heads), per_program))](
        qkv.contiguous(),
        table,
        positions.contiguous(),
        slots.contiguous(),
        k_cache,
        v_cache,
        q,
        tokens,
        heads,
        kv_heads,
        *k_cache.stride()[:2],
        *v_cache.stride()[:2],
        HALF=half,
        BLOCK=block,
        HEADS=per_program,
        **options(2 * block * per_program),
    )


def _tile(half: int, heads: int, kv_heads: int) -> tuple[int, int]:
    """BLOCK and HEADS: half a head, padded to a power of two, and the number of heads per program."""
    block = triton.next_power_of_2(half)
    return block, max(min(TILE // (2 * block), triton.next_power_of_2(min(heads, kv_heads))), 1)


def variants(capability: int) -> list[Variant]:
    """The forms for Llama's 16 heads of 128: one token per row, or any number."""
    block, per_program = _tile(64, 16, 16)
    constants = {"HALF": 64, "BLOCK": block, "HEADS": per_program}
    strides = {f"{kv}_{of}_stride" for kv in "kv" for of in ("batch", "slot")}
    return [
        Variant(
            f"{name}-{dtype}",
            rope_kv_write_kernel,
            dict.fromkeys(("qkv_ptr", "k_ptr", "v_ptr", "q_ptr"), f"*{dtype}")
            | {"table_ptr": "*fp32", "positions_ptr": "*i32", "slots_ptr": "*i32"},
            constants | tokens,
            options(2 * block * per_program),
            divisible=frozenset({"heads", "kv_heads"} | strides),
        )
        for dtype in ("bf16", "fp32")
        for name, tokens in (("decode", {"tokens": 1}), ("prefill", {}))
    ]
