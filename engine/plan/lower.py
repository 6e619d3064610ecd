"""Graph x bucket x device -> Plan: bind sizes, choose implementations (keeping the reasons), place intermediates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import GraphError, PlanError
from ..graph import Graph, Node, Value, verify
from ..ops import Avoided, all_ops, get_op
from ..specs import Dim, TensorSpec, bind, contiguous_strides, product, static
from .eight_bits import quantize_inputs
from .linear import Choice, Reasons, check_formats, choose_linears
from .memory import Lifetime, assign
from .plan import Plan, PlannedNode, Ref, nbytes


def lower(
    graph: Graph,
    sizes: Mapping[str, int],
    device: torch.device | str = "cpu",
    forced: Mapping[str, Sequence[str]] | None = None,
    guard: int = 0,
    fused: bool = True,
    avoided: Avoided | None = None,
) -> Plan:
    """The plan of `graph` with its symbols bound to `sizes`.

    `forced` lists, by op, the implementations that may serve, the preferred one first. An unknown name, or a node that
    none of them can serve, is a PlanError. An implementation that `avoided` has a reason against counts as refusing.
    `guard` leaves that many bytes free after every intermediate, for tests. Without `fused`, the plan has each of the
    graph's nodes (see linear.py), for a comparison node by node.
    """
    device, forced = torch.device(device), forced or {}
    unknown = sorted(set(forced) - set(all_ops()))
    if unknown:
        raise PlanError(f"implementations are forced for unknown ops: {', '.join(unknown)}")
    wrong = {name: size for name, size in sizes.items() if size < 0}
    if wrong:
        raise PlanError(f"{graph.name}: expected sizes of at least 0, got {wrong}")
    verify(graph)
    check_formats(graph)
    choice, instead = Choice(sizes, device, forced, avoided), Reasons()
    graph = quantize_inputs(graph, choice, fused, instead)
    graph = choose_linears(graph, choice, fused, instead)
    verify(graph)
    nodes = tuple(_plan_node(node, choice, instead.get(node.label, {})) for node in graph.nodes)
    lifetimes = _lifetimes(graph, sizes)
    offsets, arena = assign(lifetimes, guard)

    def specs(kind: str) -> dict[str, TensorSpec]:
        roots = (v for v in graph.values.values() if v.base is None and v.kind == kind)
        return {v.name: _concrete(v, sizes).spec for v in roots}

    return Plan(
        program=graph.program,
        form=graph.form,
        sizes=dict(sizes),
        device=device,
        nodes=nodes,
        inputs=specs("input"),
        on_device=frozenset(graph.on_device),
        states=specs("state"),
        weights=specs("weight"),
        outputs={name: _concrete(value, sizes) for name, value in graph.outputs.items()},
        offsets=offsets,
        arena_bytes=arena,
        lifetimes=tuple(lifetimes),
        row_axes=_row_axes(graph),
    )


def _concrete(value: Value, sizes: Mapping[str, int]) -> Ref:
    shape = tuple(bind(s, sizes) for s in value.shape)
    strides = contiguous_strides(shape) if value.base is None else value.strides
    ref = Ref(
        value.root.name,
        value.root.kind,
        TensorSpec(shape, value.dtype),
        bind(value.offset, sizes),
        tuple(bind(s, sizes) for s in strides),
    )
    _check_window(value, ref, bind(product(value.root.shape), sizes))
    return ref


def _check_window(value: Value, ref: Ref, elements: int) -> None:
    """Refuse a view that extends beyond its storage, because it would read or write whatever lies there."""
    shape = [static(s) for s in ref.spec.shape]
    if min(shape, default=0) < 0:
        raise GraphError(f"'{value.name}' has a negative size in this bucket: {shape}")
    if 0 in shape:
        return
    steps = [(size - 1) * stride for size, stride in zip(shape, ref.strides, strict=True)]
    first, last = ref.offset + sum(min(s, 0) for s in steps), ref.offset + sum(max(s, 0) for s in steps)
    if first < 0 or last >= elements:
        raise GraphError(
            f"'{value.name}' {ref.spec} reaches elements {first} to {last} of '{ref.root}', which has {elements}"
        )


def _plan_node(node: Node, choice: Choice, instead: Mapping[str, str]) -> PlannedNode:
    """instead: the alternatives to the node, and why each was not chosen."""
    op, sizes, forced = get_op(node.op), choice.sizes, choice.forced.get(node.op, ())
    inputs = tuple(None if v is None else _concrete(v, sizes) for v in node.inputs)
    outputs = tuple(_concrete(v, sizes) for v in node.outputs)
    attrs: dict[str, Any] = {k: bind(v, sizes) if isinstance(v, Dim) else v for k, v in node.attrs.items()}
    specs = [None if r is None else r.spec for r in inputs]
    bound = op.schema.bind(op.name, specs, attrs, node.label)
    implementation, refused = op.choose(choice.device, specs, attrs, forced, choice.avoided)
    if forced:
        reason = "asked for by name"
    elif refused:
        reason = "first that can serve"
    else:
        reason = "first choice" if len(op.implementations) > 1 else "the only one"
    moved = op.bytes_moved(bound, attrs, [*specs, *(r.spec for r in outputs)])
    return PlannedNode(
        node.label,
        node.op,
        implementation,
        reason,
        {**refused, **instead},
        inputs,
        outputs,
        attrs,
        op.flops(bound, attrs),
        moved,
    )


def _row_axes(graph: Graph) -> dict[str, int]:
    roots = [v for v in graph.values.values() if v.base is None and v.kind in ("input", "state")]
    axes = {v.name: [axis for axis, size in enumerate(v.shape) if size in graph.rows] for v in roots}
    return {name: found[0] for name, found in axes.items() if found}


def _lifetimes(graph: Graph, sizes: Mapping[str, int]) -> list[Lifetime]:
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for i, node in enumerate(graph.nodes):
        for value in node.outputs:
            first[value.name] = last[value.name] = i
        for operand in node.inputs:
            if operand is not None and operand.root.kind == "node":
                last[operand.root.name] = i
    for value in graph.outputs.values():
        if value.root.kind == "node":
            last[value.root.name] = len(graph.nodes)
    return [Lifetime(n, nbytes(_concrete(graph.values[n], sizes).spec), first[n], last[n]) for n in first]
