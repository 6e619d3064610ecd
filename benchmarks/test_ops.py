"""Every implementation of every op at its largest size in the built-in model, under pytest-benchmark.

    pytest benchmarks/test_ops.py --benchmark-columns median,iqr,rounds --benchmark-autosave --benchmark-compare

For other models, rates and shares of the machine's ceilings: `flashjanus bench ops`.
"""

from __future__ import annotations

import pytest
from flashjanus import JanusFlow
from flashjanus.engine.ops import all_ops
from flashjanus.measure.bench.ops import Form, executors, forms
from flashjanus.measure.bench.stages import Stages
from flashjanus.measure.timing import Case
from pytest_benchmark.fixture import BenchmarkFixture

SIZES = Case("mix", (("rows", 1), ("prompt_tokens", 40), ("steps", 30), ("chat_tokens", 256)))
EVERY = [(op.name, name) for op in all_ops().values() for name in op.implementations]


@pytest.fixture(scope="session")
def largest() -> dict[str, Form]:
    """For each op, the form that moves the most bytes."""
    found: dict[str, Form] = {}
    for executor in executors(Stages(JanusFlow.from_pretrained("shapes")), SIZES, repeats=1):
        for form in forms(executor):
            if form.op not in found or form.nodes[0].nbytes > found[form.op].nodes[0].nbytes:
                found[form.op] = form
    return found


@pytest.mark.parametrize(("op", "implementation"), EVERY)
def test_op(benchmark: BenchmarkFixture, largest: dict[str, Form], op: str, implementation: str) -> None:
    if op not in largest:
        pytest.skip(f"no program of the built-in model has {op}")
    form = largest[op]
    if implementation not in form.serving():
        pytest.skip(f"{implementation} does not serve {form.sizes}")
    calls, moving = form.calls(implementation), form.moving()
    kept = [tensor.clone() for tensor in moving]
    benchmark.group = f"{op}: {form.sizes}"

    def restore() -> None:
        for tensor, value in zip(moving, kept, strict=True):
            tensor.copy_(value)

    benchmark.pedantic(calls[0], setup=restore, rounds=50, warmup_rounds=3)
