"""A plan on memory: what it refuses, what it binds to what, and that the loop allocates nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from flashjanus.engine.device import native
from flashjanus.engine.errors import PlanError
from flashjanus.engine.graph import Graph
from flashjanus.engine.ops import Given, Implementation, all_ops, get_op
from flashjanus.engine.ops.flow_update import COLUMNS
from flashjanus.engine.plan import lower
from flashjanus.engine.runtime.executor import Executor, allocate_states
from flashjanus.engine.specs import Dim, TensorSpec
from torch.utils._python_dispatch import TorchDispatchMode

F32, BF16, I32 = torch.float32, torch.bfloat16, torch.int32
R = Dim.symbol("R")
GUARD = 64


@pytest.fixture(autouse=True)
def unpressed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are counted as they are where no other work presses on the cores."""
    monkeypatch.setattr(native, "pressed", lambda: False)


def mlp() -> Graph:
    g = Graph("mlp", {"w": TensorSpec((6, 8), F32), "b": TensorSpec((6,), F32)})
    x = g.input("x", (R, 8), F32)
    y = g.add("linear", x, g.weight("w"), g.weight("b"), label="y")
    g.output("y", y)
    g.output("gelu", g.add("gelu", g.add("silu", y)))
    return g


def mlp_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"w": torch.randn(6, 8, generator=generator), "b": torch.randn(6, generator=generator)}


def counter() -> Graph:
    g = Graph("counter")
    g.add("advance", g.state("position", (R,), I32), g.state("slot", (R,), I32), None, None, None)
    return g


def test_a_run_computes_what_torch_computes() -> None:
    executor, weights = Executor(lower(mlp(), {"R": 3}), mlp_weights()), mlp_weights()
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    executor.inputs["x"].copy_(x)
    executor.run()
    y = torch.nn.functional.linear(x, weights["w"], weights["b"])
    torch.testing.assert_close(executor.outputs["y"], y)
    torch.testing.assert_close(executor.outputs["gelu"], torch.nn.functional.gelu(torch.nn.functional.silu(y)))
    assert executor.outputs.keys() == {"y", "gelu"}


def test_steps_give_each_node_with_what_it_wrote() -> None:
    executor = Executor(lower(mlp(), {"R": 3}), mlp_weights())
    executor.inputs["x"].fill_(1)
    seen = [(node.label, [t.clone() for t in outputs]) for node, outputs in executor.steps()]
    assert [label for label, _ in seen] == ["y", "silu", "gelu"]
    torch.testing.assert_close(seen[1][1][0], torch.nn.functional.silu(seen[0][1][0]))


