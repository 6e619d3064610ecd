"""The kernel for many tokens: who has it chosen, and that a token's bits depend on nothing but the token."""

from __future__ import annotations

import pytest
import torch
from flashjanus.engine.device import capabilities, native
from flashjanus.engine.graph import Graph
from flashjanus.engine.ops import get_op, linear
from flashjanus.engine.plan import Plan, lower
from flashjanus.engine.specs import Dim, TensorSpec

F32, BF16 = torch.float32, torch.bfloat16
AVX2 = {"avx2", "fma"}
AVX512 = AVX2 | {"avx512f"}
CPU = torch.device("cpu")
needs_native = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))


@pytest.mark.parametrize(
    ("flags", "vendor", "reason"),
    [
        (AVX512 | {"avx512_bf16"}, "GenuineIntel", None),
        (AVX512, "AuthenticAMD", None),
        (AVX512 | {"avx512_bf16"}, "AuthenticAMD", "instructions for pairs"),
        (AVX512 | {"avx512_bf16", "amx_bf16"}, "GenuineIntel", "torch multiplies it by AMX"),
        (AVX2, "AuthenticAMD", None),
        ({"avx", "sse4_2"}, "GenuineIntel", "pays on CPUs with AVX2"),
        ({"asimd", "bf16"}, "", "pays on CPUs with AVX2"),
    ],
)
def test_where_widening_pays(monkeypatch: pytest.MonkeyPatch, flags: set[str], vendor: str, reason: str | None) -> None:
    monkeypatch.setattr(capabilities, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(capabilities, "cpu_vendor", lambda: vendor)
    found = capabilities.widening_bfloat16_is_slower.__wrapped__()
    assert found is None if reason is None else found is not None and reason in found


def planned(tokens: int, dtype: torch.dtype) -> Plan:
    g = Graph("one", {"w": TensorSpec((24, 32), dtype)})
    g.output("y", g.add("linear", g.input("x", (Dim.symbol("R"), tokens, 32), dtype), g.weight("w"), label="y"))
    return lower(g, {"R": 2})


@needs_native
@pytest.mark.parametrize(
    ("tokens", "dtype", "slower", "chosen"),
    [
        (5, BF16, None, "native"),
        (5, BF16, "not here", "torch"),
        (5, F32, None, "native"),
        (4, BF16, "not here", "native"),  # by the matrix-vector kernel
    ],
)
def test_many_tokens_are_widened_where_that_pays(
    monkeypatch: pytest.MonkeyPatch, tokens: int, dtype: torch.dtype, slower: str | None, chosen: str
) -> None:
    monkeypatch.setattr(linear, "widening_bfloat16_is_slower", lambda: slower)
    (node,) = planned(tokens, dtype).nodes
    assert node.implementation.name == chosen
    if chosen == "torch" and dtype is BF16:
        assert node.refused["native"] == slower


@needs_native
@pytest.mark.parametrize(("slower", "chosen"), [(None, "native"), ("not here", "torch")])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_so_are_weights_in_8_bits_if_inputs_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, slower: str | None, chosen: str
) -> None:
    monkeypatch.setattr(linear, "widening_bfloat16_is_slower", lambda: slower)
    op = get_op("linear")
    specs = [TensorSpec((2, 9, 32), dtype), TensorSpec((24, 32), torch.int8), None, TensorSpec((24,), F32)]
    assert op.choose(CPU, [*specs, None, None, None], {"format": "int8"})[0].name == chosen
    quantized = [TensorSpec((2, 9, 32), torch.int8), *specs[1:], TensorSpec((2, 9), F32), None, None]
    assert op.choose(CPU, quantized, {"format": "int8", "dtype": dtype})[0].name != "native"


@pytest.mark.parametrize("isa", native.instruction_sets() if native.available() is None else [])
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("of", ["dense", "int8"])
def test_a_token_has_the_same_bits_beside_others_and_by_any_number_of_threads(
    isa: str, dtype: torch.dtype, of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = get_op("linear")
    call = op.example(torch.Generator().manual_seed(0), dtype, m=45, k=203, n=101, of=of, bias=True, prompt=True)
    x, *others = call.args

    def product(tokens: slice, threads: int) -> torch.Tensor:
        monkeypatch.setattr(native, "run", lambda name, **members: run(name, isa=isa, threads=threads, **members))
        y = torch.full((1, tokens.stop - tokens.start, 101), torch.nan, dtype=dtype)
        op.implementations["native"].run(x[:, tokens], *others, y, **call.attrs)
        return y

    run = native.run
    whole = product(slice(0, 45), 1)
    for threads in (1, 2, 3, 7):
        for tokens in (slice(0, 45), slice(0, 5), slice(3, 20), slice(24, 45)):
            assert torch.equal(product(tokens, threads), whole[:, tokens])


@needs_native
def test_memory_that_is_missing_is_told() -> None:
    x, y = torch.zeros(1, 1), torch.zeros(1, 1)
    sizes = dict(rows=1, columns=1 << 30, out=1, threads=1 << 20)  # more memory than there are addresses
    with pytest.raises(MemoryError):
        native.run("gemm", x=x, w=x, scale=None, bias=None, y=y, dtype=F32, y_dtype=F32, **sizes)
