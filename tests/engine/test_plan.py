"""Lowering: which implementation serves and why, what it costs, what the plan prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from flashjanus.engine.errors import GraphError, PlanError, SchemaError
from flashjanus.engine.graph import Graph
from flashjanus.engine.ops import Given, Implementation, get_op
from flashjanus.engine.ops.flow_update import COLUMNS
from flashjanus.engine.plan import Plan, lower
from flashjanus.engine.specs import Dim, TensorSpec

F32, I32 = torch.float32, torch.int32
R = Dim.symbol("R")


def mlp(rows: Dim | int = R) -> Graph:
    """x (R, 8) -> silu(x W^T) gelu'd and added to x."""
    g = Graph("mlp", {"w": TensorSpec((8, 8), F32)})
    x = g.input("x", (rows, 8), F32)
    y = g.add("linear", x, g.weight("w"), None, label="w.out")
    y = g.add("gelu", g.add("silu", y))
    g.output("y", g.add("add", x, y, dtype=F32, label="sum"))
    return g


def euler(z_dtype: torch.dtype = F32, v_dtype: torch.dtype = F32, channels: int = 4) -> Graph:
    g = Graph("euler")
    v = g.input("v", (R * 2, 2, 2, 4 * channels), v_dtype)
    z = g.state("z", (R, channels, 4, 4), z_dtype)
    history, kept = g.state("history", (R, channels, 4, 4), z_dtype), g.state("kept", (R, *v.shape[1:]), v_dtype)
    rows = (g.input("schedule", (R, 3, COLUMNS), F32), g.state("step", (R,), I32), g.input("steps", (R,), I32))
    g.add("flow_update", v, z, history, kept, *rows)
    return g


def picky(name: str, reason: str | None) -> Implementation:
    return Implementation(name, get_op("silu"), lambda call: None, cannot=lambda call: reason)


