"""The contribution of low-rank adapters to the rows that have one, in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import Variant

COLUMNS = 64
OUTPUTS = 64
"""Columns of x and of y at a time. Chosen by reasoning, not measured: factors are small and stay in the L2 cache."""
MAX_RANK = 128
"""The largest rank: a program holds the products of its tokens with the first factor in registers."""


def tokens_of(tokens: int, rank: int) -> int:
    """Tokens per program: at least what a tensor core takes at once, and enough that the factors are read seldom. With
    large ranks there are fewer, so that they stay in registers."""
    return 16 if tokens <= 16 else 64 if rank <= 64 else 32


@triton.jit
def low_rank_kernel(
    x_ptr,  # [rows, tokens, columns], where GATED [rows, tokens, 2 * columns]
    norm_ptr,  # [columns] float32, or None
    adapter_ptr,  # [rows] int32
    ranks_ptr,  # [slots, PARTS] int32
    scale_ptr,  # [slots, PARTS] float32
    a_ptr,  # [slots, columns, PARTS * rank]
    b_ptr,  # [slots, rank, outputs]
    y_ptr,  # [rows, tokens, outputs]
    y_row_stride,
    y_token_stride,
    tokens,
    columns,
    outputs,
    first,
    rank,
    slots,
    eps,
    PARTS: tl.constexpr,
    GATED: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    RANK: tl.constexpr,
):
    """One program per row and block of tokens. It returns at once if the row has no adapter."""
    row = tl.program_id(0)
    slot = tl.load(adapter_ptr + row) - 1
    if slot >= 0 and slot < slots:
        t = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
        there = t < tokens
        of_token = columns * 2 if GATED else columns
        x_at = x_ptr + row.to(tl.int64) * tokens * of_token + t.to(tl.int64)[:, None] * of_token
        y_at = y_ptr + row.to(tl.int64) * y_row_stride + t.to(tl.int64)[:, None] * y_token_stride
        k, o, q = tl.arange(0, COLUMNS), tl.arange(0, OUTPUTS), tl.arange(0, RANK)
        inverse = tl.full((TOKENS,), 1.0, tl.float32)
        if norm_ptr is not None:
            squares = tl.zeros((TOKENS,), tl.float32)
            for start in range(0, columns, COLUMNS):
                inside = there[:, None] & (start + k < columns)[None, :]
                x = tl.load(x_at + (start + k)[None, :], mask=inside, other=0.0).to(tl.float32)
                squares += tl.sum(x * x, axis=1)
            inverse = 1.0 / tl.sqrt_rn(squares / columns + eps)
        begin = 0
        for part in tl.static_range(PARTS):
            used = tl.load(ranks_ptr + slot * PARTS + part)
            width = first if part == 0 else (outputs - first) // (PARTS - 1 if PARTS > 1 else 1)
            if used > 0:
                a_at = a_ptr + slot.to(tl.int64) * columns * PARTS * rank + part * rank
                b_at = b_ptr + slot.to(tl.int64) * rank * outputs + begin
                low = tl.zeros((TOKENS, RANK), tl.float32)
                for start in range(0, columns, COLUMNS):
                    c = start + k
                    inside = there[:, None] & (c < columns)[None, :]
                    x = tl.load(x_at + c[None, :], mask=inside, other=0.0).to(tl.float32)
                    if norm_ptr is not None:
                        weight = tl.load(norm_ptr + c, mask=c < columns, other=0.0)
                        x = x * inverse[:, None] * weight[None, :]
                    if GATED:
                        up = tl.load(x_at + columns + c[None, :], mask=inside, other=0.0).to(tl.float32)
                        x = x / (1.0 + tl.exp(-x)) * up
                    a = tl.load(
                        a_at + c[:, None] * PARTS * rank + q[None, :],
                        mask=(c < columns)[:, None] & (q < used)[None, :],
                        other=0.0,
                    )
                    low = tl.dot(x.to(a.dtype), a, low, input_precision="ieee")
                low *= tl.load(scale_ptr + slot * PARTS + part)
                for start in range(0, width, OUTPUTS):
                    n = start + o
                    b = tl.load(
                        b_at + q[:, None] * outputs + n[None, :],
                        mask=(q < used)[:, None] & (n < width)[None, :],
                        other=0.0,
                    )
                    inside = there[:, None] & (n < width)[None, :]
                    at = y_at + begin + n[None, :]
                    y = tl.load(at, mask=inside, other=0.0).to(tl.float32)
                    y += tl.dot(low.to(b.dtype), b, input_precision="ieee")
                    tl.store(at, y.to(y_ptr.dtype.element_ty), mask=inside)
            begin += width


def launch(
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
    """y[r] += scale[s] (p(x[r]) a[s]) b[s] with s = adapter[r] - 1, in place; p(x) and p(x) a are rounded to a's dtype.

    x [B, N, C], a [S, K, P R] and b [S, R, M] in any float type, norm [K] float32, adapter [B] and ranks [S, P] int32,
    scale [S, P] float32, y [B, N, M], its last axis dense, on one CUDA device (or on a CPU in Triton's interpreter).
    Arguments are checked by the op's schema.
    """
    rows, tokens, outputs = y.shape
    (slots, columns, _), rank = a.shape, b.shape[1]
    block = tokens_of(tokens, rank)
    low_rank_kernel[(rows, triton.cdiv(tokens, block))](
        x.contiguous(),
        norm,
        adapter,
        ranks,
        scale,
        a,
        b,
        y,
        y.stride(0),
        y.stride(1),
        tokens,
        columns,
        outputs,
        first,
        rank,
        slots,
        eps,
        PARTS=scale.shape[1],
        GATED=gated,
        TOKENS=block,
        COLUMNS=COLUMNS,
        OUTPUTS=OUTPUTS,
        RANK=max(16, triton.next_power_of_2(rank)),
        num_warps=4,
        enable_fp_fusion=True,
    )


def variants(capability: int) -> list[Variant]:
    """The released model's linears, whose x is the residual stream before its norm, the output of attention, or a gated
    pair: for prompts and images, and for decoding."""

    def variant(name: str, x: str, y: str, parts: int, norm: bool, gated: bool, tokens: int, rank: int) -> Variant:
        pointers = {
            "x_ptr": f"*{x}",
            "adapter_ptr": "*i32",
            "ranks_ptr": "*i32",
            "scale_ptr": "*fp32",
            "a_ptr": "*bf16",
            "b_ptr": "*bf16",
            "y_ptr": f"*{y}",
        }
        constants = dict(PARTS=parts, GATED=gated, TOKENS=tokens, COLUMNS=COLUMNS, OUTPUTS=OUTPUTS, RANK=rank)
        if norm:
            pointers["norm_ptr"] = "*fp32"
        return Variant(
            f"{name}-{tokens}-{rank}",
            low_rank_kernel,
            pointers,
            constants if norm else {**constants, "norm_ptr": None},
            {"num_warps": 4, "enable_fp_fusion": True},
            floats=frozenset({"eps"}),
            divisible=frozenset({"y_row_stride", "y_token_stride", "columns", "outputs", "first", "rank"}),
        )

    return [
        variant("qkv", "fp32", "bf16", 3, True, False, 64, 64),
        variant("o", "bf16", "fp32", 1, False, False, 16, 128),
        variant("gate_up", "fp32", "bf16", 2, True, False, 16, 16),
        variant("down", "bf16", "fp32", 1, False, True, 32, MAX_RANK),
    ]
