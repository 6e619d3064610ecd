"""A call that does not fit its schema is an error that names op, argument, expected and got."""

from __future__ import annotations

import pytest
import torch
from flashjanus.engine.errors import SchemaError
from flashjanus.engine.graph import Graph
from flashjanus.engine.ops import Schema, get_op
from flashjanus.engine.ops.base import define
from flashjanus.engine.ops.flow_update import COLUMNS
from flashjanus.engine.specs import Dim, TensorSpec

F32, BF16, I32 = torch.float32, torch.bfloat16, torch.int32
R = Dim.symbol("R")
REST = [None] * 5
"""What a linear may read besides x and weight."""


def f32(*shape: int | Dim) -> TensorSpec:
    return TensorSpec(shape, F32)


def refused(op: str, specs: list[TensorSpec | None], **attrs: object) -> str:
    with pytest.raises(SchemaError) as caught:
        get_op(op).schema.infer(op, specs, attrs)
    return str(caught.value)


def test_parse_reads_names_dtypes_sizes_and_flags() -> None:
    schema = Schema.parse("x: T[*, 2*K], bias?: f32[K], cache!: T[7, S] -> y: O[*, K+S], n: i32[]")
    assert [(a.name, a.dtype, a.shape, a.optional, a.mutated) for a in schema.inputs] == [
        ("x", "T", ("*", "2*K"), False, False),
        ("bias", "f32", ("K",), True, False),
        ("cache", "T", ("7", "S"), False, True),
    ]
    assert [a.name for a in schema.outputs] == ["y", "n"]
    assert str(schema.inputs[0]) == "T[*, 2*K]"


def test_sizes_and_dtypes_are_shared_between_arguments() -> None:
    schema = get_op("linear").schema
    assert schema.infer("linear", [f32(R, 5, 8), f32(3, 8), *REST], {}) == [f32(R, 5, 3)]
    message = refused("linear", [f32(2, 8), f32(3, 9), *REST])
    assert message == "linear: argument 'weight' expected in format dense as f32[3, 8], got f32[3, 9]"


def test_a_wrong_dtype_is_named() -> None:
    message = refused("linear", [f32(2, 8), TensorSpec((3, 8), BF16), *REST])
    assert message == "linear: argument 'weight' expected in format dense as f32[3, 8], got bf16[3, 8]"
    message = refused("advance", [f32(2), f32(2), None, None, None])
    assert message == "advance: argument 'position' expected i32[B], got f32[2]"


def test_a_wrong_rank_is_named() -> None:
    message = refused("conv2d", [f32(1, 4, 4), f32(8, 3, 1, 1), None], stride=1, padding=0)
    assert message == "conv2d: argument 'x' expected T[B, H, W, I], got f32[1, 4, 4]"


def test_leading_sizes_are_shared() -> None:
    message = refused("add", [f32(2, 3, 8), f32(3, 8)], dtype=F32)
    assert "argument 'y' expected Y[* with *=[2, 3], C with C=8], got f32[3, 8]" in message


def test_a_multiple_must_divide() -> None:
    assert get_op("silu_mul").schema.infer("silu_mul", [f32(R * 3, 2 * R)], {}) == [f32(R * 3, R)]
    assert "argument 'x' expected" in refused("silu_mul", [f32(3, 7)])
    assert "argument 'x' expected" in refused("silu_mul", [f32(3, R)])


def test_literal_sizes_are_checked() -> None:
    kernel = [f32(1, 5, 5, 4), f32(5, 5, 4), None, f32(4)]
    message = refused("depthwise_norm", kernel, eps=1e-6, dtype=F32)
    assert "argument 'weight' expected T[7, 7, C with C=4], got f32[5, 5, 4]" in message


def test_symbols_equal_themselves_alone() -> None:
    assert "argument 'y'" in refused("add", [f32(R, 8), f32(R + 1, 8)], dtype=F32)
    assert "argument 'y'" in refused("add", [f32(R, 8), f32(2, 8)], dtype=F32)
    assert get_op("add").schema.infer("add", [f32(R + 1, 8), f32(1 + R, 8)], {"dtype": BF16})[0].dtype is BF16