@pytest.fixture
def silu_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives silu these implementations, preferred in this order, before its own."""

    def give(*implementations: Implementation) -> None:
        op = get_op("silu")
        named = {i.name: i for i in implementations}
        monkeypatch.setattr(op, "implementations", named | op.implementations)

    return give


def planned(plan: Plan, label: str) -> tuple[str, str, dict[str, str]]:
    node = next(n for n in plan.nodes if n.label == label)
    return node.implementation.name, node.reason, dict(node.refused)


def test_the_only_implementation_is_chosen_because_it_is_the_only_one() -> None:
    assert planned(lower(mlp(), {"R": 3}), "silu") == ("torch", "the only one", {})


def test_the_first_that_does_not_refuse_is_chosen_and_refusals_are_kept(silu_with: Callable[..., None]) -> None:
    silu_with(picky("wide", "needs 512 columns"), picky("fast", None))
    plan = lower(mlp(), {"R": 3})
    assert planned(plan, "silu") == ("fast", "first that can serve", {"wide": "needs 512 columns"})
    assert "silu: fast (first that can serve)\n    not wide: needs 512 columns" in plan.why()
    assert planned(plan, "gelu") == ("torch", "the only one", {})


def test_the_preferred_one_is_chosen_where_it_serves(silu_with: Callable[..., None]) -> None:
    silu_with(picky("fast", None))
    assert planned(lower(mlp(), {"R": 3}), "silu") == ("fast", "first choice", {})


def test_a_forced_implementation_serves_whatever_is_preferred(silu_with: Callable[..., None]) -> None:
    silu_with(picky("fast", None))
    plan = lower(mlp(), {"R": 3}, forced={"silu": ["torch"]})
    assert planned(plan, "silu") == ("torch", "asked for by name", {})
    assert "silu: torch (asked for by name)" in plan.why()


def test_a_forced_implementation_that_refuses_is_an_error_with_the_reason(silu_with: Callable[..., None]) -> None:
    silu_with(picky("wide", "needs 512 columns"))
    with pytest.raises(PlanError, match="silu: no implementation serves on cpu: wide: needs 512 columns"):
        lower(mlp(), {"R": 3}, forced={"silu": ["wide"]})


def test_a_node_that_nobody_serves_is_an_error_with_every_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusing = {"a": picky("a", "is tired"), "b": picky("b", "is away")}
    monkeypatch.setattr(get_op("silu"), "implementations", refusing)
    with pytest.raises(PlanError, match="silu: no implementation serves on cpu: a: is tired; b: is away"):
        lower(mlp(), {"R": 3})


def test_an_avoided_implementation_refuses_with_the_reason_given(silu_with: Callable[..., None]) -> None:
    silu_with(picky("fast", None))
    seen = []

    def avoided(op: str, name: str, specs: Any, attrs: Any) -> str | None:
        seen.append((op, name, str(specs[0])))
        return "it was wrong" if (op, name) == ("silu", "fast") else None

    plan = lower(mlp(), {"R": 3}, avoided=avoided)
    assert planned(plan, "silu") == ("torch", "first that can serve", {"fast": "it was wrong"})
    assert ("silu", "fast", "f32[3, 8]") in seen
    with pytest.raises(PlanError, match="silu: no implementation serves on cpu: fast: it is late; torch: it is late"):
        lower(mlp(), {"R": 3}, avoided=lambda op, *of: "it is late" if op == "silu" else None)


def test_unknown_names_are_errors() -> None:
    with pytest.raises(PlanError, match="forced for unknown ops: gelou, silou"):
        lower(mlp(), {"R": 3}, forced={"silou": ["torch"], "gelou": ["torch"], "silu": ["torch"]})
    with pytest.raises(PlanError, match="silu: no implementation 'cuda'; there are: torch"):
        lower(mlp(), {"R": 3}, forced={"silu": ["cuda"]})


def test_a_refusal_sees_device_specs_and_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def note(call: Given) -> None:
        seen.append((call.device, [call.x, call.y], call.attrs))

    op = get_op("add")
    monkeypatch.setattr(op, "implementations", {"torch": Implementation("torch", op, print, cannot=note)})
    lower(mlp(), {"R": 3})
    assert seen == [(torch.device("cpu"), [TensorSpec((3, 8), F32)] * 2, {"dtype": F32})]


def test_flow_update_s_kernels_say_why_they_cannot_serve() -> None:
    op = get_op("flow_update")
    assert list(op.implementations) == ["native", "cuda", "triton", "torch"]
    for name, word in (("cuda", "runs on a CUDA device, not on cpu"), ("triton", "runs on a CUDA device, not on cpu")):
        with pytest.raises(PlanError, match=word):
            lower(euler(), {"R": 1}, forced={"flow_update": [name]})
    official = lower(euler(torch.bfloat16), {"R": 1})
    name, _, refused = planned(official, "flow_update")
    assert name == "torch"
    assert "not in bfloat16" in refused["native"] or "not built" in refused["native"]
    assert planned(lower(euler(v_dtype=torch.float16), {"R": 1}), "flow_update")[0] == "torch"
    name, _, refused = planned(lower(euler(channels=1025), {"R": 1}), "flow_update")
    assert name == "torch"
    assert "at most 4096 values a token, not 4100" in refused["native"] or "not built" in refused["native"]


def test_sizes_are_checked() -> None:
    with pytest.raises(GraphError, match=r"symbol 'R' is not bound; the bucket gives {'P': 3}"):
        lower(mlp(), {"P": 3})
    with pytest.raises(PlanError, match=r"mlp: expected sizes of at least 0, got {'R': -1}"):
        lower(mlp(), {"R": -1})
    with pytest.raises(GraphError, match="negative size"):
        lower(mlp(R - 5), {"R": 3})
    g = Graph("g")
    g.add("branch_rows", g.input("x", (R, 1, 4), F32), B=R * 3, dtype=F32)
    with pytest.raises(SchemaError, match="expected R <= B <= 2 R"):
        lower(g, {"R": 2})


@pytest.mark.parametrize(("start", "length"), [(3, 2), (-1, 2), (4, 1), (R, 4)])
def test_a_view_may_not_leave_its_storage(start: int | Dim, length: int) -> None:
    g = Graph("g")
    x = g.input("x", (4, 8), F32)
    g.add("silu", g.narrow(x, 0, start, length))
    with pytest.raises(GraphError, match=r"reaches elements -?\d+ to \d+ of 'x', which has 32"):
        lower(g, {"R": 1})


def test_an_empty_view_reaches_nothing() -> None:
    g = Graph("g")
    g.add("silu", g.narrow(g.input("x", (4, 8), F32), 0, 4, R))
    assert lower(g, {"R": 0}).nodes[0].outputs[0].spec == TensorSpec((0, 8), F32)


def test_costs_are_sums_over_the_nodes() -> None:
    plan = lower(mlp(), {"R": 3})
    flops = {n.label: n.flops for n in plan.nodes}
    assert flops["w.out"] == 2 * 3 * 8 * 8
    assert plan.flops == sum(flops.values())
    moved = {n.label: n.nbytes for n in plan.nodes}
    assert moved["w.out"] == 4 * (3 * 8 + 8 * 8 + 3 * 8)
    assert plan.nbytes == sum(moved.values())
    assert lower(mlp(), {"R": 6}).flops == 2 * plan.flops
    assert lower(euler(), {"R": 3}).state_bytes() == 3 * (3 * 64 * 4) + 3 * 4


def test_intermediates_share_the_arena() -> None:
    plan = lower(mlp(), {"R": 32})
    assert plan.unpacked_bytes == 4 * 32 * 8 * 4
    assert plan.arena_bytes == 2 * 32 * 8 * 4
    with_guard = lower(mlp(), {"R": 32}, guard=64)
    assert with_guard.arena_bytes == plan.arena_bytes + 2 * 64


def test_an_output_is_never_overwritten_by_a_later_node() -> None:
    g = mlp()
    g.output("early", next(v for v in g.values.values() if v.name == "w.out"))
    plan = lower(g, {"R": 32})
    early = plan.offsets["w.out"]
    assert all(offset != early for name, offset in plan.offsets.items() if name != "w.out")


def test_attributes_bind_too() -> None:
    g = Graph("g")
    g.add("branch_rows", g.input("x", (R, 1, 4), F32), B=R + 1, dtype=F32)
    node = lower(g, {"R": 2}).nodes[0]
    assert node.attrs == {"B": 3, "dtype": F32}
    assert node.outputs[0].spec.shape == (3, 1, 4)


def test_the_plan_prints_every_node_with_its_buffer_and_cost() -> None:
    plan = lower(mlp(), {"R": 5})
    head, columns, *rows = str(plan).splitlines()
    assert head == plan.summary()
    assert head.startswith("mlp on cpu [R=5]: 4 nodes, 0.000 GFLOP, ")
    assert columns.split() == ["node", "op", "implementation", "output", "buffer", "MFLOP", "kB"]
    assert [row.split()[:3] for row in rows] == [
        ["w.out", "linear", "native"],
        ["silu", "silu", "torch"],
        ["gelu", "gelu", "torch"],
        ["sum", "add", "torch"],
    ]
    assert "f32[5, 8]  arena+0 " in rows[0]
    assert "in place" in str(lower(euler(), {"R": 1}))


def test_the_plan_is_plain_data_for_programs() -> None:
    plan = lower(mlp(), {"R": 3}, forced={"linear": ["torch"]})
    data = json.loads(json.dumps(plan.to_json()))
    assert data["program"] == "mlp"
    assert data["device"] == "cpu"
    assert data["bucket"] == {"R": 3}
    assert data["flops"] == plan.flops == sum(n["flops"] for n in data["nodes"])
    assert data["bytes"] == plan.nbytes
    assert (data["arena_bytes"], data["unshared_bytes"]) == (plan.arena_bytes, plan.unpacked_bytes)
    assert data["nodes"][0] == {
        "label": "w.out",
        "op": "linear",
        "format": "dense",
        "implementation": "torch",
        "reason": "asked for by name",
        "refused": {},
        "outputs": ["f32[3, 8]"],
        "buffer": "arena+0",
        "flops": plan.nodes[0].flops,
        "bytes": plan.nodes[0].nbytes,
    }


def test_a_plan_is_frozen() -> None:
    plan = lower(mlp(), {"R": 3})
    with pytest.raises(FrozenInstanceError):
        plan.arena_bytes = 0  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        plan.nodes[0].flops = 0  # type: ignore[misc]
