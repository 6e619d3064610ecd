"""JanusFlow's programs on a tiny config: they verify, they lower for every mix of guidance, they stay in bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from flashjanus.engine.graph import Graph, verify
from flashjanus.engine.plan import Plan, lower
from flashjanus.engine.plan.plan import nbytes
from flashjanus.engine.runtime.executor import Executor
from flashjanus.engine.specs import TensorSpec
from flashjanus.model import FLOW_FORMS

Programs = Callable[..., dict[str, Graph]]
Draws = Callable[[Mapping[str, TensorSpec]], dict[str, torch.Tensor]]
BUCKETS = {
    "encode_images": [dict(I=1), dict(I=3)],
    "prefill": [dict(B=1, N=7, S=9, F=1, K=4), dict(B=3, N=5, S=12, F=9, K=2)],
    "decode_step": [dict(B=1, S=9, K=4), dict(B=3, S=6, K=2)],
    "flow_prepare": [dict(R=2, U=u, P=5, K=3) for u in (0, 1, 2)],
    "flow_step": [dict(R=2, U=u, P=5, K=3) for u in (0, 1, 2)],
    **{name: [dict(R=2, U=u, V=u - 1, P=5, K=3) for u in (1, 2)] for name in FLOW_FORMS if name != "flow_step"},
    "decode_latents": [dict(B=1, H=4, W=4), dict(B=2, H=2, W=6)],
}
CASES = [(name, bucket) for name, buckets in BUCKETS.items() for bucket in buckets]
POLICIES = [(torch.float32, "exact"), (torch.bfloat16, "exact"), (torch.bfloat16, "official")]
GUARD = 64


@pytest.mark.parametrize(("dtype", "numerics"), POLICIES)
@pytest.mark.parametrize(("name", "bucket"), CASES)
def test_programs_verify_and_lower(
    programs: Programs, name: str, bucket: dict[str, int], dtype: torch.dtype, numerics: str
) -> None:
    graph = programs(dtype, numerics)[name]
    verify(graph)
    plan = lower(graph, bucket)
    assert len(lower(graph, bucket, fused=False).nodes) == len(graph.nodes) >= len(plan.nodes)
    assert plan.flops > 0
    assert 0 < plan.arena_bytes < plan.unpacked_bytes
    assert plan.outputs.keys() == graph.outputs.keys()
    labels = [n.label for n in plan.nodes]
    assert len(set(labels)) == len(labels)


def test_an_unguided_row_costs_half_of_the_language_model(programs: Programs) -> None:
    """No unconditional branch at guidance 1; the encoder and the first QKV run once per image, not per branch."""
    graph = programs(torch.float32)["flow_step"]
    plans = [lower(graph, dict(R=2, U=u, P=5, K=3)) for u in (0, 2)]
    unguided, guided = ({n.label: n.flops for n in plan.nodes} for plan in plans)
    assert guided["enc.aligner.out"] == unguided["enc.aligner.out"]
    assert guided["llm.0.qkv.out"] == unguided["llm.0.qkv.out"]
    assert guided["llm.1.qkv.out"] == 2 * unguided["llm.1.qkv.out"]


def bind_indices(plan: Plan, tensors: dict[str, torch.Tensor]) -> None:
    """Row numbers that stay in range: ones everywhere else do."""
    for name, tensor in tensors.items():
        if name.endswith(("slots", "positions")):
            tensor.copy_(torch.arange(tensor.shape[-1]).expand_as(tensor))
        elif name.endswith("kv_end"):
            tensor.copy_(torch.arange(1, 1 + tensor.shape[-1]).expand_as(tensor))
        elif name in ("kv_start", "step", "index", "slot"):
            tensor.zero_()
        elif name == "steps":
            tensor.fill_(plan.sizes["K"])


def executor_of(plan: Plan, draws: Draws) -> Executor:
    executor = Executor(plan, draws(plan.weights), draws(plan.states), draws(plan.inputs))
    bind_indices(plan, executor.inputs)
    bind_indices(plan, executor.states)
    return executor


def last_uses(plan: Plan) -> dict[str, int]:
    last = {r.root: i for i, n in enumerate(plan.nodes) for r in (*n.inputs, *n.outputs) if r is not None}
    return last | {r.root: len(plan.nodes) for r in plan.outputs.values()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "bucket"), CASES)
def test_a_run_leaves_guards_and_weights_alone_and_no_poison(
    programs: Programs, draws: Draws, name: str, bucket: dict[str, int], dtype: torch.dtype
) -> None:
    """Each buffer is poisoned, the guard after it included, before the node that writes it. While the tensor lives its
    guard stays, and what no node has written is NaN and would reach an output."""
    plan = lower(programs(dtype)[name], bucket, guard=GUARD)
    executor = executor_of(plan, draws)
    weights = {name: t.clone() for name, t in draws(plan.weights).items()}
    arena, last = executor._arena, last_uses(plan)
    arena.fill_(0xFF)
    alive: dict[str, tuple[int, int]] = {}
    for i, (node, call) in enumerate(zip(plan.nodes, executor.calls, strict=True)):
        for ref in node.outputs:
            start = plan.offsets[ref.root]
            end = start + nbytes(ref.spec)
            arena[start : end + GUARD] = 0xFF
            alive[ref.root] = (end, end + GUARD)
        call()
        for root, (start, end) in list(alive.items()):
            assert (arena[start:end] == 0xFF).all(), f"{node.label} wrote past '{root}'"
            if last[root] <= i:
                del alive[root]
        for ref in node.outputs:
            assert executor.tensor(ref).isfinite().all(), f"{node.label} left part of its output unwritten"
    assert all(t.isfinite().all() for t in executor.outputs.values())
    for root, tensor in weights.items():
        assert torch.equal(executor._storages["weight"][root], tensor)


@pytest.mark.parametrize(("name", "bucket"), CASES)
def test_a_second_run_on_the_same_numbers_gives_the_same_bits(
    programs: Programs, draws: Draws, name: str, bucket: dict[str, int]
) -> None:
    """Whatever the first run left in the arena does not matter."""
    plan = lower(programs(torch.float32)[name], bucket)
    executor = executor_of(plan, draws)
    before = {name: t.clone() for name, t in executor.states.items()}
    results = []
    for _ in range(2):
        for state, t in before.items():
            executor.states[state].copy_(t)
        executor.run()
        named = executor.outputs | executor.states
        results.append({name: t.clone() for name, t in named.items()})
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