def test_missing_arguments_and_wrong_counts_are_named() -> None:
    assert refused("linear", [f32(2, 8), None, *REST]) == "linear: argument 'weight' is missing, expected any[...]"
    assert refused("linear", [f32(2, 8)]) == "linear: expected 7 arguments, got 1"


def test_missing_attributes_are_named() -> None:
    assert "cast: output 'y' needs the attribute dtype=" in refused("cast", [f32(2, 8)])
    assert "size 'N' of an output is not known" in refused("patchify", [f32(1, 3, 8, 8)], patch=4, dtype=F32)


def test_the_node_s_label_is_in_the_message() -> None:
    g = Graph("g", {"w": f32(3, 9)})
    with pytest.raises(SchemaError, match=r"^linear \(llm.0.qkv\): argument 'weight' expected in format dense"):
        g.add("linear", g.input("x", (2, 8), F32), g.weight("w"), None, label="llm.0.qkv")
    assert not g.nodes


@pytest.mark.parametrize(
    ("op", "specs", "attrs", "message"),
    [
        ("flow_update", [f32(3, 2, 2, 16), f32(1, 4, 4, 4)], {}, "expected R <= B <= 2 R branches .*B = 3, R = 1"),
        ("flow_update", [f32(1, 2, 2, 16), f32(2, 4, 4, 4)], {}, "expected R <= B <= 2 R branches .*B = 1, R = 2"),
        ("flow_update", [f32(1, 2, 2, 12), f32(1, 4, 4, 4)], {}, r"expected v\[B, H, W, C p p\]"),
        ("flow_update", [f32(1, 2, 2, 16), f32(1, 4, 4, 6)], {}, r"expected v\[B, H, W, C p p\]"),
        ("branch_rows", [f32(2, 3, 4)], {"B": 5, "dtype": F32}, "expected R <= B <= 2 R"),
        ("branch_rows", [f32(2, 3, 4)], {"B": 1, "dtype": F32}, "expected R <= B <= 2 R"),
        ("norm_concat", [f32(5, 3, 4), f32(4), f32(2, 3, 4)], {"dtype": F32}, "expected R <= B <= 2 R"),
    ],
)
def test_impossible_rows_are_refused(op: str, specs: list[TensorSpec], attrs: dict[str, object], message: str) -> None:
    more: list[TensorSpec] = []
    if op == "flow_update":
        v, z = specs
        rows = z.shape[0]
        more = [z, f32(rows, *v.shape[1:]), f32(rows, 3, COLUMNS), *[TensorSpec((rows,), I32)] * 2]
    with pytest.raises(SchemaError, match=f"^{op}: .*{message}"):
        get_op(op).schema.infer(op, [*specs, *more], attrs)


def test_a_slot_outside_of_the_cache_is_refused() -> None:
    cache = f32(2, 3, 6, 1, 4)
    specs = [cache, cache, TensorSpec((3,), I32)]
    get_op("copy_slot").schema.bind("copy_slot", specs, {"slot": 5})
    for slot in (6, -1):
        with pytest.raises(SchemaError, match=f"one of the cache's 6 slots, got {slot}"):
            get_op("copy_slot").schema.bind("copy_slot", specs, {"slot": slot})


def test_heads_must_fill_the_row() -> None:
    specs = [f32(1, 2, 30), f32(9, 2, 4), *[TensorSpec((1, 2), I32)] * 2, *[f32(1, 5, 1, 8)] * 2]
    with pytest.raises(SchemaError, match=r"rope_kv_write: argument 'qkv' .*\(2 \+ 2\*1\) \* 8, got 30"):
        get_op("rope_kv_write").schema.bind("rope_kv_write", specs, {"heads": 2})


def test_a_strided_convolution_needs_a_number() -> None:
    with pytest.raises(SchemaError, match="needs its input size as a number, got the symbol R"):
        get_op("conv2d").schema.infer("conv2d", [f32(1, R, 4, 3), f32(8, 3, 2, 2), None], dict(stride=2, padding=0))


def test_an_op_registers_once() -> None:
    op = get_op("silu")
    with pytest.raises(SchemaError, match="op 'silu' is registered twice"):
        define("silu", "x: T[*, C] -> y: T[*, C]", op.reference, op.cases, op.example)
    assert get_op("silu") is op
