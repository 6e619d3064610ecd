"""Products of 8-bit rows with their scales applied in the epilogue, in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import Variant
from .quantize_rows import eight_bits

GROUP = 8
"""Tiles of rows that are processed together, so that tiles of the weight stay in the L2 cache."""
FEW = (16, 64, 256, 4, 4)
SOME = (64, 128, 128, 4, 3)
MANY = (128, 128, 128, 8, 3)
"""Rows, outputs and columns of a tile, warps and stages: for up to 16 rows, up to 64, and any number.

Chosen by reasoning, not measured. With few rows, the kernel waits for the weight: long columns keep many bytes in
flight, and narrow tiles of outputs give each of an H200's 132 SMs some work. With many rows, the tensor cores are the
limit. On Hopper they want 64 rows per warp group, and two programs with 128 x 128 outputs in int8 fit into an SM, so
that one multiplies while the other stores.
"""


def configuration(rows: int) -> tuple[dict[str, int], dict[str, int | bool]]:
    """Tile sizes and launch options for `rows` rows."""
    tile = next((tile for tile in (FEW, SOME) if rows <= tile[0]), MANY)
    sizes = dict(zip(("ROWS", "OUTPUTS", "COLUMNS"), tile[:3], strict=True))
    return sizes, {"num_warps": tile[3], "num_stages": tile[4], "enable_fp_fusion": True}


@triton.jit
def scaled_matmul_kernel(
    q_ptr,  # [rows, columns] int8 or float8e4nv
    weight_ptr,  # [outputs, columns] in q's type
    q_scale_ptr,  # [rows] float32
    scale_ptr,  # [outputs] float32
    bias_ptr,  # [outputs], or None
    y_ptr,  # [rows, outputs]
    rows,
    outputs,
    columns,
    WHOLE: tl.constexpr,  # columns is a multiple of COLUMNS
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One program per tile of y, ordered in columns of GROUP tiles."""
    tiles_down, tiles_across = tl.cdiv(rows, ROWS), tl.cdiv(outputs, OUTPUTS)
    first = tl.program_id(0) // (GROUP * tiles_across) * GROUP
    height = tl.minimum(tiles_down - first, GROUP)
    within = tl.program_id(0) % (GROUP * tiles_across)
    r = (first + within % height) * ROWS + tl.arange(0, ROWS)
    o = within // height * OUTPUTS + tl.arange(0, OUTPUTS)
    k = tl.arange(0, COLUMNS)
    # Rows beyond the last read the last row again and are never stored, so the loop needs no masks.
    q_at = q_ptr + (tl.minimum(r, rows - 1).to(tl.int64) * columns)[:, None] + k[None, :]
    w_at = weight_ptr + (tl.minimum(o, outputs - 1).to(tl.int64) * columns)[None, :] + k[:, None]
    INTEGERS: tl.constexpr = q_ptr.dtype.element_ty == tl.int8
    sums = tl.zeros((ROWS, OUTPUTS), tl.int32 if INTEGERS else tl.float32)
    for start in range(0, columns, COLUMNS):
        if WHOLE:
            q, w = tl.load(q_at + start), tl.load(w_at + start)
        else:
            inside = k < columns - start
            q = tl.load(q_at + start, mask=inside[None, :], other=0.0)
            w = tl.load(w_at + start, mask=inside[:, None], other=0.0)
        # Hopper's tensor cores sum fp8 products with only 14 bits, so add to float32 after every tile.
        sums = tl.dot(q, w, sums, out_dtype=tl.int32) if INTEGERS else tl.dot(q, w, sums, max_num_imprecise_acc=COLUMNS)
    y = sums.to(tl.float32) * tl.load(q_scale_ptr + r, mask=r < rows, other=0.0)[:, None]
    y *= tl.load(scale_ptr + o, mask=o < outputs, other=0.0)[None, :]
    if bias_ptr is not None:
        y += tl.load(bias_ptr + o, mask=o < outputs, other=0.0).to(tl.float32)[None, :]
    y_at = y_ptr + (r.to(tl.int64) * outputs)[:, None] + o[None, :]
    tl.store(y_at, y.to(y_ptr.dtype.element_ty), mask=(r < rows)[:, None] & (o < outputs)[None, :])


def launch(
    q: torch.Tensor,
    q_scale: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    y: torch.Tensor,
) -> None:
    """y = (q weight^T) * q_scale * scale + bias; sums in int32 or float32.

    q [*, K] and weight [N, K] both int8 or both float8_e4m3fn, q_scale [*] and scale [N] float32, bias [N] and y [*, N]
    (contiguous) in any float type, on one CUDA device (or on a CPU in Triton's interpreter). Arguments are checked by
    the op's schema.
    """
    q, (outputs, columns) = q.reshape(-1, q.shape[-1]).contiguous(), weight.shape
    rows = len(q)
    tile, options = configuration(rows)
    grid = (triton.cdiv(rows, tile["ROWS"]) * triton.cdiv(outputs, tile["OUTPUTS"]),)
    scaled_matmul_kernel[grid](
        q,
        weight.contiguous(),
        q_scale.contiguous(),
        scale.contiguous(),
        bias,
        y,
        rows,
        outputs,
        columns,
        WHOLE=columns % tile["COLUMNS"] == 0,
        GROUP=GROUP,
        **tile,
        **options,
    )


def variants(capability: int) -> list[Variant]:
    """The forms of the released model's linears: K is 2048 or 5632, and the number of rows is arbitrary."""
    return [
        Variant(
            f"{tile['ROWS']}-{of}-{y}",
            scaled_matmul_kernel,
            {
                "q_ptr": f"*{of}",
                "weight_ptr": f"*{of}",
                "q_scale_ptr": "*fp32",
                "scale_ptr": "*fp32",
                "y_ptr": f"*{y}",
            },
            {"bias_ptr": None, "WHOLE": True, "GROUP": GROUP, **tile},
            options,
            divisible=frozenset({"outputs", "columns"}),
        )
        for tile, options in map(configuration, (16, 64, 1152))
        for of in eight_bits(capability)
        for y in ("bf16", "fp32")
    ]
