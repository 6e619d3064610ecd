"""Fused linears: which neighbors they take, which they leave, and that the numbers stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from flashjanus.engine.device import native
from flashjanus.engine.errors import PlanError
from flashjanus.engine.graph import Graph, Value
from flashjanus.engine.ops import Given, get_op
from flashjanus.engine.ops.linear import fused
from flashjanus.engine.plan import Plan, PlannedNode, lower
from flashjanus.engine.runtime.executor import Executor
from flashjanus.engine.specs import Dim, TensorSpec
from op_check import POISON

pytestmark = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))

F32, BF16, CPU = torch.float32, torch.bfloat16, torch.device("cpu")
R = Dim.symbol("R")
WEIGHTS = {
    "norm": TensorSpec((8,), F32),
    "norm2": TensorSpec((8,), F32),
    "w": TensorSpec((8, 8), F32),
    "bias": TensorSpec((8,), F32),
    "gate_up": TensorSpec((12, 8), F32),
    "down": TensorSpec((8, 6), F32),
}


def layer(tokens: int = 1) -> tuple[Graph, Value, Value]:
    """norm, linear, residual add and norm, gated linear, linear, residual add and norm: the graph, and what it adds."""
    g = Graph("layer", WEIGHTS)
    h = g.add("cast", g.input("h", (R, tokens, 8), F32), dtype=F32, label="h32")
    o = g.add("linear", norm(g, h), g.weight("w"), None, label="o")
    x, normed = g.add("add_rms_norm", h, o, g.weight("norm2"), eps=1e-6, dtype=F32, label="add")
    gate_up = g.add("linear", normed, g.weight("gate_up"), None, label="gate_up.out")
    down = g.add("linear", g.add("silu_mul", gate_up), g.weight("down"), None, label="down.out")
    x, y = g.add("add_rms_norm", x, down, g.weight("norm"), eps=1e-6, dtype=F32, label="last")
    g.output("x", x)
    g.output("y", y)
    return g, x, gate_up


def norm(g: Graph, h: Value, weight: str = "norm") -> Value:
    normed: Value = g.add("rms_norm", h, g.weight(weight), eps=1e-6, dtype=F32)
    return normed


def ops(plan: Plan) -> list[str]:
    """By node its op; of a linear with a neighbor in it, "fused"."""
    return [kind(node) for node in plan.nodes]


def kind(node: PlannedNode) -> str:
    specs = [None if ref is None else ref.spec for ref in node.inputs]
    return (
        "fused"
        if node.op == "linear" and fused(Given(get_op("linear"), specs, node.attrs, torch.device("cpu")))
        else node.op
    )


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(spec.shape, generator=generator).to(spec.dtype) for name, spec in WEIGHTS.items()}  # type: ignore[arg-type]


def outputs(plan: Plan, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    executor = Executor(plan, {name: weights()[name] for name in plan.weights})
    executor._arena.fill_(POISON)
    for name, value in inputs.items():
        executor.inputs[name].copy_(value)
    executor.run()
    return {name: t.clone() for name, t in executor.outputs.items()}


def updated(where: str) -> Graph:
    """A norm, a linear and a residual add, with an update in place of the residual stream there."""
    specs = {"ranks": ((1, 1), torch.int32), "scale": ((1, 1), F32), "a": ((1, 8, 2), F32), "b": ((1, 2, 8), F32)}
    g = Graph("updated", WEIGHTS | {name: TensorSpec(shape, dtype) for name, (shape, dtype) in specs.items()})
    h = g.add("cast", g.input("h", (R, 1, 8), F32), dtype=F32, label="h32")
    adapter, factors = g.input("adapter", (R,), torch.int32), [g.weight(name) for name in specs]

    def update(place: str) -> None:
        if place == where:
            g.add("low_rank", h, None, adapter, *factors, h, first=8, gated=False, eps=0.0, label="update")

    normed = norm(g, h)
    update("before the linear")
    o = g.add("linear", normed, g.weight("w"), None, label="o")
    update("before the sum")
    x, y = g.add("add_rms_norm", h, o, g.weight("norm2"), eps=1e-6, dtype=F32, label="add")
    update("after")
    g.output("x", x)
    g.output("y", y)
    return g


@pytest.mark.parametrize("where", ["before the linear", "before the sum", "after"])
def test_what_is_updated_in_place_is_read_when_it_was(where: str) -> None:
    graph = updated(where)
    plan, parts = lower(graph, {"R": 2}), lower(graph, {"R": 2}, fused=False)
    assert ("add_rms_norm" in ops(plan)) == (where == "before the sum")
    generator = torch.Generator().manual_seed(1)
    held = weights() | {name: torch.randn(parts.weights[name].shape, generator=generator) for name in ("a", "b")}
    held |= {"scale": torch.ones(1, 1), "ranks": torch.full((1, 1), 2, dtype=torch.int32)}
    h, found = torch.randn(2, 1, 8, generator=generator), []
    for one in (plan, parts):
        executor = Executor(one, {name: held[name] for name in one.weights})
        executor.inputs["h"].copy_(h)
        executor.inputs["adapter"].copy_(torch.tensor([1, 0]))
        executor.run()
        found.append({name: t.clone() for name, t in executor.outputs.items()})
    for name, value in found[1].items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 4, 19])
def test_a_layer_becomes_one_node_a_linear(rows: int) -> None:
    graph = layer()[0]
    plan, parts = lower(graph, {"R": rows}), lower(graph, {"R": rows}, fused=False)
    assert ops(plan) == ["cast", "fused", "fused", "fused", "rms_norm"]
    assert ops(parts) == [node.op for node in graph.nodes]
    assert plan.arena_bytes <= parts.arena_bytes
    h = torch.randn(rows, 1, 8, generator=torch.Generator().manual_seed(1))
    fused, alone = outputs(plan, {"h": h}), outputs(parts, {"h": h})
    for name, value in alone.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_more_tokens_than_a_kernel_is_for_keep_the_parts_and_the_reason(rows: int) -> None:
    graph = layer(tokens=5)[0]
    plan = lower(graph, {"R": rows})
    assert ops(plan) == [node.op for node in graph.nodes]
    assert "not with its neighbors: linear: no implementation serves on cpu:" in plan.why()
    assert "native: multiplies many tokens as they are, without neighbors" in plan.why()


def test_parts_that_are_forced_stay_alone() -> None:
    graph = layer()[0]
    assert "fused" not in ops(lower(graph, {"R": 1}, forced={"rms_norm": ["torch"]}))
    assert "fused" not in ops(lower(graph, {"R": 1}, forced={"linear": ["torch"]}))
    plan = lower(graph, {"R": 1}, forced={"linear": ["native"]})
    assert [n.implementation.name for n in plan.nodes if kind(n) == "fused"] == ["native"] * 3
    with pytest.raises(PlanError, match="no implementation 'xla'"):
        lower(graph, {"R": 1}, forced={"linear": ["xla"], "cast": ["xla"]})


def test_a_value_that_is_read_elsewhere_or_kept_stays() -> None:
    graph, _, gate_up = layer()
    graph.output("gate_up", gate_up)
    assert ops(lower(graph, {"R": 1})) == [
        "cast",
        "fused",
        "fused",
        "silu_mul",
        "fused",
        "rms_norm",
    ]
    g = Graph("twice", WEIGHTS)
    normed = norm(g, g.add("cast", g.input("h", (R, 8), F32), dtype=F32))
    for i in range(2):
        g.output(f"y{i}", g.add("linear", normed, g.weight("w"), None))
    assert ops(lower(g, {"R": 1})) == ["cast", "rms_norm", "linear", "linear"]


def test_a_linear_with_a_bias_or_behind_half_of_a_norm_stays() -> None:
    g = Graph("bias", WEIGHTS)
    h = g.add("cast", g.input("h", (R, 2, 8), F32), dtype=F32)
    g.output("y", g.add("linear", norm(g, h), g.weight("w"), g.weight("bias")))
    g.output("z", g.add("linear", g.narrow(norm(g, h, "norm2"), 1, 1, 1), g.weight("w"), None))
    plan = lower(g, {"R": 1})
    assert sorted(ops(plan)) == ["cast", "linear", "linear", "rms_norm", "rms_norm"]
    assert [node.label for node in plan.nodes].index("rms_norm") < [node.label for node in plan.nodes].index("linear")
    outputs(plan, {"h": torch.ones(1, 2, 8)})


def test_a_norm_of_a_state_does_not_wait() -> None:
    """Between the norm and its linear the state may change."""
    g = Graph("state", WEIGHTS)
    position, slot = g.state("position", (R,), torch.int32), g.state("slot", (R,), torch.int32)
    normed = norm(g, g.state("h", (R, 8), F32))
    g.add("advance", position, slot, None, None, None)
    g.output("y", g.add("linear", normed, g.weight("w"), None))
    assert ops(lower(g, {"R": 1})) == ["rms_norm", "advance", "linear"]


def test_a_delta_that_is_the_stream_itself_is_not_fused() -> None:
    """add_rms_norm(y, delta): y = linear(...) as the stream, not as what is added to it."""
    g = Graph("stream", WEIGHTS | {"w32": TensorSpec((8, 8), F32)})
    h = g.input("h", (R, 8), F32)
    y = g.add("linear", h, g.weight("w32"), None)
    x, _ = g.add("add_rms_norm", y, h, g.weight("norm"), eps=1e-6, dtype=F32)
    g.output("x", x)
    assert ops(lower(g, {"R": 1})) == ["linear", "add_rms_norm"]


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_decoding_is_fused_in_exact_numerics_only(
    programs: Callable[..., dict[str, Graph]], dtype: torch.dtype
) -> None:
    sizes = dict(B=2, S=9, K=4)
    graph, untouched = programs(dtype)["decode_step"], programs(BF16, "official")["decode_step"]
    found = ops(lower(graph, sizes, CPU))
    assert found.count("fused") == 2 * 4 + 1
    assert not {"add_rms_norm", "silu_mul", "rms_norm", "linear"} & set(found)
    assert ops(lower(untouched, sizes)) == [n.op for n in untouched.nodes]


def test_a_residual_that_is_made_behind_the_linear_is_added_behind_it() -> None:
    g = Graph("late", WEIGHTS)
    h = g.add("cast", g.input("h", (R, 8), F32), dtype=F32)
    y = g.add("linear", h, g.weight("w"), None)
    late = g.add("silu", h)
    x, _ = g.add("add_rms_norm", late, y, g.weight("norm"), eps=1e-6, dtype=F32)
    g.output("x", x)
    plan = lower(g, {"R": 1})
    assert ops(plan) == ["cast", "linear", "silu", "add_rms_norm"]
    assert outputs(plan, {"h": torch.ones(1, 8)})["x"].isfinite().all()
