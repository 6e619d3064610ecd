"""Decides how every linear is computed: its weight format, the neighbors fused into it, and its implementation.

Graphs are written in small ops. A linear may absorb an RMSNorm before it, and a gated SiLU, a GELU or a residual add
after it, if some implementation of the fused op neither refuses nor yields. An `add_rms_norm` is then split into its
halves, one for the linear before it and one for the linear after it. Only values that nothing else reads disappear.
Where a graph decodes and the rows are few, formats for decoding are tried before the format that serves all inputs. A
linear with a row-major 8-bit weight gets 8-bit inputs where that pays (plan/eight_bits.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..errors import PlanError, SchemaError
from ..formats import FORMATS, Format, Weight
from ..graph import Graph, Node, Value
from ..ops import Avoided, get_op
from ..ops.linear import few_to_decode
from ..specs import TensorSpec, bind, contiguous_strides, product

NEIGHBORS = ("rms_norm", "add_rms_norm", "silu_mul", "gelu")
ACTIVATIONS = {"silu_mul": "gated_silu", "gelu": "gelu"}
Reasons = dict[str, dict[str, str]]
"""Why each rejected alternative was not chosen: by label, then by alternative."""


@dataclass(frozen=True)
class Choice:
    """What implementations are chosen by: sizes, device, forced implementations by op, and those to avoid."""

    sizes: Mapping[str, int]
    device: torch.device
    forced: Mapping[str, Sequence[str]] = field(default_factory=dict)
    avoided: Avoided | None = None

    def spec(self, value: Value | TensorSpec | None) -> TensorSpec | None:
        return None if value is None else TensorSpec(tuple(bind(s, self.sizes) for s in value.shape), value.dtype)

    def refuses(self, inputs: Sequence[Value | TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
        """Why such a linear should not be made, or None: nothing can serve it, or only torch's, which yields."""
        op, specs = get_op("linear"), [self.spec(value) for value in inputs]
        try:
            op.schema.bind(op.name, specs, attrs)
            found, _ = op.choose(self.device, specs, attrs, self.forced.get(op.name, ()), self.avoided)
        except (PlanError, SchemaError) as error:
            return str(error)
        return found.yields(self.device, specs, attrs) if found.name == "torch" else None


class Editing:
    """A copy of a graph whose nodes are rewritten, with the readers of its values."""

    def __init__(self, graph: Graph) -> None:
        self.source = graph.nodes
        values, outputs, labels = dict(graph.values), dict(graph.outputs), set(graph.labels)
        self.graph = replace(graph, values=values, nodes=[], outputs=outputs, labels=labels, scope="")
        self.readers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for value in node.inputs:
                if value is not None:
                    self.readers.setdefault(value.root.name, []).append(node)
        self.kept = {value.root.name for value in graph.outputs.values()}

    def reader(self, value: Value, *ops: str) -> Node | None:
        """The only node that reads `value`, if it is one of `ops`, reads it once, and `value` is no output."""
        readers = self.readers.get(value.name, [])
        alone = len(readers) == 1 and value.name not in self.kept
        return readers[0] if alone and readers[0].op in ops else None

    def weight(self, node: Node) -> Weight | None:
        """The formats of a linear's weight, or None if the weight is a plain tensor."""
        assert node.inputs[1] is not None
        found = self.graph.weights.get(node.inputs[1].name)
        return found if isinstance(found, Weight) else None

    def tensors(self, node: Node, fmt: Format) -> tuple[Value | None, Value | None]:
        """A linear's weight in one of its formats: values and scales."""
        weight = self.weight(node)
        if weight is None:
            return node.inputs[1], None
        specs = zip(weight.names(fmt), fmt.specs(*weight.shape, weight.dtype), strict=True)
        values, scales = (None if spec is None else self._declared(name, spec) for name, spec in specs)
        return values, scales

    def _declared(self, name: str, spec: TensorSpec) -> Value:
        known = self.graph.values.get(name)
        if known is None or known.spec != spec:
            known = self.graph.values[name] = Value(name, spec, "weight")
        return known

    def forget_unread(self) -> None:
        """Drop weights that the graph reads only in other formats."""
        read = {v.root for node in self.graph.nodes for v in node.inputs if v is not None}
        weights = self.graph.weights
        unread = [n for n, v in self.graph.values.items() if isinstance(weights.get(n), Weight) and v.root not in read]
        for name in unread:
            del self.graph.values[name]


