"""Linears with weights in 8 bits on inputs in 8 bits, where that pays: `linear_w8a16` becomes `linear_w8a8`.

What makes a linear's input writes it in 8 bits itself, where it is a norm or a gated SiLU that nobody else reads:
nothing more passes through memory. Otherwise a `quantize_rows` stands in front. A linear stays as it is where its
weight is in tiles (see fuse.py), and where every implementation of `linear_w8a8` has a reason not to serve it: on CPUs
with VNNI torch's int8 takes a sixth of the time from five rows on, and what decodes up to four, a token each, is a
matrix-vector kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ..errors import PlanError
from ..graph import Graph, Node, Value
from ..ops import Avoided, get_op
from ..specs import TensorSpec, bind
from .fuse import whole

QUANTIZED = {
    "rms_norm": "rms_norm_quantized",
    "add_rms_norm": "add_rms_norm_quantized",
    "silu_mul": "silu_mul_quantized",
}
"""By the op whose last output may be in 8 bits, the op that writes it so."""


@dataclass(frozen=True)
class _Rows:
    """Rows in 8 bits and their scales, in place of a value."""

    q: Value
    scale: Value


def quantize_inputs(
    graph: Graph,
    sizes: Mapping[str, int],
    device: torch.device,
    forced: Mapping[str, Sequence[str]],
    avoided: Avoided | None = None,
    neighbors: bool = True,
) -> tuple[Graph, Mapping[str, str]]:
    """`graph` with its W8A16 linears on inputs in 8 bits, and by label the reason of those that keep theirs.

    A producer that is forced to an implementation keeps its op, as all do without `neighbors`; linears that are forced
    as `linear_w8a16` stay.
    """
    linears = [node for node in graph.nodes if node.op == "linear_w8a16" and not _weight(node).root.spec.tiled]
    if not linears or "linear_w8a16" in forced:
        return graph, {}
    choice = forced.get("linear_w8a8", ()), avoided
    reasons = {node.label: _refusal(node, sizes, device, choice) for node in linears}
    chosen = [node for node in linears if reasons[node.label] is None]
    graph = replace(graph, values=dict(graph.values), nodes=list(graph.nodes), labels=set(graph.labels), scope="")
    merged = {} if not neighbors else _merge(graph, chosen, forced)
    nodes, graph.nodes = graph.nodes, []
    for node in nodes:
        if node in chosen:
            _replace(graph, node, merged.get(_input(node).root.name))
        else:
            graph.nodes.append(node)
    return graph, {label: reason for label, reason in reasons.items() if reason is not None}


def _input(linear: Node) -> Value:
    x = linear.inputs[0]
    assert x is not None
    return x


def _weight(linear: Node) -> Value:
    weight = linear.inputs[1]
    assert weight is not None
    return weight


def _refusal(
    node: Node, sizes: Mapping[str, int], device: torch.device, choice: tuple[Sequence[str], Avoided | None]
) -> str | None:
    x, weight, scale, bias = (
        None if v is None else TensorSpec(tuple(bind(s, sizes) for s in v.shape), v.dtype) for v in node.inputs
    )
    assert x is not None
    assert weight is not None
    q, q_scale = TensorSpec(x.shape, weight.dtype), TensorSpec(x.shape[:-1], torch.float32)
    try:
        get_op("linear_w8a8").choose(device, (q, q_scale, weight, scale, bias), {"dtype": x.dtype}, *choice)
    except PlanError as error:
        return str(error)
    return None


def _merge(graph: Graph, linears: Sequence[Node], forced: Mapping[str, Sequence[str]]) -> dict[str, _Rows]:
    """The rows in 8 bits, by the value that they replace, of the producers that are turned to write them."""
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for value in node.inputs:
            if value is not None:
                readers.setdefault(value.root.name, []).append(node)
    kept = {value.root.name for value in graph.outputs.values()}
    merged: dict[str, _Rows] = {}
    wanted = {_input(node).root.name: node for node in linears}
    for i, node in enumerate(graph.nodes):
        if node.op not in QUANTIZED or node.op in forced:
            continue
        *others, y = node.outputs
        linear = wanted.get(y.name)
        if linear is None or readers[y.name] != [linear] or y.name in kept or not whole(_input(linear), y):
            continue
        norm = node.inputs[-1] if node.op != "silu_mul" else None
        if norm is not None and norm.dtype is not torch.float32:
            continue  # numerics that round between the norm and its weight
        attrs = {**node.attrs, "dtype": _weight(linear).dtype}
        q = Value(f"{y.name}.q", TensorSpec(y.shape, attrs["dtype"]), "node")
        scale = Value(f"{y.name}.scale", TensorSpec(y.shape[:-1], torch.float32), "node")
        del graph.values[y.name]
        graph.values |= {q.name: q, scale.name: scale}
        graph.nodes[i] = Node(node.label, QUANTIZED[node.op], node.inputs, (*others, q, scale), attrs)
        merged[y.name] = _Rows(q, scale)
    return merged


def _replace(graph: Graph, linear: Node, rows: _Rows | None) -> None:
    x, weight, scale, bias = linear.inputs
    assert x is not None
    if rows is None:
        q, q_scale = graph.add("quantize_rows", x, dtype=_weight(linear).dtype, label=f"{linear.label}.in")
    else:
        q, q_scale = rows.q, rows.scale
        if q.shape != x.shape:
            q, q_scale = graph.reshape(q, x.shape), graph.reshape(q_scale, x.shape[:-1])
    (y,) = linear.outputs
    graph.nodes.append(Node(linear.label, "linear_w8a8", (q, q_scale, weight, scale, bias), (y,), {"dtype": y.dtype}))
