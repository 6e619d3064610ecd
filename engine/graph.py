"""The graph of a program: values and nodes.

A `Graph` is built once per program; its sizes may be symbols (`Dim.symbol("R")`). A bucket binds the symbols when the
graph is lowered to a plan. Node order is execution order: nodes may write state, so nothing is reordered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from .errors import GraphError
from .formats import Weight
from .ops import get_op
from .specs import Shape, Size, TensorSpec, contiguous_strides, product

Kind = Literal["input", "weight", "state", "node"]


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the graph: its own storage, or a strided view (offset and strides in elements) of `base`."""

    name: str
    spec: TensorSpec
    kind: Kind
    base: Value | None = None
    offset: Size = 0
    strides: Shape = ()

    @property
    def shape(self) -> Shape:
        return self.spec.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.spec.dtype

    @property
    def root(self) -> Value:
        return self if self.base is None else self.base

    def __str__(self) -> str:
        return f"{self.name}: {self.spec}"


@dataclass(frozen=True, eq=False)
class Node:
    """One call of an op. Absent optional inputs are None."""

    label: str
    op: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    attrs: Mapping[str, Any]


def full_name(program: str, form: str) -> str:
    return f"{program}_{form}" if form else program


@dataclass
class Graph:
    """A program as an ordered list of nodes over named values. form: which variant, where a program has several.

    `weights` gives the spec of every tensor that `weight()` may ask for or, for a linear's weight, the formats that the
    plan chooses from (plan/linear.py). `rows` lists the sizes that count rows: an axis of a state or an input with such
    a size is its row axis. `decodes`: where rows are few, the formats for decoding may be used.
    """

    program: str
    weights: Mapping[str, TensorSpec | Weight] = field(default_factory=dict)
    rows: tuple[Size, ...] = ()
    values: dict[str, Value] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    outputs: dict[str, Value] = field(default_factory=dict)
    labels: set[str] = field(default_factory=set)
    on_device: set[str] = field(default_factory=set)
    decodes: bool = False
    scope: str = ""
    form: str = ""

    @property
    def name(self) -> str:
        """Program and form, for display."""
        return full_name(self.program, self.form)

    def input(self, name: str, shape: Sequence[Size], dtype: torch.dtype, *, on_device: bool = False) -> Value:
        """A tensor that the caller fills before a run; it keeps its contents between runs.

        on_device: filled from tensors on the device. All other inputs are written on the host and uploaded in one copy.
        """
        if on_device:
            self.on_device.add(name)
        return self._declare(Value(name, TensorSpec(tuple(shape), dtype), "input"))

    def state(self, name: str, shape: Sequence[Size], dtype: torch.dtype) -> Value:
        """A tensor that nodes read and write, and that outlives a run; programs may share it by name."""
        return self._declare(Value(name, TensorSpec(tuple(shape), dtype), "state"))

    def weight(self, name: str) -> Value:
        """A constant tensor by name. A linear's weight appears as its matrix, in the dtype that it is computed in."""
        if name in self.values:
            return self.values[name]
        if name not in self.weights:
            raise GraphError(f"{self.name}: weight '{name}' is not among the {len(self.weights)} given weights")
        given = self.weights[name]
        spec = TensorSpec(given.shape, given.dtype) if isinstance(given, Weight) else given
        return self._declare(Value(name, spec, "weight"))

    def optional_weight(self, name: str) -> Value | None:
        return self.weight(name) if name in self.weights else None

    def output(self, name: str, value: Value) -> None:
        """Keep `value` readable after a run under `name`."""
        if name in self.outputs:
            raise GraphError(f"{self.name}: output '{name}' is declared twice")
        self.outputs[name] = value

    def view(self, value: Value, shape: Sequence[Size], offset: Size, strides: Sequence[Size]) -> Value:
        """A strided view, offset and strides counted in elements of `value`'s storage."""
        name = self._fresh(f"{value.root.name}.view")
        spec = TensorSpec(tuple(shape), value.dtype)
        view = Value(name, spec, value.kind, value.root, value.offset + offset, tuple(strides))
        self.values[name] = view
        return view

    def reshape(self, value: Value, shape: Sequence[Size]) -> Value:
        """The same elements in another shape; `value` must be contiguous."""
        strides = value.strides if value.base is not None else contiguous_strides(value.shape)
        if strides != contiguous_strides(value.shape):
            raise GraphError(f"{self.name}: reshape of '{value}' needs it contiguous, its strides are {strides}")
        if product(shape) != product(value.shape):
            raise GraphError(f"{self.name}: cannot reshape '{value}' to {list(shape)}: the element counts differ")
        return self.view(value, shape, 0, contiguous_strides(shape))

    def narrow(self, value: Value, axis: int, start: Size, length: Size) -> Value:
        """Elements start .. start+length-1 along `axis`, as a view."""
        strides = value.strides if value.base is not None else contiguous_strides(value.shape)
        shape = list(value.shape)
        shape[axis] = length
        return self.view(value, shape, strides[axis] * start, strides)

    def select(self, value: Value, axis: int, index: Size) -> Value:
        """The slice at `index` along `axis`, without that axis, as a view."""
        strides = value.strides if value.base is not None else contiguous_strides(value.shape)
        keep = [i for i in range(len(value.shape)) if i != axis % len(value.shape)]
        return self.view(value, [value.shape[i] for i in keep], strides[axis] * index, [strides[i] for i in keep])

    def add(self, op: str, *inputs: Value | None, label: str = "", **attrs: Any) -> Any:
        """Append a node; returns its output value, or a tuple where the op has several, or None where it has none.

        Optional inputs may be left out from the end.
        """
        schema = get_op(op).schema
        inputs += (None,) * (len(schema.inputs) - len(inputs))
        label = self._fresh(f"{self.scope}{label or op}")
        self.labels.add(label)
        specs = [None if v is None else v.spec for v in inputs]
        outputs = tuple(
            self._declare(Value(label if i == 0 else f"{label}.{arg.name}", spec, "node"))
            for i, (arg, spec) in enumerate(zip(schema.outputs, schema.infer(op, specs, attrs, label), strict=True))
        )
        self.nodes.append(Node(label, op, tuple(inputs), outputs, dict(attrs)))
        if not outputs:
            return None
        return outputs[0] if len(outputs) == 1 else outputs

    def _declare(self, value: Value) -> Value:
        if value.name in self.values:
            raise GraphError(f"{self.name}: value '{value.name}' is declared twice")
        self.values[value.name] = value
        return value

    def _fresh(self, name: str) -> str:
        fresh, i = name, 0
        while fresh in self.values or fresh in self.labels:
            i += 1
            fresh = f"{name}#{i}"
        return fresh


