"""Linears on inputs in 8 bits: which become so, what writes their inputs, and that the numbers stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from flashjanus.engine.device import capabilities
from flashjanus.engine.errors import SchemaError
from flashjanus.engine.formats import Weight, rows
from flashjanus.engine.formats.rows import INT8, quantized
from flashjanus.engine.graph import Graph, Value
from flashjanus.engine.ops import get_op, linear_scaled
from flashjanus.engine.plan import Plan, lower
from flashjanus.engine.runtime.executor import Executor
from flashjanus.engine.specs import Dim, TensorSpec
from op_check import POISON

F32, BF16, I8, E4M3 = torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
R = Dim.symbol("R")
SHAPES = {"o": (32, 32), "gate_up": (96, 32), "down": (32, 48), "fc": (16, 32)}
MANY = {"R": 5}
ROWS = {I8: INT8, E4M3: rows.E4M3}


@pytest.fixture(autouse=True)
def multiplies_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where this CPU has no VNNI, and torch widens what it multiplies."""
    monkeypatch.setattr(linear_scaled, "_sums_exactly", lambda: True)


def layer(of: torch.dtype = I8, norms: torch.dtype = F32, tokens: int = 2) -> Graph:
    """A linear after nothing that could quantize, residual add and norm, gated linear, linear, add, norm, linear."""
    norms_of = {name: TensorSpec((32,), norms) for name in ("norm", "norm2")}
    g = Graph("layer", {**norms_of, **{name: Weight(name, shape, BF16, (ROWS[of],)) for name, shape in SHAPES.items()}})

    def linear(x: Value, name: str) -> Value:
        y: Value = g.add("linear", x, g.weight(name), label=f"{name}.out")
        return y

    h = g.add("cast", g.input("h", (R, tokens, 32), F32), dtype=F32, label="h32")
    o = linear(g.add("cast", h, dtype=BF16, label="a"), "o")
    x, normed = g.add("add_rms_norm", h, o, g.weight("norm"), eps=1e-6, dtype=BF16, label="add")
    down = linear(g.add("silu_mul", linear(normed, "gate_up")), "down")
    x, normed = g.add("add_rms_norm", x, down, g.weight("norm2"), eps=1e-6, dtype=BF16, label="last")
    g.output("x", x)
    g.output("y", linear(g.reshape(normed, (R * tokens, 32)), "fc"))
    return g


def ops(plan: Plan) -> list[str]:
    """By node its op; of a linear on inputs in 8 bits, "linear by 8 bits"."""
    return [f"{node.op} by 8 bits" if node.op == "linear" and node.inputs[4] else node.op for node in plan.nodes]


def made(of: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: 1 + 0.1 * torch.randn(32, generator=generator) for name in ("norm", "norm2")}
    for name, (n, k) in SHAPES.items():
        tensors[name], tensors[f"{name}.scale"] = quantized(torch.randn(n, k, generator=generator) / 6, of)
    return tensors


def outputs(plan: Plan, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    executor = Executor(plan, weights)
    executor._arena.fill_(POISON)
    executor.inputs["h"].copy_(torch.randn(executor.inputs["h"].shape, generator=torch.Generator().manual_seed(1)))
    executor.run()
    return {name: value.float().clone() for name, value in executor.outputs.items()}


MERGED = ["cast", "cast", "quantize_rows", "linear by 8 bits", "add_rms_norm_quantized", "linear by 8 bits"]
MERGED += ["silu_mul_quantized", "linear by 8 bits", "add_rms_norm_quantized", "linear by 8 bits"]
APART = [
    "cast",
    "cast",
    "quantize_rows",
    "linear by 8 bits",
    "add_rms_norm",
    "quantize_rows",
    "linear by 8 bits",
    "silu_mul",
]
APART += ["quantize_rows", "linear by 8 bits", "add_rms_norm", "quantize_rows", "linear by 8 bits"]


@pytest.mark.parametrize(("of", "forced"), [(I8, {}), (E4M3, {"linear": ["scaled_mm"]})])
def test_what_makes_an_input_writes_it_in_8_bits(of: torch.dtype, forced: dict[str, Sequence[str]]) -> None:
    graph, weights = layer(of), made(of)
    merged, apart = lower(graph, MANY, CPU, forced), lower(graph, MANY, CPU, forced, fused=False)
    assert (ops(merged), ops(apart)) == (MERGED, APART)
    assert merged.nbytes < apart.nbytes
    exact = outputs(lower(graph, MANY, CPU, {"linear": ["torch"]}), weights)
    loss = 0.02 if of is I8 else 0.06  # of 8 and of 4 bits of mantissa, in four products
    for plan in (merged, apart):
        for name, value in outputs(plan, weights).items():
            assert 0 < (value - exact[name]).norm() <= loss * exact[name].norm()


def test_few_rows_keep_their_inputs_as_they_are_and_the_reason() -> None:
    plan = lower(layer(tokens=1), {"R": 4}, CPU)
    assert "linear by 8 bits" not in ops(plan)
    assert "not inputs in 8 bits: linear: no implementation serves on cpu:" in plan.why()
    assert "scaled_mm: up to 4 rows of a token wait for the weight" in plan.why()


def test_e4m3_has_no_kernel_for_few_rows() -> None:
    plan = lower(layer(E4M3), {"R": 1}, CPU)
    assert ops(plan) == MERGED
    x, weight, scale = TensorSpec((1, 32), BF16), TensorSpec((16, 32), E4M3), TensorSpec((16,), F32)
    chosen, reasons = get_op("linear").choose(CPU, [x, weight, None, scale, None, None, None], dict(format="e4m3"))
    assert chosen.name == "torch"
    assert reasons["native"] == "widens weights in int8, row by row, and reads dense ones, not e4m3"


def test_without_vnni_linears_keep_their_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_scaled, "_sums_exactly", lambda: False)
    plan = lower(layer(), MANY, CPU)
    assert "linear by 8 bits" not in ops(plan)
    assert "scaled_mm: torch multiplies int8 fast and exactly on CPUs with VNNI alone" in plan.why()
    weights = made(I8)
    with monkeypatch.context() as patch:
        patch.setattr(linear_scaled, "_sums_exactly", lambda: True)
        due = outputs(lower(layer(), MANY, CPU), weights)
    widened = outputs(lower(layer(), MANY, CPU, {"linear": ["scaled_mm"]}), weights)
    for name, value in widened.items():
        torch.testing.assert_close(value, due[name])


