"""What ops are said to cost: floating-point operations and bytes of one call, of many ops counted by hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from flashjanus.engine.ops import Op, all_ops, get_op
from flashjanus.engine.specs import TensorSpec, product, static
from op_check import make_call, specs_of
from torch.utils.flop_counter import FlopCounterMode

MOVES = {
    *("add", "advance", "branch_rows", "cast", "copy_slot", "load_slot", "patchify", "pixel_shuffle"),
    *("to_nchw", "to_nhwc", "upsample_nearest"),
}
"""Ops that count as memory traffic alone."""
COSTS: list[tuple[str, dict[str, Any], int, int]] = [
    ("silu", dict(m=7, c=33), 5 * 7 * 66, 2 * 7 * 66 * 2),
    ("gelu", dict(m=7, c=33), 5 * 7 * 66, 2 * 7 * 66 * 2),
    ("silu_mul", dict(m=7, c=33), 5 * 7 * 33, 7 * (66 + 33) * 2),
    # every query with every key, once for the scores and once for the values
    (
        "attention",
        dict(b=2, n=5, s=40, heads=4, kv_heads=2, head_dim=8, rule="prefix"),
        2 * (2 * 2 * 5 * 4 * 40 * 8),
        2 * (2 * 5 * 4 * 8 + 2 * 40 * 2 * 8) * 2 + (2 + 2 * 2 * 5) * 4,
    ),
    (
        "conv2d",
        dict(size=6, cin=8, cout=5, kernel=3, stride=1, padding=1, bias=True),
        2 * (2 * 6 * 7) * 5 * (8 * 3 * 3),
        (2 * 6 * 7 * 8 + 5 * 8 * 3 * 3 + 5 + 2 * 6 * 7 * 5) * 2,
    ),
    (
        "depthwise_norm",
        dict(size=3, channels=5, bias=False),
        (2 * 7 * 7 + 4) * (2 * 3 * 5 * 5),
        2 * 3 * 5 * 5 * (4 + 2) + 7 * 7 * 5 * 2 + 5 * 4,
    ),
    ("embed", dict(b=1, n=9, d=17, images=6), 0, 9 * 17 * (2 + 4)),  # the rows that are read, not the table
    # z of two images, v of three branches
    (
        "flow_update",
        dict(images=2, guided=1, h=3, w=4, c=4, p=2),
        5 * (2 * 4 * 6 * 8),
        3 * 3 * 4 * 16 * 2 + 2 * 4 * 6 * 8 * 4,
    ),
    (
        "linear",
        dict(m=2, k=72, n=38, norm=True, act="gated_silu"),
        2 * 2 * 72 * 38,
        (2 * 72 + 72) * 4 + (38 * 72 + 2 * 19) * 2,
    ),
    ("gelu_grn_stats", dict(b=2, p=36, c=64), 8 * 2 * 36 * 64, 2 * 2 * 36 * 64 * 2 + 2 * 64 * 4),
    ("grn_apply", dict(b=2, p=36, c=64), 8 * 2 * 36 * 64, 2 * 2 * 36 * 64 * 2 + (2 * 64 + 2 * 64) * 4),
    (
        "group_norm_silu",
        dict(size=3, c=6, groups=3, silu=False),
        10 * (2 * 3 * 4 * 6),
        2 * (2 * 3 * 4 * 6) * 2 + 2 * 6 * 4,
    ),
    # half a byte for a weight, two for the scale of 32
    (
        "linear",
        dict(m=2, k=96, n=160, norm=True, act="gated_silu", of="int4"),
        2 * 2 * 96 * 160,
        (2 * 96 + 96) * 4 + 160 * 96 // 2 + 160 * 3 * 2 + 2 * 80 * 2,
    ),
    ("layer_norm", dict(m=3, c=1001), 7 * 6 * 1001, 6 * 1001 * (4 + 2) + 2 * 1001 * 4),
    ("add_layer_norm", dict(m=3, c=1001), 7 * 6 * 1001, 6 * 1001 * (4 + 2 + 4 + 2) + 2 * 1001 * 4),
    ("linear", dict(m=3, k=64, n=96, bias=True), 2 * 3 * 64 * 96, (3 * 64 + 64 * 96 + 96 + 3 * 96) * 2),
    (
        "linear",
        dict(m=2, k=592, n=19, bias=True, of="int8"),
        2 * 2 * 592 * 19,
        2 * 592 * 2 + 19 * 592 + 19 * 4 + 19 * 2 + 2 * 19 * 2,
    ),
    (
        "linear",
        dict(m=5, k=33, n=7, bias=True, of="int8", quantized=True),
        2 * 5 * 33 * 7,
        5 * 33 + 5 * 4 + 7 * 33 + 7 * 4 + 7 * 2 + 5 * 7 * 2,
    ),
    (
        "norm_concat",
        dict(images=2, guided=1, p=6, c=16, e=8),
        4 * (3 * 6 * 16),
        3 * 6 * 16 * 2 + 16 * 4 + 2 * 6 * 8 * 4 + 3 * 6 * 24 * 4,
    ),
    ("quantize_rows", dict(m=1, c=64), 3 * 3 * 64, 3 * 64 * (2 + 1) + 3 * 4),
    (
        "residual_modulate",
        dict(images=2, guided=1, p=3, c=8, steps=4),
        3 * (3 * 3 * 8),
        3 * 3 * 8 * (2 + 4 + 4),
    ),
    ("rms_norm", dict(m=5, c=1000), 4 * 15 * 1000, 15 * 1000 * (4 + 2) + 1000 * 4),
    ("add_rms_norm", dict(m=5, c=1000), 4 * 15 * 1000, 15 * 1000 * (4 + 2 + 4 + 2) + 1000 * 4),
    ("rms_norm_quantized", dict(m=5, c=1000), 7 * 15 * 1000, 15 * 1000 * (2 + 1) + 1000 * 4 + 15 * 4),
    (
        "add_rms_norm_quantized",
        dict(m=5, c=1000),
        7 * 15 * 1000,
        15 * 1000 * (4 + 2 + 4 + 1) + 1000 * 4 + 15 * 4,
    ),
    # q, k and v of (4 + 2 + 2) heads, read and written
    (
        "rope_kv_write",
        dict(b=2, n=3, heads=4, kv_heads=2, head_dim=8),
        3 * (2 * 3 * 8 * 8),
        2 * (2 * 3 * 8 * 8) * 2,
    ),
    ("silu_mul_quantized", dict(m=1, c=64), 8 * 3 * 64, 3 * (128 * 2 + 64) + 3 * 4),
    # x and y in float32; then a total in float32 and a slot in bfloat16, more than two slots
    ("step_cache", dict(images=2, guided=1, n=3, c=8), 4 * (3 * 3 * 8), 3 * 3 * 8 * (2 * 4 + 4 + 2)),
    (
        "linear",
        dict(m=3, k=96, n=160, norm=True, act="gated_silu", of="tiles"),
        2 * 3 * 96 * 160,
        (3 * 96 + 96) * 4 + (160 * 96 + 3 * 80) * 2,
    ),
    ("time_embedding", dict(rows=2, steps=3, channels=64), 2 * 6 * 64, 6 * 4 + 6 * 64 * 2),
]


def cost(name: str, case: dict[str, Any], dtype: torch.dtype = torch.bfloat16) -> tuple[int, int]:
    op = get_op(name)
    call = make_call(op, case, dtype, False)
    inputs = specs_of(call)
    bound = op.schema.bind(name, inputs, call.attrs)
    outputs = op.schema.infer(name, inputs, call.attrs)
    return op.flops(bound, call.attrs), op.bytes_moved(bound, call.attrs, [*inputs, *outputs])


@pytest.mark.parametrize(("name", "case", "flops", "nbytes"), COSTS, ids=[name for name, *_ in COSTS])
def test_an_op_costs_what_it_computes_and_moves(name: str, case: dict[str, Any], flops: int, nbytes: int) -> None:
    assert cost(name, case) == (flops, nbytes)


def test_sampling_looks_ten_times_at_each_logit() -> None:
    assert cost("sample_token", dict(rows=4, vocab=50))[0] == 10 * 4 * 50


@pytest.mark.parametrize("name", sorted(MOVES))
def test_what_only_moves_has_no_operations(name: str) -> None:
    op = get_op(name)
    assert all(cost(name, dict(case))[0] == 0 for case in op.cases)


def nbytes(specs: Iterable[TensorSpec | None]) -> int:
    return sum(static(product(s.shape)) * s.dtype.itemsize for s in specs if s is not None)


@pytest.mark.parametrize("op", all_ops().values(), ids=lambda op: op.name)
def test_no_op_costs_less_than_its_products_or_moves_more_than_its_tensors(op: Op) -> None:
    """What can be said of every op without counting by hand: the multiplications that torch counts in the reference
    are done, outputs are written, and no tensor is read or written twice."""
    for case in op.cases:
        call = make_call(op, case, op.dtypes[-1], False)
        inputs = specs_of(call)
        outputs = op.schema.infer(op.name, inputs, call.attrs)
        changed = [spec for arg, spec in zip(op.schema.inputs, inputs, strict=True) if arg.mutated]
        with FlopCounterMode(display=False) as products:
            op.reference(*call.args, **call.attrs)
        flops, moved = cost(op.name, dict(case), op.dtypes[-1])
        assert flops >= products.get_total_flops(), case
        assert nbytes(outputs) <= moved <= nbytes([*inputs, *outputs, *changed]), case
