"""Weights in 4 bits: their order, their error, and the nodes that read them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from flashjanus.engine.device import native
from flashjanus.engine.errors import SchemaError
from flashjanus.engine.formats import Format, Weight, nibbles
from flashjanus.engine.formats.nibbles import INT4
from flashjanus.engine.formats.rows import INT8
from flashjanus.engine.formats.tiles import TILES
from flashjanus.engine.graph import Graph
from flashjanus.engine.ops import get_op
from flashjanus.engine.plan import lower
from flashjanus.engine.runtime.executor import Executor
from flashjanus.engine.specs import Dim, TensorSpec

F32, BF16, CPU = torch.float32, torch.bfloat16, torch.device("cpu")
R = Dim.symbol("R")
SHAPES = {"gate_up": (128, 64), "down": (64, 64), "fc": (32, 64)}


def stored(beside: Format) -> dict[str, Weight]:
    return {name: Weight(name, shape, BF16, (beside, INT4)) for name, shape in SHAPES.items()}


WEIGHTS = stored(TILES[INT8])


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
    [
        (64, 3, None, "4-bit weights need multiples of 16 x 32, got 24 x 64"),
        (64, 2, 32, "a residual of 16 columns, got 32"),
    ],
)
def test_what_does_not_fit_says_why(columns: int, panels: int, residual: int | None, reason: str) -> None:
    weight, scale = INT4.specs(16 * panels, columns, BF16)
    stream = None if residual is None else TensorSpec((1, residual), F32)
    specs = [TensorSpec((1, columns), BF16), weight, None, scale, None, None, stream]
    with pytest.raises(SchemaError, match=f"linear: .*{reason}"):
        get_op("linear").schema.bind("linear", specs, dict(format="int4", act="gated_silu"))


def layer(int4: bool, weights: Mapping[str, Weight] = WEIGHTS) -> Graph:
    """An MLP: norm, gated linear, linear, residual add and norm; and a linear with nothing after it."""
    g = Graph("layer", {"norm": TensorSpec((64,), F32), **weights}, decodes=int4)

    def linear(x: object, name: str) -> object:
        return g.add("linear", x, g.weight(name), label=f"{name}.out")

    h = g.add("cast", g.input("h", (R, 1, 64), F32), dtype=F32, label="h32")
    normed = g.add("rms_norm", h, g.weight("norm"), eps=1e-6, dtype=BF16, label="normed")
    down = linear(g.add("silu_mul", linear(normed, "gate_up")), "down")
    x, normed = g.add("add_rms_norm", h, down, g.weight("norm"), eps=1e-6, dtype=BF16, label="add")
    g.output("x", x)
    g.output("y", linear(normed, "fc"))
    return g


@pytest.mark.parametrize(("rows", "op"), [(1, "linear/int4"), (4, "linear/int4"), (5, "linear/int8_tiles")])
def test_few_rows_read_4_bits_where_a_graph_decodes(rows: int, op: str) -> None:
    nodes = lower(layer(int4=True), {"R": rows}, CPU).nodes
    assert [node.work for node in nodes] == ["cast", op, op, op]
    assert [node.work for node in lower(layer(int4=False), {"R": rows}, CPU).nodes] == [
        "cast",
        *3 * ["linear/int8_tiles"],
    ]
    parts = [node.work for node in lower(layer(int4=True), {"R": rows}, CPU, fused=False).nodes]
    assert parts == ["cast", "rms_norm", op, "silu_mul", op, "add_rms_norm", op]


@pytest.mark.parametrize(("rows", "op"), [(1, "linear/int4"), (4, "linear/int4"), (5, "linear/int8")])
def test_few_rows_read_4_bits_beside_rows_of_8_bits(rows: int, op: str) -> None:
    nodes = lower(layer(int4=True, weights=stored(INT8)), {"R": rows}, CPU).nodes
    assert [node.work for node in nodes if node.op == "linear"] == 3 * [op]
    if rows <= 4:
        assert [node.work for node in nodes] == ["cast", op, op, op]
        assert {node.implementation.name for node in nodes[1:]} == {"native"}


@pytest.mark.parametrize("implementation", ["native", "torch"])
def test_the_numbers_are_those_of_the_weights(implementation: str) -> None:
    generator = torch.Generator().manual_seed(2)
    h, weights, exact = torch.randn(3, 1, 64, generator=generator), {"norm": torch.ones(64)}, {}
    for name, (n, k) in SHAPES.items():
        q, scale = INT8.pack(torch.randn(n, k, generator=generator) / 8)
        weights |= WEIGHTS[name].pack(q, scale)
        exact[name] = INT4.unpack(*INT4.pack(q, scale))
    plan = lower(layer(int4=True), {"R": 3}, CPU, {"linear": (implementation,)})
    assert [node.work for node in plan.nodes[1:]] == 3 * ["linear/int4"]
    executor = Executor(plan, weights)
    executor.inputs["h"].copy_(h)
    executor.run()
    norm = torch.nn.functional.rms_norm
    gate, up = (norm(h, (64,)) @ exact["gate_up"].T).chunk(2, -1)
    x = h + (torch.nn.functional.silu(gate) * up) @ exact["down"].T
    for name, expected in (("x", x), ("y", norm(x, (64,)) @ exact["fc"].T)):
        got = executor.outputs[name].float()
        assert (got - expected).norm() <= 0.015 * expected.norm()  # of activations in 8 bits


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_share_the_work_without_changing_it(threads: int) -> None:
    op = get_op("linear")
    call = op.example(torch.Generator().manual_seed(0), BF16, m=3, k=416, n=208, norm=True, of="int4")
    outputs = []
    before = torch.get_num_threads()
    for count in (1, threads):
        y = torch.full((3, 1, 208), torch.nan, dtype=BF16)
        torch.set_num_threads(count)
        try:
            op.implementations["native"].run(*call.args, y, **call.attrs)
        finally:
            torch.set_num_threads(before)
        outputs.append(y)
    assert torch.equal(*outputs)


@pytest.mark.parametrize("isa", native.instruction_sets() if native.available() is None else [])
@pytest.mark.parametrize("case", [dict(norm=True, act="gated_silu"), dict(residual=True)], ids=["gated", "residual"])
def test_a_row_has_the_same_bits_beside_others(
    isa: str, case: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "run", lambda name, run=native.run, **members: run(name, isa=isa, **members))
    op = get_op("linear")
    call = op.example(torch.Generator().manual_seed(0), BF16, m=4, k=416, n=224, of="int4", **case)
    x, *weights, residual = call.args

    def product(rows: slice) -> torch.Tensor:
        stream = None if residual is None else residual[rows]
        y = torch.full((rows.stop - rows.start, 1, 112 if residual is None else 224), torch.nan)
        op.implementations["native"].run(x[rows], *weights, stream, y, **call.attrs)
        return y

    alone = torch.cat([product(slice(row, row + 1)) for row in range(4)])
    for first, last in ((0, 2), (1, 4), (0, 4)):
        assert torch.equal(product(slice(first, last)), alone[first:last])