def check_formats(graph: Graph) -> None:
    """Raise PlanError if an op other than a linear, or a view, reads a weight that is not stored as it is."""
    for node in graph.nodes:
        for i, value in enumerate(node.inputs):
            weight = None if value is None else graph.weights.get(value.root.name)
            if not isinstance(weight, Weight) or weight.formats[0].name == "dense":
                continue
            assert value is not None
            if (node.op, i) != ("linear", 1) or value.base is not None:
                raise PlanError(
                    f"{node.label} ({node.op}): expected a weight stored row by row, got '{weight.name}' in "
                    f"{weight.formats[0].name}, which only linears read"
                )


def choose_linears(graph: Graph, choice: Choice, neighbors: bool, reasons: Reasons) -> Graph:
    """`graph` with every linear in its final form. `reasons` receives, by label, why alternatives were rejected.

    Without `neighbors`, or where a neighbor is forced to an implementation, each node of the graph stays on its own.
    """
    linears = _Linears(graph, choice, neighbors and not any(op in choice.forced for op in NEIGHBORS), reasons)
    linears.run()
    linears.forget_unread()
    return linears.graph


class _Linears(Editing):
    def __init__(self, graph: Graph, choice: Choice, neighbors: bool, reasons: Reasons) -> None:
        super().__init__(graph)
        self.choice, self.neighbors, self.reasons = choice, neighbors, reasons
        self.written: set[str] = set()
        """Values of nodes that have been emitted."""
        self.norms: dict[str, Node] = {}
        """RMSNorms that a linear may absorb, by the value that they write."""
        self.done: set[str] = set()
        self.at = 0
        """Position in the source graph of the node being processed."""
        self.places = {node.label: place for place, node in enumerate(graph.nodes)}
        self.overwrites: dict[str, list[int]] = {}
        """Positions of the nodes that write a value in place, by the value's name."""
        for place, node in enumerate(graph.nodes):
            for value in overwritten(node):
                self.overwrites.setdefault(value.name, []).append(place)

    def run(self) -> None:
        for place, node in enumerate(self.source):
            self.at = place
            if node.label in self.done:
                continue
            if node.op == "linear" and "format" not in node.attrs:
                self._linear(node)
            elif node.op == "rms_norm":
                self._norm(node)
            else:
                self._keep(node)

    def _after(self, y: Value) -> Node | None:
        """The activation of `y`, or its add to a residual that has been emitted; None if anything else reads `y`."""
        node = self.reader(y, "add_rms_norm", *ACTIVATIONS) if self.neighbors else None
        if node is None or node.op in ACTIVATIONS:
            return node if node is not None and node.inputs[0] is y else None
        residual, delta, _ = node.inputs
        assert residual is not None
        root = residual.root
        there = root.kind in ("input", "weight") or root.name in self.written or root.name in self.norms
        return node if delta is y and there and self._same_until(node, root) else None

    def _same_until(self, node: Node, root: Value) -> bool:
        """True if no node still to be emitted before `node` overwrites `root`."""
        return not any(self.at < place < self.places[node.label] for place in self.overwrites.get(root.name, ()))

    def _emit(self, node: Node) -> None:
        self.graph.nodes.append(node)
        self.written.update(value.name for value in node.outputs)

    def _keep(self, node: Node) -> None:
        """Emit `node` after the norms that it reads and after those that read what it overwrites."""
        for value in node.inputs:
            if value is not None and value.root.name in self.norms:
                self._emit(self.norms.pop(value.root.name))
        for name, norm in [*self.norms.items()]:
            if norm.inputs[0] is not None and norm.inputs[0].root in overwritten(node):
                self._emit(self.norms.pop(name))
        self._emit(node)

    def _linear(self, node: Node) -> None:
        x, (y,) = node.inputs[0], node.outputs
        assert x is not None
        norm, after = self.norms.get(x.root.name), self._after(y)
        if norm is not None and not whole(x, norm.outputs[0]):
            norm = None
        formats = self._formats(node, x, after)
        for fmt in formats:
            if norm is not None or after is not None:
                fused = self._computed(node, fmt, norm, after)
                reason = self.choice.refuses(fused.inputs, fused.attrs)
                if reason is None:
                    self._replace(fused, norm, after)
                    return
                self.reasons.setdefault(node.label, {})["with its neighbors"] = reason
            alone = self._computed(node, fmt)
            reason = None if fmt is formats[-1] else self.choice.refuses(alone.inputs, alone.attrs)
            if reason is None:
                self._keep(alone)
                return
            self.reasons.setdefault(node.label, {})[f"in {fmt.name}"] = reason

    def _computed(self, node: Node, fmt: Format, norm: Node | None = None, after: Node | None = None) -> Node:
        """A linear with its weight in one format and with the neighbors that it absorbs."""
        x, _, bias, *_ = node.inputs
        assert x is not None
        source, norm_weight = self._unnormed(x, norm)
        values, scale = self.tensors(node, fmt)
        (y,) = node.outputs
        attrs = {**node.attrs, "format": fmt.name, "dtype": y.dtype}
        residual = None
        if norm is not None:
            attrs["eps"] = norm.attrs["eps"]
        if after is not None:
            y = after.outputs[0]
            attrs |= dict(act=ACTIVATIONS.get(after.op, "none"), dtype=y.dtype)
            residual = after.inputs[0] if after.op == "add_rms_norm" else None
        return Node(node.label, "linear", (source, values, bias, scale, None, norm_weight, residual), (y,), attrs)

    def _formats(self, node: Node, x: Value, after: Node | None) -> list[Format]:
        """Formats that may serve, the preferred one first."""
        weight, spec = self.weight(node), self.choice.spec(x)
        first, *others = (FORMATS["dense"],) if weight is None else weight.formats
        assert spec is not None
        few = self.graph.decodes and few_to_decode(spec) and node.inputs[2] is None
        return [fmt for fmt in others if few and (after is None or after.op != "gelu")] + [first]

    def _unnormed(self, x: Value, norm: Node | None) -> tuple[Value, Value | None]:
        """The value that `norm` reads, in the shape of x, and the norm's weight; x itself if there is no norm."""
        if norm is None:
            return x, None
        source, weight = norm.inputs
        assert source is not None
        return source if source.shape == x.shape else self.graph.reshape(source, x.shape), weight

    def _replace(self, node: Node, norm: Node | None, after: Node | None) -> None:
        """Put `node` in place of the linear, the norm before it and the node after it."""
        if norm is not None:
            del self.norms[norm.outputs[0].name]
        self._keep(node)
        if after is None:
            return
        self.done.add(after.label)
        if after.op == "add_rms_norm":
            (total, normed), weight = after.outputs, after.inputs[2]
            self._norm(Node(f"{after.label}.norm", "rms_norm", (total, weight), (normed,), dict(after.attrs)))

    def _norm(self, node: Node) -> None:
        """Hold the norm back for the linear that may absorb it, unless a state that it reads could change until then.

        Where an `add_rms_norm` is split, a half that nothing reads is dropped.
        """
        (normed,), (source, _) = node.outputs, node.inputs
        if normed.name not in self.readers and normed.name not in self.kept:
            return
        waits = self.neighbors and source is not None and source.kind == "node"
        if waits and self.reader(normed, "linear"):
            self.norms[normed.name] = node
        else:
            self._emit(node)


def overwritten(node: Node) -> list[Value]:
    """The values that a node writes in place."""
    arguments = zip(get_op(node.op).schema.inputs, node.inputs, strict=True)
    return [value.root for arg, value in arguments if arg.mutated and value is not None]


def whole(view: Value, value: Value) -> bool:
    """True if `view` is all of `value`, at most in another shape."""
    if view is value:
        return True
    same = view.root is value and product(view.shape) == product(value.shape)
    return same and view.strides == contiguous_strides(view.shape)
