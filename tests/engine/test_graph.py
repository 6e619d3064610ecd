"""Symbolic sizes, views, and what a graph refuses."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce

import pytest
import torch
from flashjanus.engine.errors import GraphError, SchemaError
from flashjanus.engine.graph import Graph, Node, Value, verify
from flashjanus.engine.specs import Dim, Size, TensorSpec, bind, contiguous_strides, product, static
from hypothesis import given
from hypothesis import strategies as st

F32, BF16, I32 = torch.float32, torch.bfloat16, torch.int32
NAMES = ("P", "R", "U")

sizes = st.recursive(
    st.integers(-9, 9) | st.sampled_from(NAMES).map(Dim.symbol),
    lambda inner: st.tuples(st.sampled_from([operator.add, operator.sub, operator.mul]), inner, inner).map(
        lambda t: t[0](t[1], t[2])
    ),
    max_leaves=5,
)
buckets = st.fixed_dictionaries({name: st.integers(-5, 20) for name in NAMES})
arithmetic = st.sampled_from([operator.add, operator.sub, operator.mul])


@given(sizes, sizes, arithmetic, buckets)
def test_arithmetic_then_binding_is_binding_then_arithmetic(
    a: Size, b: Size, op: Callable[[Size, Size], Size], bucket: dict[str, int]
) -> None:
    assert bind(op(a, b), bucket) == op(bind(a, bucket), bind(b, bucket))


@given(sizes, sizes, sizes)
def test_equal_polynomials_are_equal_objects(a: Size, b: Size, c: Size) -> None:
    assert a + b == b + a
    assert a * b == b * a
    assert (a + b) + c == a + (b + c)
    assert a * (b + c) == a * b + a * c
    assert a - a == 0
    assert a * 1 == a + 0 == a
    assert a * 0 == 0
    assert hash(a + b) == hash(b + a)


@given(sizes, st.integers(1, 7), buckets)
def test_division_undoes_multiplication(a: Size, by: int, bucket: dict[str, int]) -> None:
    multiple = a * by
    if isinstance(multiple, Dim):
        assert multiple.divided(by) == a


def test_division_leaves_no_remainder_behind() -> None:
    p = Dim.symbol("P")
    assert (p * 2).divided(2) == p
    assert (p * 2 + 1).divided(2) is None
    assert p.divided(2) is None


def test_a_constant_is_an_int() -> None:
    p = Dim.symbol("P")
    assert type(p - p + 3) is int
    assert static(p - p + 3) == 3
    assert 577 - p == p * -1 + 577


def test_sizes_print_as_polynomials() -> None:
    p, r = Dim.symbol("P"), Dim.symbol("R")
    assert str(p) == "P"
    assert str(p * 2 + 577) == "577+2*P"
    assert str(r * p * 3) == "3*P*R"
    assert str(TensorSpec((r, 4), BF16)) == "bf16[R, 4]"


def test_an_unbound_symbol_is_named_with_what_is_bound() -> None:
    with pytest.raises(GraphError, match=r"size '1\+P': symbol 'P' is not bound; the bucket gives {'R': 2}"):
        bind(Dim.symbol("P") + 1, {"R": 2})
    with pytest.raises(GraphError, match="size 'P' is symbolic here, expected a number"):
        static(Dim.symbol("P"))


@given(st.lists(st.integers(1, 4), max_size=4))
def test_strides_and_products_are_torch_s(shape: list[int]) -> None:
    tensor = torch.empty(shape)
    assert contiguous_strides(shape) == tensor.stride()
    assert product(shape) == tensor.numel()


def window(value: Value, whole: torch.Tensor) -> torch.Tensor:
    return whole.as_strided([int(s) for s in value.shape], [int(s) for s in value.strides], int(value.offset))  # type: ignore[arg-type]


@given(st.data())
def test_chains_of_views_are_torch_s(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    whole = torch.arange(int(torch.tensor(shape).prod()), dtype=F32).view(shape)
    g = Graph("views")
    value, tensor = g.input("x", shape, F32), whole
    for _ in range(data.draw(st.integers(1, 4))):
        if tensor.dim() == 0:
            break
        axis = data.draw(st.integers(-tensor.dim(), tensor.dim() - 1))
        start = data.draw(st.integers(0, tensor.shape[axis] - 1))
        kind = data.draw(st.sampled_from(["narrow", "select", "reshape"]))
        if kind == "narrow":
            length = data.draw(st.integers(1, tensor.shape[axis] - start))
            value, tensor = g.narrow(value, axis, start, length), tensor.narrow(axis, start, length)
        elif kind == "select":
            value, tensor = g.select(value, axis, start), tensor.select(axis, start)
        elif tensor.is_contiguous() and (value.base is None or value.strides == contiguous_strides(value.shape)):
            value, tensor = g.reshape(value, (tensor.numel(),)), tensor.reshape(-1)
    if value.base is not None:
        assert torch.equal(window(value, whole), tensor)
    assert value.root is g.values["x"]


def test_reshape_needs_the_same_elements_in_a_row() -> None:
    g = Graph("g")
    r = Dim.symbol("R")
    x = g.input("x", (r, 4, 6), F32)
    assert g.reshape(x, (r * 4, 6)).shape == (r * 4, 6)
    with pytest.raises(GraphError, match=r"cannot reshape 'x: f32\[R, 4, 6\]' to \[R, 23\]: the element counts differ"):
        g.reshape(x, (r, 23))
    with pytest.raises(GraphError, match="needs it contiguous"):
        g.reshape(g.narrow(x, 2, 0, 3), (r, 12))


def test_names_are_unique() -> None:
    g = Graph("g", {"w": TensorSpec((4,), F32)})
    x = g.input("x", (2, 4), F32)
    with pytest.raises(GraphError, match="value 'x' is declared twice"):
        g.state("x", (1,), I32)
    assert g.weight("w") is g.weight("w")
    with pytest.raises(GraphError, match="weight 'v' is not among the 1 given weights"):
        g.weight("v")
    assert g.optional_weight("v") is None
    first, second = g.add("silu", x), g.add("silu", x)
    assert (first.name, second.name) == ("silu", "silu#1")
    g.output("y", second)
    with pytest.raises(GraphError, match="output 'y' is declared twice"):
        g.output("y", first)


def test_nodes_without_outputs_have_labels_of_their_own() -> None:
    g = Graph("g")
    rows = [g.state(name, (2,), I32) for name in ("position", "slot")]
    assert g.add("advance", *rows, None, None, None) is None
    g.add("advance", *rows, None, None, None)
    assert [n.label for n in g.nodes] == ["advance", "advance#1"]


def test_a_node_has_as_many_outputs_as_its_op() -> None:
    g = Graph("g")
    y, sums = g.add("gelu_grn_stats", g.input("x", (1, 3, 8), F32), label="gelu")
    assert (y.name, sums.name) == ("gelu", "gelu.sumsq")
    assert sums.spec == TensorSpec((1, 8), F32)


def test_an_unknown_op_is_refused_with_the_known_ones() -> None:
    g = Graph("g")
    with pytest.raises(SchemaError, match=r"no op 'sillu'; known: add, .*silu"):
        g.add("sillu", g.input("x", (2, 4), F32))


def refuses(graph: Graph, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        verify(graph)


def test_verify_accepts_a_graph_that_reads_what_it_wrote() -> None:
    g = Graph("g", {"w": TensorSpec((4, 4), F32)})
    y = g.add("linear", g.input("x", (2, 4), F32), g.weight("w"), None)
    g.output("y", g.reshape(g.add("silu", y), (8,)))
    verify(g)


def test_verify_wants_values_written_before_they_are_read() -> None:
    g = Graph("g")
    y = g.add("silu", g.input("x", (2, 4), F32))
    g.add("gelu", y)
    g.nodes.reverse()
    refuses(g, "g: node 'gelu' reads 'silu' before any node writes it")


def test_verify_wants_values_written_once() -> None:
    g = Graph("g")
    y = g.add("silu", g.input("x", (2, 4), F32))
    g.nodes.append(Node("again", "gelu", (g.values["x"],), (y,), {}))
    refuses(g, "g: node 'again' writes 'silu' a second time")


def test_verify_refuses_values_of_another_graph() -> None:
    g, other = Graph("g"), Graph("other")
    x = g.input("x", (2, 4), F32)
    g.add("silu", x)
    foreign = other.add("silu", other.input("x", (2, 4), F32))
    g.add("gelu", foreign)
    refuses(g, "node 'gelu' reads 'silu', which belongs to another graph")
    g.nodes.pop()
    g.output("y", foreign)  # has the name of a value of g
    refuses(g, "output 'y' is never written by this graph")


@pytest.mark.parametrize("kind", ["input", "weight"])
def test_verify_lets_neither_inputs_nor_weights_be_written_in_place(kind: str) -> None:
    g = Graph("g", {"slot": TensorSpec((2,), I32)})
    slot = {
        "input": lambda: g.input("slot", (2,), I32),
        "weight": lambda: g.weight("slot"),
    }[kind]()
    g.add("advance", g.state("position", (2,), I32), slot, None, None, None)
    refuses(g, rf"node 'advance' would overwrite 'slot' \({kind}\); only a state or")


def test_verify_wants_outputs_written() -> None:
    g = Graph("g")
    g.output("y", g.add("silu", g.input("x", (2, 4), F32)))
    g.nodes.clear()
    refuses(g, "output 'y' is never written")


def test_sums_of_sizes_of_any_length() -> None:
    total = reduce(operator.add, [Dim.symbol(n) for n in "CABAC"])
    assert str(total) == "2*A+B+2*C"
    assert bind(total, dict(A=1, B=10, C=100)) == 212
