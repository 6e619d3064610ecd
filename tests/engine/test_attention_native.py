"""The CPU's kernel for many queries: who has it chosen, every case by every instruction set, and that a query's bits
depend on its own row alone."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from flashjanus.engine.device import native
from flashjanus.engine.ops import Call, Given, attention, get_op
from flashjanus.engine.ops.attention_cases import CASES
from flashjanus.engine.specs import TensorSpec
from op_check import check, make_call

pytestmark = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))

CPU, F32, BF16 = torch.device("cpu"), torch.float32, torch.bfloat16
ISAS = native.instruction_sets() if native.available() is None else []
OP = get_op("attention")
native_run = native.run
MANY = [case for case in CASES if case["n"] > 1 and case["head_dim"] <= attention.MAX_HEAD]


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few the queries are, and whatever the CPU is."""
    monkeypatch.setattr(attention, "many_queries_are_slower", lambda: None)
    monkeypatch.setattr(attention, "MANY_QUERIES", 2)


def chosen(queries: int, dtype: torch.dtype) -> str:
    """The kernel, or the implementation that is not the CPU's own."""
    q, k = (TensorSpec((2, n, 16, 128), dtype) for n in (queries, 64 + queries))
    indices = [TensorSpec(shape, torch.int32) for shape in ((2,), (2, queries), (2, queries))]
    specs, attrs = [q, k, k, *indices], {"scale": 1.0}
    name = OP.choose(CPU, specs, attrs)[0].name
    return attention.native_kernel(Given(OP, specs, attrs, CPU))[0] if name == "native" else name


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("slower", [None, "not here"])
def test_it_serves_many_queries_where_widening_pays(
    dtype: torch.dtype, slower: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "amx_available", lambda: "no AMX")
    monkeypatch.setattr(attention, "many_queries_are_slower", lambda: slower)
    kernels = [chosen(queries, dtype) for queries in (1, 7, 8, 22, 23)]
    one, many = "decode_attention", "attention"
    assert kernels == ([one, one, many, many, many] if slower is None else [one, one, one, one, "torch"])


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("case", MANY)
def test_it_meets_the_reference(case: dict[str, Any], dtype: torch.dtype, isa: str) -> None:
    call = make_call(OP, case, dtype, False)
    assert attention.native_kernel(Given(OP, call.args, call.attrs))[0] == "attention"
    check(OP, call, [f"native {isa}"])


def run(call: Call, queries: slice, threads: int, isa: str) -> torch.Tensor:
    q, k, v, start, end, slots = call.args
    q, end, slots = (t[:, queries].contiguous() for t in (q, end, slots))
    o = torch.full_like(q, torch.nan)
    with patch.object(native, "run", lambda name, **members: native_run(name, isa=isa, threads=threads, **members)):
        OP.implementations["native"].run(q, k, v, start, end, slots, o, **call.attrs)
    return o


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_query_has_the_same_bits_beside_other_rows_and_queries_and_by_any_number_of_threads(
    isa: str, dtype: torch.dtype
) -> None:
    case = dict(b=3, n=150, s=170, heads=4, kv_heads=2, head_dim=24, rule="causal", starts=(0, 21, 40))
    call = OP.example(torch.Generator().manual_seed(0), dtype, **case)
    whole = run(call, slice(0, 150), 1, isa)
    for threads in (1, 2, 3, 7):
        for queries in (slice(0, 150), slice(50, 150), slice(75, 83)):  # the rows' first keys stay the same
            assert torch.equal(run(call, queries, threads, isa), whole[:, queries])
        for row in range(3):
            alone = Call(tuple(t[row : row + 1].contiguous() for t in call.args), call.attrs)
            assert torch.equal(run(alone, slice(0, 150), threads, isa), whole[row : row + 1])


def test_memory_that_is_missing_is_told() -> None:
    x = torch.zeros(1)
    shape = dict(batch=1, queries=2, keys=1 << 30, heads=1, kv_heads=1, head=256, batch_stride=0, key_stride=0)
    given = dict(q=x, k=x, v=x, o=x, kv_start=None, kv_end=None, slots=None, dtype=F32, scale=1.0)
    with pytest.raises(MemoryError):
        native.run("attention", **given, **shape, threads=1 << 20)
