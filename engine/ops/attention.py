"""o_i = softmax(scale q_i K^T) V over the keys that query i may see.

The one rule: query i of sequence b sees key j iff kv_start[b] <= j < kv_end[b, i], or j is its own slot. Causal text,
left padding, cached prefixes, prefix-only tokens (kv_end = end of the prefix) and bidirectional blocks (kv_end = end of
the block for every token in it) are all choices of these numbers. A query always sees its own key, so no row of the
softmax is empty, padding included. Without the index arguments every query sees every key.
Grouped heads: head h reads key/value head h * G // H.
causal=True states in advance what the numbers say: a row's slots are consecutive, and every query sees kv_start up to
its own slot. This lets libraries serve that have no general rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F

from ... import triton_kernels
from ..device.capabilities import widening_bfloat16_is_slower
from ..device.cpu import cpu_flags
from ..errors import SchemaError
from ..specs import Size, TensorSpec, dtype_name, product, static
from . import dims
from .attention_cases import CASES, example, visible
from .base import Given, Reason, Tunable, define
from .schema import Bound


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kv_start: torch.Tensor | None,
    kv_end: torch.Tensor | None,
    slots: torch.Tensor | None,
    scale: float,
    causal: bool = False,
) -> torch.Tensor:
    group = q.shape[2] // k.shape[2]
    k, v = (t.float().repeat_interleave(group, dim=2) for t in (k, v))
    scores = scale * torch.einsum("bnhd,bshd->bhns", q.float(), k)
    if kv_start is not None and kv_end is not None and slots is not None:
        mask = visible(kv_start, kv_end, slots, torch.arange(k.shape[1], device=k.device))
        scores = scores.masked_fill(~mask[:, None], -torch.inf)
        seen = mask.any(1)  # keys that no query sees may hold anything, NaN included
        v = v.masked_fill(~seen[:, :, None, None], 0.0)
        scores = scores.masked_fill(~seen[:, None, None], -torch.inf)
    return torch.einsum("bhns,bshd->bnhd", scores.softmax(-1), v)


def derive(bound: Bound, attrs: Mapping[str, Any]) -> Mapping[str, Size]:
    heads, kv_heads = bound["H"], bound["G"]
    if isinstance(heads, int) and isinstance(kv_heads, int) and heads % kv_heads:
        raise SchemaError(f"expected query heads to be a multiple of key/value heads, got {heads} and {kv_heads}")
    return {}


OP = define(
    "attention",
    "q: T[B, N, H, D], k: T[B, S, G, D], v: T[B, S, G, D], "
    "kv_start?: i32[B], kv_end?: i32[B, N], slots?: i32[B, N] -> o: T[B, N, H, D]",
    reference,
    cases=CASES,
    example=example,
    derive=derive,
    rounding_steps=4.0,
    defaults={"causal": False},
    flops="4*B*N*H*S*D",
)


MAX_HEAD = 256
"""Limit: kMaxHead of csrc/cpu/decode_attention.h."""


def members(call: Given) -> dict[str, Any]:
    batch, keys, kv_heads, head = call.k.shape
    return dict(
        k=call.k,
        v=call.v,
        batch=batch,
        queries=call.q.shape[1],
        keys=keys,
        heads=call.q.shape[2],
        kv_heads=kv_heads,
        head=head,
        batch_stride=call.k.stride(0),
        key_stride=call.k.stride(1),
    )


def head_of(call: Given) -> int:
    return static(call.q.shape[3])


def too_wide_heads(call: Given) -> str | None:
    return f"takes heads of at most {MAX_HEAD} channels, not {head_of(call)}" if head_of(call) > MAX_HEAD else None


def query_by_query(call: Given) -> str | None:
    """Why a kernel that takes one query at a time cannot serve, or None."""
    return "decodes: needs kv_start, kv_end and slots" if call.kv_start is None else too_wide_heads(call)


def in_tiles(call: Given) -> str | None:
    dtype, head = call.q.dtype, head_of(call)
    if dtype is not torch.bfloat16 or head % 32 or head > MAX_HEAD:
        wanted = f"heads of a multiple of 32 channels up to {MAX_HEAD}"
        return f"takes bfloat16 and {wanted}, not {dtype_name(dtype)} and {head}"
    return None


MANY_QUERIES = 8
"""From so many queries of a row on, the kernel for many is faster than one query at a time."""
FEW_PRODUCTS = 1 << 20
"""Of a row's queries with as many keys, by channel. Up to so many, a query at a time is faster than torch and AMX are,
which begin anew with every row. The sizes of the batch and of the cache must not decide: they depend on a row's
neighbors."""


@cache
def many_queries_are_slower() -> str | None:
    """Why the kernel for many queries is not the fastest on this CPU, or None."""
    if "avx512f" not in cpu_flags():
        return "torch attends many queries faster without AVX-512"
    return widening_bfloat16_is_slower()


def native_kernel(call: Given) -> tuple[str, Reason]:
    """The kernel for a call on a CPU, and what may be against it."""
    queries = static(call.q.shape[1])
    if many_queries_are_slower() is None:
        few = queries < MANY_QUERIES
    else:
        few = queries == 1 or queries * static(product(call.q.shape[1:])) <= FEW_PRODUCTS
    return ("decode_attention", query_by_query) if few else ("attention", too_wide_heads)


def slower_native(call: Given) -> str | None:
    return many_queries_are_slower() if native_kernel(call)[0] == "attention" else None


def one_query(call: Given) -> str | None:
    queries = static(call.q.shape[1])
    return query_by_query(call) if queries == 1 else f"decodes: serves one query a row, not {queries}"


OP.kernel(
    "native",
    members,
    lambda call: native_kernel(call)[1](call),
    slower_native,
    kernel=lambda call: native_kernel(call)[0],
)


OP.kernel("amx", members, in_tiles, kernel="tiled_attention")
OP.kernel("cuda", members, one_query, kernel="decode_attention")

MAX_HEAD_TRITON = 128
"""A tile's keys, values and sums must fit a chip's shared memory and registers."""


def too_large_for_triton(call: Given) -> str | None:
    dtype, head = call.q.dtype, head_of(call)
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"takes float32, float16 or bfloat16, not {dtype_name(dtype)}"
    if head > MAX_HEAD_TRITON:
        return f"takes heads of at most {MAX_HEAD_TRITON} channels, not {head}"
    return None


def one(specs: Sequence[TensorSpec | None]) -> bool:
    """True for one query per row."""
    return specs[0] is not None and static(specs[0].shape[1]) == 1


KERNELS = "flashjanus.triton_kernels"
TILES = (
    Tunable(f"{KERNELS}.attention", "WIDE", ((64, 64, 4, 2), (64, 128, 4, 2), (128, 64, 8, 3)), lambda s: not one(s)),
    Tunable(f"{KERNELS}.decode_attention", "PROGRAMS", (256, 1024), one),
    Tunable(f"{KERNELS}.decode_attention", "KEYS", (32, 128), one),
)


@OP.implementation("triton", triton_kernels.refuses, too_large_for_triton, tunables=TILES)
def run_triton(call: Given) -> None:
    from ...triton_kernels import attention, decode_attention  # import triton, which may be absent

    kernel = decode_attention if call.q.shape[1] == 1 else attention
    kernel.launch(*call.tensors.values(), scale=call.scale)


def library(module: str) -> Callable[..., str | None]:
    """For a library of kernels for CUDA devices, which may be absent."""

    def on(device: torch.device, *dtypes: torch.dtype) -> str | None:
        if device.type != "cuda":
            return f"runs on a CUDA device, not on {device.type}"
        extra = module.replace("_", "-")
        return None if find_spec(module) else f'{module} is not installed: `pip install "flashjanus[{extra}]"`'

    return on


def by_flash_attn(call: Given) -> str | None:
    dtype, head = call.q.dtype, head_of(call)
    if dtype not in (torch.float16, torch.bfloat16):
        return f"takes float16 or bfloat16, not {dtype_name(dtype)}"
    if head > MAX_HEAD or head % 8:
        return f"takes heads of at most {MAX_HEAD} channels, a multiple of 8, not {head}"
    if call.kv_start is not None and not call.causal:
        return "has no rule for keys that are hidden in another way than causally"
    return None


@OP.implementation("flash_attn", library("flash_attn"), by_flash_attn)
def run_flash_attn(call: Given) -> None:
    from flash_attn import flash_attn_func, flash_attn_with_kvcache

    q, k, v, kv_start, slots, o = call.q, call.k, call.v, call.kv_start, call.slots, call.o
    if kv_start is None or slots is None:
        o.copy_(flash_attn_func(q, k, v, softmax_scale=call.scale))
        return
    # bottom-right causal: the last query stands at the last of cache_seqlens keys
    lengths = slots[:, -1] + 1
    seen = flash_attn_with_kvcache(
        q, k, v, cache_seqlens=lengths, cache_leftpad=kv_start.contiguous(), softmax_scale=call.scale, causal=True
    )
    # A query before its row's first key sees only itself, but the library gives it zeros.
    row = torch.arange(len(q), device=q.device)[:, None]
    own = v[row, slots.long()].repeat_interleave(q.shape[2] // v.shape[2], dim=2)
    torch.where((slots < kv_start[:, None])[:, :, None, None], own, seen, out=o)


def by_xformers(call: Given) -> str | None:
    head = head_of(call)
    return f"takes heads of a multiple of 8 channels, not {head}" if head % 8 else None


@OP.implementation("xformers", library("xformers"), by_xformers)
def run_xformers(call: Given) -> None:
    from xformers.ops import memory_efficient_attention

    bias = None
    q, k, v, kv_start, kv_end, slots = call.q, call.k, call.v, call.kv_start, call.kv_end, call.slots
    batch, queries, heads, _ = q.shape
    keys = k.shape[1]
    if kv_start is not None and kv_end is not None and slots is not None:
        mask = visible(kv_start, kv_end, slots, torch.arange(keys, device=q.device))
        unseen = ~mask.any(1)[:, :, None, None]  # may be NaN, and 0 * NaN is NaN
        k, v = k.masked_fill(unseen, 0.0), v.masked_fill(unseen, 0.0)
        # its rows must be a multiple of 8 apart
        bias = torch.full((batch, queries, -(-keys // 8) * 8), -torch.inf, dtype=q.dtype, device=q.device)[..., :keys]
        bias.masked_fill_(mask, 0.0)
        bias = bias[:, None].expand(batch, heads, queries, keys)
    k, v = (t.repeat_interleave(heads // t.shape[2], dim=2) if t.shape[2] != heads else t for t in (k, v))
    call.o.copy_(memory_efficient_attention(q, k, v, attn_bias=bias, scale=call.scale))


@OP.implementation("torch")
def run_torch(call: Given) -> None:
    q, k, v, o, scale = call.q, call.k, call.v, call.o, call.scale
    kv_start, kv_end, slots = call.kv_start, call.kv_end, call.slots
    if kv_start is None or kv_end is None or slots is None:
        _attend(q, k, v, None, o, scale)
    elif dims.readable(q):  # row by row, each on its own keys, so that the keys before them cost nothing
        for b in range(len(q)):
            row = slice(b, b + 1)
            first, end = torch.minimum(kv_start[b], slots[b].min()), torch.maximum(kv_end[b].max(), slots[b].max() + 1)
            keys = slice(int(first), int(end))
            mask = visible(kv_start[row], kv_end[row], slots[row], torch.arange(keys.start, keys.stop))
            seen = mask.any(1)
            k_row, v_row = k[row, keys], v[row, keys]
            if not bool(seen.all()):
                k_row, v_row = _without(k_row, seen), _without(v_row, seen)
            # a decoded token sees all of its range: the faster path
            _attend(q[row], k_row, v_row, None if bool(mask.all()) else mask, o[row], scale)
    else:
        mask = visible(kv_start, kv_end, slots, torch.arange(k.shape[1], device=q.device))
        seen = mask.any(1)
        _attend(q, _without(k, seen), _without(v, seen), mask, o, scale)


def _without(x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Keys or values with zeros where no query looks. These may be NaN, and 0 * NaN is NaN."""
    return x.masked_fill(~seen[:, :, None, None], 0.0)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, o: torch.Tensor, scale: float
) -> None:
    o.copy_(
        F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=None if mask is None else mask[:, None],
            scale=scale,
            enable_gqa=q.shape[2] != k.shape[2],
        ).transpose(1, 2)
    )
