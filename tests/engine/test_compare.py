"""Two plans of one graph, node by node: agreement, and the first node that disagrees."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, nan

import pytest
import torch
from flashjanus.engine.device import native
from flashjanus.engine.errors import PlanError
from flashjanus.engine.graph import Graph
from flashjanus.engine.ops import Implementation, get_op
from flashjanus.engine.ops.flow_update import COLUMNS
from flashjanus.engine.plan import lower
from flashjanus.engine.runtime.compare import first_disagreement, relative_error
from flashjanus.engine.runtime.executor import Executor
from flashjanus.engine.specs import TensorSpec

F32, I32 = torch.float32, torch.int32


def register(monkeypatch: pytest.MonkeyPatch, op: str, name: str, run: Callable[..., None]) -> None:
    """For one test, after the implementations that are there."""
    implementation = Implementation(name, get_op(op), lambda call: run(*call.tensors.values(), **call.attrs))
    monkeypatch.setattr(get_op(op), "implementations", get_op(op).implementations | {name: implementation})


def chain() -> Graph:
    g = Graph("chain", {"w": TensorSpec((8, 8), F32)})
    y = g.add("linear", g.input("x", (3, 8), F32), g.weight("w"), None, label="first")
    y = g.add("silu", y, label="second")
    g.output("y", g.add("gelu", g.add("silu", y, label="third"), label="fourth"))
    return g


def euler() -> Graph:
    g = Graph("euler")
    v, z = g.input("v", (3, 2, 2, 16), F32), g.state("z", (2, 4, 4, 4), F32)
    kept, history = g.state("kept", (2, 2, 2, 16), F32), g.state("history", (2, 4, 4, 4), F32)
    rows = (g.input("schedule", (2, 5, COLUMNS), F32), g.state("step", (2,), I32), g.input("steps", (2,), I32))
    g.add("flow_update", v, z, history, kept, *rows)
    return g


def executor(graph: Graph, **forced: str) -> Executor:
    """Random inputs, weights and states of a fixed seed, one for `steps`."""
    plan, generator = (
        lower(graph, {}, forced={op: [name] for op, name in forced.items()}),
        torch.Generator().manual_seed(0),
    )
    weights = {name: torch.randn(8, 8, generator=generator) for name in plan.weights}
    made = Executor(plan, weights)
    for tensor in (*made.inputs.values(), *made.states.values()):
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    if "steps" in made.inputs:
        made.inputs["steps"].fill_(5)
    return made


def by_rows(*args: torch.Tensor) -> None:
    get_op("flow_update").reference(*args)


@pytest.mark.parametrize(
    "other",
    [
        "reference",
        pytest.param("native", marks=pytest.mark.skipif(native.available() is not None, reason="_C is not built")),
    ],
)
def test_two_implementations_of_flow_update_agree(monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    register(monkeypatch, "flow_update", "reference", by_rows)
    a, b = executor(euler(), flow_update="torch"), executor(euler(), flow_update=other)
    b.states["z"].fill_(nan)  # b starts from a's inputs and states, whatever it held
    before = a.states["z"].clone()
    assert first_disagreement(a, b, 1e-6) is None
    assert not torch.equal(a.states["z"], before)
    assert a.states["step"].tolist() == b.states["step"].tolist() == [1, 1]


def test_a_wrong_state_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right latents, but the step does not advance."""

    def forgets(*args: torch.Tensor) -> None:
        *others, step, steps = args
        by_rows(*others, step.clone(), steps)

    register(monkeypatch, "flow_update", "wrong", forgets)
    found = first_disagreement(executor(euler(), flow_update="torch"), executor(euler(), flow_update="wrong"), 1e-6)
    assert found is not None
    assert (found.label, found.op, found.implementations) == ("flow_update", "flow_update", ("torch", "wrong"))


def test_the_first_wrong_node_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_a_percent(x: torch.Tensor, y: torch.Tensor) -> None:
        y.copy_(1.01 * torch.nn.functional.silu(x))

    register(monkeypatch, "silu", "wrong", off_by_a_percent)
    a, b = executor(chain(), silu="torch"), executor(chain(), silu="wrong")
    found = first_disagreement(a, b, 1e-3)
    assert found is not None
    assert found.label == "second"
    assert found.error == pytest.approx(0.01 / 1.01, rel=1e-3)
    assert str(found) == "second (silu): torch and wrong differ by 0.0099, allowed 0.001"
    assert first_disagreement(executor(chain()), executor(chain(), silu="wrong"), 0.1) is None


def test_a_wrong_cache_is_blamed_on_the_node_that_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """rope_kv_write has an output, q, and two states: right queries do not excuse wrong keys."""
    op = get_op("rope_kv_write")

    def spoils_keys(*args: torch.Tensor, heads: int) -> None:
        op.implementations["torch"].run(*args, heads=heads)
        args[4].mul_(2)

    register(monkeypatch, "rope_kv_write", "wrong", spoils_keys)
    g = Graph("cached")
    rows = [g.input(name, (1, 3), I32) for name in ("positions", "slots")]
    caches = [g.state(name, (1, 3, 1, 8), F32) for name in ("k", "v")]
    q = g.add("rope_kv_write", g.input("qkv", (1, 3, 24), F32), g.input("t", (4, 2, 4), F32), *rows, *caches, heads=1)
    g.add("attention", q, *caches, None, None, None, scale=1.0)
    found = first_disagreement(executor(g), executor(g, rope_kv_write="wrong"), 1e-5)
    assert found is not None
    assert found.label == "rope_kv_write"


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(PlanError, match="cannot compare plans of different graphs: chain and euler"):
        first_disagreement(executor(chain()), executor(euler()), 1e-6)
    a = executor(euler())
    b = Executor(a.plan, {}, states=a.states)
    with pytest.raises(PlanError, match="'z' is shared by both executors; each run needs its own"):
        first_disagreement(a, b, 1e-6)


def test_a_comparison_starts_both_on_the_same_numbers() -> None:
    a, b = executor(chain()), executor(chain())
    b.inputs["x"].zero_()
    assert first_disagreement(a, b, 0.0) is None
    assert torch.equal(a.inputs["x"], b.inputs["x"])


@pytest.mark.parametrize(
    ("a", "b", "due"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([0.0, 4.5], [0.0, 4.0], 0.125),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([1.0, 0.0], [0.0, 0.0], inf),
        ([nan, 1.0], [nan, 1.0], 0.0),
        ([nan, 1.0], [1.0, 1.0], inf),
        ([inf, 1.0], [inf, 1.0], 0.0),
        ([inf, 1.0], [-inf, 1.0], inf),
        ([inf, 1.0], [nan, 1.0], inf),
        ([1.0], [1.0, 1.0], inf),
        ([], [], 0.0),
    ],
)
def test_relative_error(a: list[float], b: list[float], due: float) -> None:
    assert relative_error(torch.tensor(a), torch.tensor(b)) == due


def test_relative_error_reads_any_dtype() -> None:
    assert relative_error(torch.tensor([2, 4]), torch.tensor([2, 4])) == 0
    assert relative_error(torch.ones(3, dtype=torch.bfloat16), torch.ones(3)) == 0
    assert relative_error(torch.tensor([3], dtype=torch.uint8), torch.tensor([2], dtype=torch.uint8)) == 0.5
