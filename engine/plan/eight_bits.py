"""Gives linears with row-major 8-bit weights their inputs in 8 bits where an implementation multiplies those faster.

If a norm or a gated SiLU produces the input and nothing else reads it, that op writes 8 bits itself, so no extra data
passes through memory. Otherwise a `quantize_rows` is inserted before the linear.
"""

from __future__ import annotations

import torch

from ..formats.rows import Rows
from ..graph import Graph, Node, Value
from ..specs import TensorSpec
from .linear import Choice, Editing, Reasons, whole

QUANTIZED = {
    "rms_norm": "rms_norm_quantized",
    "add_rms_norm": "add_rms_norm_quantized",
    "silu_mul": "silu_mul_quantized",
}
"""The op that writes 8 bits, by the op whose last output may be in 8 bits."""


def quantize_inputs(graph: Graph, choice: Choice, neighbors: bool, reasons: Reasons) -> Graph:
    """`graph` with 8-bit inputs for such linears. `reasons` receives, by label, why other linears keep theirs.

    A producer that is forced to an implementation keeps its op; without `neighbors`, all producers do.
    """
    edited = _Inputs(graph, choice)
    for node in edited.source:
        reason = edited.decide(node) if node.op == "linear" else None
        if reason is not None:
            reasons.setdefault(node.label, {})["inputs in 8 bits"] = reason
    for node in edited.source:
        edited.write(node, neighbors)
    return edited.graph


class _Inputs(Editing):
    def __init__(self, graph: Graph, choice: Choice) -> None:
        super().__init__(graph)
        self.choice = choice
        self.chosen: dict[str, Rows] = {}
        """The 8-bit dtype of a linear's inputs, by the linear's label."""
        self.merged: dict[str, tuple[Value, Value]] = {}
        """Quantized rows and their scales, by the value that they replace."""

    def decide(self, node: Node) -> str | None:
        weight, x = self.weight(node), self.choice.spec(node.inputs[0])
        fmt = None if weight is None else weight.formats[0]
        if weight is None or x is None or not isinstance(fmt, Rows):
            return None
        q, q_scale = TensorSpec(x.shape, fmt.dtype), TensorSpec(x.shape[:-1], torch.float32)
        values, scale = fmt.specs(*weight.shape, weight.dtype)
        inputs = (q, values, node.inputs[2], scale, q_scale, None, None)
        reason = self.choice.refuses(inputs, {"format": fmt.name, "dtype": x.dtype})
        if reason is None:
            self.chosen[node.label] = fmt
        return reason

    def write(self, node: Node, neighbors: bool) -> None:
        if neighbors and node.op in QUANTIZED and node.op not in self.choice.forced:
            node = self._producer(node)
        if node.label in self.chosen:
            node = self._linear(node, self.chosen[node.label])
        self.graph.nodes.append(node)

    def _producer(self, node: Node) -> Node:
        *others, y = node.outputs
        linear = self.reader(y, "linear")
        fmt = None if linear is None else self.chosen.get(linear.label)
        if linear is None or fmt is None or linear.inputs[0] is None or not whole(linear.inputs[0], y):
            return node
        norm = node.inputs[-1] if node.op != "silu_mul" else None
        if norm is not None and norm.dtype is not torch.float32:
            return node  # numerics that round between the norm and its weight
        q = Value(f"{y.name}.q", TensorSpec(y.shape, fmt.dtype), "node")
        scale = Value(f"{y.name}.scale", TensorSpec(y.shape[:-1], torch.float32), "node")
        del self.graph.values[y.name]
        self.graph.values |= {q.name: q, scale.name: scale}
        self.merged[y.name] = q, scale
        attrs = {**node.attrs, "dtype": fmt.dtype}
        return Node(node.label, QUANTIZED[node.op], node.inputs, (*others, q, scale), attrs)

    def _linear(self, node: Node, fmt: Rows) -> Node:
        x, _, bias, *_ = node.inputs
        assert x is not None
        if x.root.name in self.merged:
            q, q_scale = self.merged[x.root.name]
            if q.shape != x.shape:
                q, q_scale = self.graph.reshape(q, x.shape), self.graph.reshape(q_scale, x.shape[:-1])
        else:
            q, q_scale = self.graph.add("quantize_rows", x, dtype=fmt.dtype, label=f"{node.label}.in")
        values, scale = self.tensors(node, fmt)
        attrs = {"format": fmt.name, "dtype": node.outputs[0].dtype}
        return Node(node.label, "linear", (q, values, bias, scale, q_scale, None, None), node.outputs, attrs)