def verify(graph: Graph) -> None:
    """Raises GraphError unless every value is written before it is read, and neither inputs nor weights are."""
    known = {v.name for v in graph.values.values() if v.kind != "node"}
    for node in graph.nodes:
        schema = get_op(node.op).schema
        for arg, value in zip(schema.inputs, node.inputs, strict=True):
            if value is None:
                continue
            if graph.values.get(value.root.name) is not value.root:
                raise GraphError(
                    f"{graph.name}: node '{node.label}' reads '{value.name}', which belongs to another graph"
                )
            if value.root.name not in known:
                raise GraphError(f"{graph.name}: node '{node.label}' reads '{value.name}' before any node writes it")
            if arg.mutated and value.kind not in ("state", "node"):
                raise GraphError(
                    f"{graph.name}: node '{node.label}' would overwrite '{value.name}' ({value.kind}); only a state "
                    "or the output of a node may be written in place"
                )
        for value in node.outputs:
            if value.name in known:
                raise GraphError(f"{graph.name}: node '{node.label}' writes '{value.name}' a second time")
            known.add(value.name)
    for name, value in graph.outputs.items():
        if graph.values.get(value.root.name) is not value.root or value.root.name not in known:
            raise GraphError(f"{graph.name}: output '{name}' is never written by this graph")
