"""A linear, the norm in front of it and what stands behind it, as one node where a kernel for that serves.

Graphs are written in small ops. For few tokens a row, as in decoding, `fused_linear` takes an RMSNorm in front, and a
gated SiLU or a residual add after it: `add_rms_norm` is then split into its halves, one for the linear before it and
one for the linear after it. Only values that nobody else reads disappear.

A linear whose weight is in tiles becomes a `tiled_linear`, whatever stands around it and however many rows it has; or
an `int4_linear`, where the graph names 4-bit weights that serve to decode few rows and these are few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..errors import PlanError, SchemaError
from ..graph import Graph, Node, Value
from ..ops import Avoided, get_op, linear
from ..specs import TensorSpec, bind, contiguous_strides, product

PARTS = ("linear", "linear_w8a16", "rms_norm", "add_rms_norm", "silu_mul", "gelu")


def fuse(
    graph: Graph,
    sizes: Mapping[str, int],
    device: torch.device,
    forced: Mapping[str, Sequence[str]],
    avoided: Avoided | None = None,
    neighbors: bool = True,
) -> tuple[Graph, Mapping[str, str]]:
    """`graph` with its linears fused with their neighbors, and why not, by label, where no implementation serves.

    Without `neighbors`, or where one of the parts is forced to an implementation, only tiled weights change nodes.
    """
    neighbors = neighbors and not any(part in forced for part in PARTS)
    if not neighbors and not any(weight.tiled for weight in graph.weights.values()):
        return graph, {}
    choice = forced.get("fused_linear", ()), avoided
    fusion = _Fusion(graph, sizes, device, choice, neighbors)
    fusion.run()
    return fusion.graph, fusion.refused


class _Fusion:
    def __init__(
        self,
        graph: Graph,
        sizes: Mapping[str, int],
        device: torch.device,
        choice: tuple[Sequence[str], Avoided | None],
        neighbors: bool,
    ) -> None:
        """choice: which implementations of `fused_linear` are forced, and what is avoided."""
        self.graph = replace(
            graph, values=dict(graph.values), nodes=[], outputs=dict(graph.outputs), labels=set(graph.labels)
        )
        self.source, self.sizes, self.device, self.choice = graph.nodes, sizes, device, choice
        self.neighbors = neighbors
        self.readers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for value in node.inputs:
                if value is not None:
                    self.readers.setdefault(value.root.name, []).append(node)
        self.kept = {value.root.name for value in graph.outputs.values()}
        self.written: set[str] = set()
        """Values of nodes that are there by now."""
        self.norms: dict[str, Node] = {}
        """RMSNorms that a linear may take, by the value that they write."""
        self.done: set[str] = set()
        self.at = 0
        """The place in the source of the node that is looked at."""
        self.places = {node.label: place for place, node in enumerate(graph.nodes)}
        self.overwrites: dict[str, list[int]] = {}
        """By the name of a value, the places of the nodes that write it in place."""
        for place, node in enumerate(graph.nodes):
            for value in overwritten(node):
                self.overwrites.setdefault(value.name, []).append(place)
        self.refused: dict[str, str] = {}

    def run(self) -> None:
        for place, node in enumerate(self.source):
            self.at = place
            if node.label in self.done:
                continue
            if node.op in ("linear", "linear_w8a16"):
                self._linear(node)
            elif node.op == "rms_norm":
                self._norm(node)
            else:
                self._keep(node)

    def _reader(self, value: Value, *ops: str) -> Node | None:
        """The one node that reads `value`, where it is of `ops`, reads it once, and the value is no output."""
        readers = self.readers.get(value.name, [])
        alone = self.neighbors and len(readers) == 1 and value.name not in self.kept
        return readers[0] if alone and readers[0].op in ops else None

    def _behind(self, y: Value, *activations: str) -> Node | None:
        """The activation of `y`, or the node that adds it to a residual that is there by now; only they read it."""
        node = self._reader(y, "add_rms_norm", *activations)
        if node is None or node.op in activations:
            return node if node is not None and node.inputs[0] is y else None
        residual, delta, _ = node.inputs
        assert residual is not None
        root = residual.root
        there = root.kind in ("input", "weight") or root.name in self.written or root.name in self.norms
        return node if delta is y and there and self._same_until(node, root) else None

    def _same_until(self, node: Node, root: Value) -> bool:
        """True if nothing that is still to come before `node` overwrites `root`."""
        return not any(self.at < place < self.places[node.label] for place in self.overwrites.get(root.name, ()))

    def _emit(self, node: Node) -> None:
        self.graph.nodes.append(node)
        self.written.update(value.name for value in node.outputs)

    def _keep(self, node: Node) -> None:
        """Behind the norms that it turned out to need, and those of what it overwrites."""
        for value in node.inputs:
            if value is not None and value.root.name in self.norms:
                self._emit(self.norms.pop(value.root.name))
        for name, norm in [*self.norms.items()]:
            if norm.inputs[0] is not None and norm.inputs[0].root in overwritten(node):
                self._emit(self.norms.pop(name))
        self._emit(node)

    def _linear(self, node: Node) -> None:
        x, weight, *rest = node.inputs
        scale, bias = rest if node.op == "linear_w8a16" else (None, *rest)
        assert x is not None
        assert weight is not None
        (y,) = node.outputs
        norm = self.norms.get(x.root.name)
        if norm is not None and not whole(x, norm.outputs[0]):
            norm = None
        if weight.root.spec.tiled:
            return self._tiled(node, x, norm, scale, bias)
        behind = self._behind(y, "silu_mul")
        gated = behind is not None and behind.op == "silu_mul"
        adds = None if gated else behind
        # not for a gated SiLU alone, whose dtypes do not tell whether the linear has to round before it
        if bias is not None or node.attrs.get("split_bias") or (norm is None and adds is None):
            return self._keep(node)
        x, norm_weight = self._unnormed(x, norm)
        out = y if behind is None else behind.outputs[0]
        inputs = (x, norm_weight, weight, scale, adds.inputs[0] if adds else None)
        attrs = dict(eps=norm.attrs["eps"] if norm else 0.0, gated=gated, dtype=out.dtype)
        reason = self._refusal(inputs, attrs)
        if reason is not None:
            self.refused[node.label] = reason
            return self._keep(node)
        return self._replace(Node(node.label, "fused_linear", inputs, (out,), attrs), norm, behind)

    def _tiled(self, node: Node, x: Value, norm: Node | None, scale: Value | None, bias: Value | None) -> None:
        weight = node.inputs[1]
        assert weight is not None
        if node.attrs.get("split_bias"):
            raise PlanError(f"{node.label}: a linear that rounds before it adds its bias has no weight in tiles")
        (y,) = node.outputs
        behind = self._behind(y, "silu_mul", "gelu")
        act = {"silu_mul": "gated_silu", "gelu": "gelu"}.get(behind.op, "none") if behind else "none"
        residual = behind.inputs[0] if behind is not None and act == "none" else None
        x, norm_weight = self._unnormed(x, norm)
        out = y if behind is None else behind.outputs[0]
        attrs = dict(eps=norm.attrs["eps"] if norm else 0.0, dtype=out.dtype)
        few = linear.few_to_decode(TensorSpec(tuple(bind(s, self.sizes) for s in x.shape), x.dtype))
        int4 = self.graph.int4.get(weight.name) if few and bias is None and act != "gelu" else None
        if int4 is None:
            read = (x, norm_weight, weight, scale, bias, residual)
            fused = Node(node.label, "tiled_linear", read, (out,), attrs | dict(act=act))
        else:
            gated = dict(gated=act == "gated_silu")
            fused = Node(node.label, "int4_linear", (x, norm_weight, *int4, residual), (out,), attrs | gated)
        self._replace(fused, norm, behind)

    def _unnormed(self, x: Value, norm: Node | None) -> tuple[Value, Value | None]:
        """What `norm` reads, in the shape of x, and its weight; x itself where there is none."""
        if norm is None:
            return x, None
        source, weight = norm.inputs
        assert source is not None
        return source if source.shape == x.shape else self.graph.reshape(source, x.shape), weight

    def _replace(self, node: Node, norm: Node | None, behind: Node | None) -> None:
        """`node` for a linear, the norm in front of it and the node behind it."""
        if norm is not None:
            del self.norms[norm.outputs[0].name]
        self._keep(node)
        if behind is None:
            return
        self.done.add(behind.label)
        if behind.op == "add_rms_norm":
            (total, normed), weight = behind.outputs, behind.inputs[2]
            self._norm(Node(f"{behind.label}.norm", "rms_norm", (total, weight), (normed,), dict(behind.attrs)))

    def _norm(self, node: Node) -> None:
        """Waits for the linear that may take it; a state that it reads could change until then.

        The half of a split `add_rms_norm` that nobody reads is left out.
        """
        (normed,), (source, _) = node.outputs, node.inputs
        if normed.name not in self.readers and normed.name not in self.kept:
            return
        if source is not None and source.kind == "node" and self._reader(normed, "linear", "linear_w8a16"):
            self.norms[normed.name] = node
        else:
            self._emit(node)

    def _refusal(self, inputs: Sequence[Value | None], attrs: Mapping[str, Any]) -> str | None:
        op = get_op("fused_linear")
        specs = [
            None if v is None else TensorSpec(tuple(bind(s, self.sizes) for s in v.shape), v.dtype) for v in inputs
        ]
        try:
            op.schema.bind(op.name, specs, attrs)
            op.choose(self.device, specs, attrs, *self.choice)
        except (PlanError, SchemaError) as error:
            return str(error)
        return None


def overwritten(node: Node) -> list[Value]:
    """What a node writes in place."""
    arguments = zip(get_op(node.op).schema.inputs, node.inputs, strict=True)
    return [value.root for arg, value in arguments if arg.mutated and value is not None]


def whole(view: Value, value: Value) -> bool:
    """True if `view` is all of `value`, at most in another shape."""
    if view is value:
        return True
    same = view.root is value and product(view.shape) == product(value.shape)
    return same and view.strides == contiguous_strides(view.shape)
