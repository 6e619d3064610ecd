"""A frozen plan: every node with its implementation, the reason for it, its buffers and its cost. It prints itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..graph import full_name
from ..ops import Implementation
from ..specs import TensorSpec
from ..table import columns
from .memory import Lifetime


@dataclass(frozen=True)
class Ref:
    """A concrete strided window on a storage. `kind` says on which: an input, state, weight, or node (the arena)."""

    root: str
    kind: str
    spec: TensorSpec
    offset: int
    strides: tuple[int, ...]


@dataclass(frozen=True)
class PlannedNode:
    """One call that is ready to run."""

    label: str
    op: str
    implementation: Implementation
    reason: str
    refused: Mapping[str, str]
    inputs: tuple[Ref | None, ...]
    outputs: tuple[Ref, ...]
    attrs: Mapping[str, Any]
    flops: int
    nbytes: int

    @property
    def work(self) -> str:
        """The op, for display; a linear with the format of its weight where that is not the default."""
        fmt = self.attrs.get("format", "dense")
        return self.op if fmt == "dense" else f"{self.op}/{fmt}"

    def where(self, offsets: Mapping[str, int]) -> str:
        """Where the first output is stored, for display."""
        if not self.outputs:
            return "in place"
        return f"arena+{offsets[self.outputs[0].root]}"


@dataclass(frozen=True)
class Plan:
    """A graph lowered for one bucket, device and choice of implementations."""

    program: str
    sizes: Mapping[str, int]
    device: torch.device
    nodes: tuple[PlannedNode, ...]
    inputs: Mapping[str, TensorSpec]
    on_device: frozenset[str]
    """Inputs that are filled on the device, not by the host."""
    states: Mapping[str, TensorSpec]
    weights: Mapping[str, TensorSpec]
    outputs: Mapping[str, Ref]
    offsets: Mapping[str, int]
    arena_bytes: int
    lifetimes: tuple[Lifetime, ...]
    """Lifetimes of the intermediates, in nodes. The end is len(nodes) where one is kept as an output."""
    row_axes: Mapping[str, int] = field(default_factory=dict)
    """The row axis of each state or input that has one, by name."""
    form: str = ""
    """Which form of the program this is, if it has several."""

    @property
    def name(self) -> str:
        """Program and form, for display."""
        return full_name(self.program, self.form)

    @property
    def flops(self) -> int:
        return sum(n.flops for n in self.nodes)

    @property
    def nbytes(self) -> int:
        return sum(n.nbytes for n in self.nodes)

    @property
    def unpacked_bytes(self) -> int:
        """Bytes that the intermediates would take without sharing."""
        return sum(life.nbytes for life in self.lifetimes)

    def state_bytes(self) -> int:
        return sum(nbytes(s) for s in self.states.values())

    @property
    def bucket(self) -> str:
        """The sizes, for display."""
        return ", ".join(f"{k}={v}" for k, v in self.sizes.items())

    def summary(self) -> str:
        return (
            f"{self.name} on {self.device} [{self.bucket}]: {len(self.nodes)} nodes, {self.flops / 1e9:.3f} GFLOP, "
            f"{self.nbytes / 1e6:.1f} MB moved, arena {self.arena_bytes / 1e6:.2f} MB "
            f"({self.unpacked_bytes / 1e6:.2f} MB unshared), state {self.state_bytes() / 1e6:.2f} MB"
        )

    def __str__(self) -> str:
        rows = [("node", "op", "implementation", "output", "buffer", "MFLOP", "kB")]
        for n in self.nodes:
            out = ", ".join(str(o.spec) for o in n.outputs) or "-"
            row = (
                n.label,
                n.work,
                n.implementation.name,
                out,
                n.where(self.offsets),
                f"{n.flops / 1e6:.2f}",
                f"{n.nbytes / 1e3:.0f}",
            )
            rows.append(row)
        return f"{self.summary()}\n{columns(rows)}"

    def why(self) -> str:
        """For each op: which implementation serves, why, and why the others do not."""
        lines: list[str] = []
        for op in dict.fromkeys(n.work for n in self.nodes):
            nodes = [n for n in self.nodes if n.work == op]
            for reason in dict.fromkeys((n.implementation.name, n.reason, tuple(n.refused.items())) for n in nodes):
                name, why, refused = reason
                lines.append(f"{op}: {name} ({why})")
                lines += [f"    not {other}: {text}" for other, text in refused]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data for other programs."""
        return {
            "program": self.program,
            "form": self.form,
            "device": str(self.device),
            "bucket": dict(self.sizes),
            "flops": self.flops,
            "bytes": self.nbytes,
            "arena_bytes": self.arena_bytes,
            "unshared_bytes": self.unpacked_bytes,
            "state_bytes": self.state_bytes(),
            "nodes": [
                {
                    "label": n.label,
                    "op": n.op,
                    **({"format": n.attrs["format"]} if "format" in n.attrs else {}),
                    "implementation": n.implementation.name,
                    "reason": n.reason,
                    "refused": dict(n.refused),
                    "outputs": [str(o.spec) for o in n.outputs],
                    "buffer": n.where(self.offsets),
                    "flops": n.flops,
                    "bytes": n.nbytes,
                }
                for n in self.nodes
            ],
        }


def nbytes(spec: TensorSpec) -> int:
    """Bytes of a concrete spec."""
    total = spec.dtype.itemsize
    for s in spec.shape:
        assert isinstance(s, int), "specs in a plan are concrete"
        total *= s
    return total
