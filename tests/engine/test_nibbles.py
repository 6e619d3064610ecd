"""Weights in 4 bits: their order, their error, and the nodes that read them."""

from __future__ import annotations

import pytest
import torch
from flashjanus.engine.device import native
from flashjanus.engine.errors import SchemaError
from flashjanus.engine.formats import nibbles, tiles
from flashjanus.engine.formats.nibbles import INT4
from flashjanus.engine.formats.rows import quantize
from flashjanus.engine.graph import Graph
from flashjanus.engine.ops import get_op
from flashjanus.engine.plan import lower
from flashjanus.engine.runtime.executor import Executor
from flashjanus.engine.specs import Dim, TensorSpec

F32, BF16, CPU = torch.float32, torch.bfloat16, torch.device("cpu")
needs_amx = pytest.mark.skipif(native.amx_available() is not None, reason=str(native.amx_available()))
R = Dim.symbol("R")
SHAPES = {"gate_up": (128, 64), "down": (64, 64), "fc": (32, 64)}


def test_a_byte_holds_two_columns_of_an_output() -> None:
    q = torch.randint(-8, 8, (32, 96), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    packed = nibbles.packed(q)
    assert (packed.shape, packed.dtype) == (INT4.specs(32, 96, BF16)[0].shape, torch.uint8)
    for n, c in ((0, 0), (5, 3), (17, 42), (31, 91)):
        byte = packed[n // 16, c // 32, c % 32 // 8, n % 16 * 4 + c % 4].item()
        assert byte & 15 == q[n, c // 8 * 8 + c % 4] + 8
        assert byte >> 4 == q[n, c // 8 * 8 + c % 4 + 4] + 8
    assert torch.equal(nibbles.unpacked(packed), q)


def test_the_value_of_largest_magnitude_is_kept_and_the_others_are_within_half_a_step() -> None:
    weight = torch.randn(48, 160, generator=torch.Generator().manual_seed(1))
    weight[3, 32:64] = 0
    packed, scale = INT4.pack(weight)
    assert (scale.shape, scale.dtype) == (INT4.specs(48, 160, BF16)[1].shape, BF16)
    groups = weight.view(48, 5, 32)
    error = (INT4.unpack(packed, scale) - weight).view(48, 5, 32)
    extreme = groups.abs().argmax(2, keepdim=True)
    steps = scale.transpose(1, 2).reshape(48, 5, 1).float()
    assert (error.gather(2, extreme).abs() <= 2**-8 * groups.gather(2, extreme).abs()).all()
    # values opposite to the extreme one may lie beyond +7
    inside = groups / torch.where(steps == 0, 1, steps) <= 7.5
    assert (error.abs() <= 0.5001 * steps.abs())[inside].all()
    assert not error[3, 1].any()


@pytest.mark.parametrize(
    ("columns", "panels", "residual", "reason"),
    [(64, 3, None, "as many panels of gates as of ups, got 3"), (64, 2, 32, "a residual of 16 columns, got 32")],
)
def test_what_does_not_fit_says_why(columns: int, panels: int, residual: int | None, reason: str) -> None:
    weight, scale = INT4.specs(16 * panels, columns, BF16)
    stream = None if residual is None else TensorSpec((1, residual), F32)
    specs = [TensorSpec((1, columns), BF16), None, weight, scale, stream]
    with pytest.raises(SchemaError, match=f"int4_linear: expected {reason}"):
        get_op("int4_linear").schema.bind("int4_linear", specs, dict(gated=True))


def layer(int4: bool) -> Graph:
    """An MLP: norm, gated linear, linear, residual add and norm; and a linear with nothing behind it."""
    specs = {"norm": TensorSpec((64,), F32)}
    for name, (n, k) in SHAPES.items():
        weight, scale = INT4.specs(n, k, BF16)
        specs |= {name: TensorSpec((n, k), torch.int8, tiled=True), f"{name}.scale": TensorSpec((n,), F32)}
        specs |= {f"{name}.int4": weight, f"{name}.int4.scale": scale}
    g = Graph("layer", specs)
    for name in SHAPES if int4 else ():
        g.int4[name] = g.weight(f"{name}.int4"), g.weight(f"{name}.int4.scale")

    def linear(x: object, name: str) -> object:
        return g.add("linear_w8a16", x, g.weight(name), g.weight(f"{name}.scale"), None, label=f"{name}.out")

    h = g.add("cast", g.input("h", (R, 1, 64), F32), dtype=F32, label="h32")
    normed = g.add("rms_norm", h, g.weight("norm"), eps=1e-6, dtype=BF16, label="normed")
    down = linear(g.add("silu_mul", linear(normed, "gate_up")), "down")
    x, normed = g.add("add_rms_norm", h, down, g.weight("norm"), eps=1e-6, dtype=BF16, label="add")
    g.output("x", x)
    g.output("y", linear(normed, "fc"))
    return g


@pytest.mark.parametrize(("rows", "op"), [(1, "int4_linear"), (4, "int4_linear"), (5, "tiled_linear")])
def test_few_rows_read_the_4_bits_that_a_graph_names(rows: int, op: str) -> None:
    nodes = lower(layer(int4=True), {"R": rows}, CPU).nodes
    assert [node.op for node in nodes] == ["cast", op, op, op]
    assert [node.op for node in lower(layer(int4=False), {"R": rows}, CPU).nodes] == ["cast", *3 * ["tiled_linear"]]
    parts = [node.op for node in lower(layer(int4=True), {"R": rows}, CPU, fused=False).nodes]
    assert parts == ["cast", "rms_norm", op, "silu_mul", op, "add_rms_norm", op]


@pytest.mark.parametrize("implementation", [pytest.param("amx", marks=needs_amx), "torch"])
def test_the_numbers_are_those_of_the_weights(implementation: str) -> None:
    generator = torch.Generator().manual_seed(2)
    h, weights, exact = torch.randn(3, 1, 64, generator=generator), {"norm": torch.ones(64)}, {}
    for name, (n, k) in SHAPES.items():
        packed, scales = INT4.pack(torch.randn(n, k, generator=generator) / 8)
        exact[name] = INT4.unpack(packed, scales)
        q, scale = torch.empty(n, k, dtype=torch.int8), torch.empty(n)
        quantize(exact[name].clone(), q, scale)
        weights |= {name: tiles.tile(q), f"{name}.scale": scale, f"{name}.int4": packed, f"{name}.int4.scale": scales}
    executor = Executor(lower(layer(int4=True), {"R": 3}, CPU, {"int4_linear": (implementation,)}), weights)
    executor.inputs["h"].copy_(h)
    executor.run()
    norm = torch.nn.functional.rms_norm
    gate, up = (norm(h, (64,)) @ exact["gate_up"].T).chunk(2, -1)
    x = h + (torch.nn.functional.silu(gate) * up) @ exact["down"].T
    for name, expected in (("x", x), ("y", norm(x, (64,)) @ exact["fc"].T)):
        got = executor.outputs[name].float()
        assert (got - expected).norm() <= 0.015 * expected.norm()  # of activations in 8 bits


@needs_amx
@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_share_the_work_without_changing_it(threads: int) -> None:
    op = get_op("int4_linear")
    call = op.example(torch.Generator().manual_seed(0), BF16, m=3, k=416, n=208, norm=True)
    outputs = []
    before = torch.get_num_threads()
    for count in (1, threads):
        y = torch.full((3, 1, 208), torch.nan, dtype=BF16)
        torch.set_num_threads(count)
        try:
            op.implementations["amx"].run(*call.args, y, **call.attrs)
        finally:
            torch.set_num_threads(before)
        outputs.append(y)
    assert torch.equal(*outputs)