@pytest.mark.parametrize(
    ("forced", "due"),
    [
        ({"linear": ["torch"]}, []),
        ({"add_rms_norm": ["torch"]}, ["silu_mul_quantized"]),
        ({"silu_mul": ["torch"]}, ["add_rms_norm_quantized"] * 2),
    ],
)
def test_what_is_forced_keeps_its_op(forced: dict[str, Sequence[str]], due: list[str]) -> None:
    got = ops(lower(layer(), MANY, CPU, forced))
    assert sorted(op for op in got if op in ("silu_mul_quantized", "add_rms_norm_quantized")) == due
    assert ("linear by 8 bits" in got) == bool(due)
    assert got.count("quantize_rows") == (4 - len(due) if due else 0)


def test_a_value_that_is_read_elsewhere_or_rounds_twice_stays() -> None:
    g = layer()
    kept = next(node for node in g.nodes if node.op == "silu_mul")
    g.output("kept", kept.outputs[0])
    assert "silu_mul_quantized" not in ops(lower(g, MANY, CPU))
    assert "silu_mul" in ops(lower(g, MANY, CPU))
    assert "add_rms_norm_quantized" not in ops(lower(layer(norms=BF16), MANY, CPU))


def test_half_of_a_norm_is_quantized_behind_it() -> None:
    g = Graph("half", {"norm": TensorSpec((32,), F32), "w": Weight("w", (16, 32), F32, (INT8,))})
    normed = g.add("rms_norm", g.input("h", (R, 2, 32), F32), g.weight("norm"), eps=1e-6, dtype=F32)
    g.output("y", g.add("linear", g.narrow(normed, 1, 1, 1), g.weight("w")))
    assert ops(lower(g, MANY, CPU)) == ["rms_norm", "quantize_rows", "linear by 8 bits"]


def test_on_a_gpu_triton_multiplies_int8_and_torch_e4m3_on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")

    def served(of: torch.dtype, n: int = 96, k: int = 32, rows: int = 640) -> tuple[str, dict[str, str]]:
        q, weight, scales = (
            TensorSpec((rows, k), of),
            TensorSpec((n, k), of),
            [TensorSpec((n,), F32), TensorSpec((rows,), F32)],
        )
        attrs = dict(dtype=BF16, format=ROWS[of].name)
        chosen, reasons = get_op("linear").choose(CUDA, [q, weight, None, *scales, None, None], attrs)
        return chosen.name, {name: why for name, why in reasons.items() if name in ("triton", "scaled_mm")}

    def on(*capability: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")

    by_torch = ("scaled_mm", {"triton": "torch has a product with these scales in its epilogue"})
    assert served(I8) == ("triton", {})
    assert served(E4M3) == by_torch
    assert served(E4M3, rows=1)[0] == "scaled_mm"
    assert served(E4M3, n=24)[0] == "triton"
    on(9, 0)
    assert served(E4M3) == by_torch
    for capability in ((8, 9), (10, 0), (12, 0)):
        on(*capability)
        assert served(E4M3) == served(E4M3, rows=1) == served(I8) == ("triton", {})
        reason = linear_scaled._not_by_torch(CUDA, 640, 96, 32, E4M3, BF16)
        assert str(reason).endswith("9 (Hopper), not {}.{}".format(*capability))
    on(8, 6)
    assert str(capabilities.no_e4m3(CUDA)).endswith("8.9 or later (Ada, Hopper), got 8.6: a GPU")
    assert served(E4M3)[1]["triton"] == capabilities.no_e4m3(CUDA)
    assert served(I8)[0] == "triton"


def test_other_weights_and_inputs_are_refused() -> None:
    weight, scale, x_scale = TensorSpec((4, 8), BF16), TensorSpec((4,), F32), TensorSpec((2,), F32)
    specs = [TensorSpec((2, 8), I8), weight, None, scale, x_scale, None, None]
    with pytest.raises(SchemaError, match=r"expected in format int8 as i8\[4, 8\] and f32\[4\], got bf16\[4, 8\]"):
        get_op("linear").schema.infer("linear", specs, {"dtype": F32, "format": "int8"})
    specs[:2] = TensorSpec((2, 8), E4M3), TensorSpec((4, 8), I8)
    with pytest.raises(SchemaError, match="expected x and weight in the same 8 bits, got e4m3"):
        get_op("linear").schema.infer("linear", specs, {"dtype": F32, "format": "int8"})
    with pytest.raises(SchemaError, match=r"expected format out of dense, .*, got 'int3'"):
        get_op("linear").schema.infer("linear", specs, {"dtype": F32, "format": "int3"})