def test_a_walk_asks_who_serves_when_a_node_s_inputs_are_there() -> None:
    executor = Executor(lower(mlp(), {"R": 3}), mlp_weights())
    executor.inputs["x"].normal_()
    executor.run()
    due, asked = executor.outputs["gelu"].clone(), []

    def choose(node: Any) -> Implementation | None:
        asked.append(node.label)
        if node.op != "silu":
            return None
        finite = executor.tensor(node.inputs[0]).isfinite().all()
        return Implementation("seven", get_op("silu"), lambda call: call.y.fill_(7.0 if finite else torch.nan))

    executor.outputs["gelu"].fill_(torch.nan)
    executor.walk(choose)
    assert asked == [node.label for node in executor.plan.nodes]
    assert torch.equal(executor.outputs["gelu"], torch.nn.functional.gelu(torch.full_like(due, 7.0)))
    executor.walk(lambda node: None)
    assert torch.equal(executor.outputs["gelu"], due)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"w": torch.zeros(6, 8)}, "mlp: weight 'b' is missing, expected f32[6]"),
        ({"w": torch.zeros(8, 6), "b": torch.zeros(6)}, "mlp: weight 'w' expected f32[6, 8], got f32[8, 6]"),
        ({"w": torch.zeros(6, 8), "b": torch.zeros(6).half()}, "mlp: weight 'b' expected f32[6], got f16[6]"),
        ({"w": torch.zeros(6, 8), "b": torch.zeros(6, device="meta")}, "weight 'b' expected on cpu, got meta"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(PlanError) as caught:
        Executor(lower(mlp(), {"R": 3}), weights)
    assert message in str(caught.value)


def test_states_and_inputs_that_do_not_fit_are_refused() -> None:
    plan = lower(counter(), {"R": 2})
    with pytest.raises(PlanError, match=r"counter: state 'slot' is missing, expected i32\[2\]"):
        Executor(plan, {}, {"position": torch.zeros(2, dtype=I32)})
    states = allocate_states(plan) | {"slot": torch.zeros(3, dtype=I32)}
    with pytest.raises(PlanError, match=r"state 'slot' expected i32\[2\], got i32\[3\]"):
        Executor(plan, {}, states)
    with pytest.raises(PlanError, match=r"mlp: input 'x' expected f32\[3, 8\], got f32\[4, 8\]"):
        Executor(lower(mlp(), {"R": 3}), mlp_weights(), inputs={"x": torch.zeros(4, 8)})


def test_states_outlive_runs_and_are_shared_by_executors() -> None:
    plan = lower(counter(), {"R": 2})
    first = Executor(plan, {})
    second = Executor(plan, {}, first.states)
    for executor in (first, first, second):
        executor.run()
    assert first.states["slot"].tolist() == [3, 3]
    assert second.states["slot"] is first.states["slot"]
    assert Executor(plan, {}).states["slot"].tolist() == [0, 0]


def test_inputs_may_be_shared() -> None:
    x = torch.ones(3, 8)
    executor = Executor(lower(mlp(), {"R": 3}), mlp_weights(), inputs={"x": x})
    assert executor.inputs["x"] is x
    executor.run()
    before = executor.outputs["y"].clone()
    x.fill_(2)
    executor.run()
    assert not torch.equal(executor.outputs["y"], before)


def bound(g: Graph, tensor: torch.Tensor) -> torch.Tensor:
    """What `cast`, g's one node, reads."""
    executor = Executor(lower(g, {"R": 1}), {}, inputs={"x": tensor})
    executor.run()
    return executor.outputs["y"].clone()


VIEWS: list[tuple[str, Callable[[Graph, Any], Any], Callable[[torch.Tensor], torch.Tensor]]] = [
    ("narrow", lambda g, x: g.narrow(x, 1, 1, 2), lambda t: t[:, 1:3]),
    ("select", lambda g, x: g.select(x, 0, 2), lambda t: t[2]),
    ("narrow of select", lambda g, x: g.narrow(g.select(x, 1, 3), 0, 1, 2), lambda t: t[1:3, 3]),
    ("reshape", lambda g, x: g.reshape(x, (2, 8)), lambda t: t.reshape(2, 8)),
    ("transposed, of the root's shape", lambda g, x: g.view(x, (4, 4), 0, (1, 4)), lambda t: t.T),
    ("one row for all, of the root's shape", lambda g, x: g.view(x, (4, 4), 0, (0, 1)), lambda t: t[:1].expand(4, 4)),
    ("the whole", lambda g, x: g.view(x, (4, 4), 0, (4, 1)), lambda t: t),
]


@pytest.mark.parametrize(("view", "due"), [v[1:] for v in VIEWS], ids=[v[0] for v in VIEWS])
@pytest.mark.parametrize("kind", ["input", "node"])
def test_views_are_bound_by_offset_and_strides(
    kind: str, view: Callable[[Graph, Any], Any], due: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    g, x = Graph("g"), torch.arange(16.0).view(4, 4)
    value = g.input("x", (4, 4), F32)
    if kind == "node":
        g.add("cast", g.input("first", (1,), F32), dtype=F32)  # so that x does not start the arena
        value = g.add("cast", value, dtype=F32)
    g.output("y", g.add("cast", view(g, value), dtype=F32))
    assert torch.equal(bound(g, x), due(x))


def test_a_slice_of_a_larger_tensor_is_bound_where_it_lies() -> None:
    g = Graph("g")
    g.output("y", g.add("cast", g.narrow(g.input("x", (4, 4), F32), 0, 1, 2), dtype=F32))
    larger = torch.arange(32.0).view(8, 4)
    assert torch.equal(bound(g, larger[4:]), larger[5:7])


def test_views_of_a_tensor_with_gaps_are_refused_and_the_whole_is_served() -> None:
    x = torch.arange(32.0).view(4, 8)[:, :4]
    g = Graph("g")
    g.output("y", g.add("cast", g.narrow(g.input("x", (4, 4), F32), 0, 1, 2), dtype=F32))
    with pytest.raises(PlanError, match=r"input 'x' is read through views and must be contiguous, got strides \(8, 1"):
        bound(g, x)
    whole = Graph("g")
    whole.output("y", whole.add("cast", whole.input("x", (4, 4), F32), dtype=F32))
    assert torch.equal(bound(whole, x), x)


def test_a_run_on_a_poisoned_arena_leaves_the_guards() -> None:
    """Every value is an output, so no two share bytes and all guards can be looked at after the whole run."""
    g = mlp()
    g.output("silu", g.values["silu"])
    plan = lower(g, {"R": 3}, guard=GUARD)
    executor = Executor(plan, mlp_weights())
    arena = executor._arena
    arena.fill_(0xFF)
    executor.run()
    ends = {name: offset + 3 * 6 * 4 for name, offset in plan.offsets.items()}
    assert len(ends) == 3
    for name, end in ends.items():
        assert bool((arena[end : end + GUARD] == 0xFF).all()), name
    assert all(t.isfinite().all() for t in executor.outputs.values())
    arena[ends["gelu"]] = 0  # what a kernel that writes too far would do
    assert not bool((arena[ends["gelu"] : ends["gelu"] + GUARD] == 0xFF).all())


class Allocations(TorchDispatchMode):
    """Names of dispatched operators that returned a tensor on storage other than `known`, and of all others.

    An operator with out= and one in place return what they were given; a factory, a copy or a functional form returns
    memory of its own. Memory that an operator takes and gives back inside its own kernel is not seen.
    """

    def __init__(self, known: Iterator[torch.Tensor]) -> None:
        super().__init__()
        self.known = {t.untyped_storage().data_ptr() for t in known}
        self.fresh: list[str] = []
        self.others: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        tensors = [t for t in (result if isinstance(result, (tuple, list)) else [result]) if torch.is_tensor(t)]
        fresh = any(t.untyped_storage().data_ptr() not in self.known for t in tensors)
        (self.fresh if fresh else self.others).append(str(function))
        return result


def storages(executor: Executor, weights: dict[str, torch.Tensor]) -> Iterator[torch.Tensor]:
    yield executor._arena
    yield from (*weights.values(), *executor.states.values(), *executor.inputs.values())


def pointwise() -> Graph:
    """Nodes whose implementations write with out=, in place, or natively."""
    g = Graph("pointwise")
    x = g.input("x", (R, 16), F32)
    y = g.add("add", g.add("gelu", g.add("silu", x)), x, dtype=F32)
    v = g.reshape(y, (R, 2, 2, 4))
    g.add("advance", g.state("position", (R,), I32), g.state("slot", (R,), I32), None, None, None)
    if native.available() is None:
        z, history = (g.state(name, (R, 1, 4, 4), F32) for name in ("z", "history"))
        rows = (g.input("schedule", (R, 3, COLUMNS), F32), g.state("step", (R,), I32), g.input("steps", (R,), I32))
        g.add("flow_update", v, z, history, g.state("kept", (R, 2, 2, 4), F32), *rows)
    return g


def test_a_loop_over_out_and_native_calls_allocates_no_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = lower(pointwise(), {"R": 2})
    executor = Executor(plan, {})
    executor.inputs["x"].fill_(1)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a tensor was made inside the loop")

    with monkeypatch.context() as patch:
        for name in ("empty", "zeros", "ones", "full", "tensor", "as_strided", "empty_like", "zeros_like"):
            patch.setattr(torch, name, forbidden)
        patch.setattr(Executor, "tensor", forbidden)
        with Allocations(storages(executor, {})) as mode:
            executor.run()
    assert mode.fresh == []
    assert len(mode.others) >= 5  # silu, gelu, add, two in-place additions: the mode was awake
    assert executor.states["slot"].tolist() == [1, 1]


def test_the_count_above_would_see_an_allocation() -> None:
    x = torch.ones(4)
    with Allocations(iter([x])) as mode:
        x.add_(1)
        torch.mul(x, 2, out=x)
        x.view(2, 2)
        torch.zeros(3)
        torch.nn.functional.silu(x)
    assert [name.split(".")[1] for name in mode.fresh] == ["zeros", "silu"]
    assert len(mode.others) == 3


@pytest.mark.parametrize("name", ["encode_images", "prefill", "decode_step", "flow_prepare", "flow_step"])
def test_the_walk_itself_calls_no_operator_of_torch(
    monkeypatch: pytest.MonkeyPatch, programs: Callable[..., dict[str, Graph]], draws: Callable[..., Any], name: str
) -> None:
    """With implementations that do nothing, nothing is dispatched: what a real run allocates, torch allocates."""
    calls: list[tuple[int, ...]] = []

    def nothing(call: Given) -> None:
        calls.append(tuple(map(id, call.tensors.values())))

    for op in all_ops().values():
        monkeypatch.setattr(op, "implementations", {"none": Implementation("none", op, nothing)})
    plan = lower(programs(F32)[name], dict(I=1, B=2, N=3, S=5, F=1, K=2, R=2, U=1, P=3))
    executor = Executor(plan, draws(plan.weights))
    with Allocations(storages(executor, {})) as mode:
        executor.run()
        executor.run()
    assert mode.fresh == mode.others == []
    nodes = len(plan.nodes)
    assert calls[:nodes] == calls[nodes:]  # the same tensor objects in every run
    assert len(calls) == 2 * nodes
