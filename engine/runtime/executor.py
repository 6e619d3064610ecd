"""Runs a plan: every tensor is bound to its bytes once, then a run is a walk over ready calls.

Between runs the caller writes `inputs` and reads `outputs`; states outlive the executor and may be shared by several.
The loop over the calls makes no tensor and no allocation of its own; torch implementations may take temporaries inside
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch

from ..errors import PlanError
from ..ir import TensorSpec, contiguous_strides
from ..plan import Plan, PlannedNode, Ref


def allocate(spec: TensorSpec, device: torch.device) -> torch.Tensor:
    """Zeroed memory for a concrete spec: keys that no row owns yet must not be NaN, for 0 * NaN is NaN."""
    return torch.zeros([int(s) for s in spec.shape], dtype=spec.dtype, device=device)  # type: ignore[arg-type]


def allocate_states(plan: Plan) -> dict[str, torch.Tensor]:
    """One zeroed tensor per state of the plan."""
    return {name: allocate(spec, plan.device) for name, spec in plan.states.items()}


class Executor:
    """A plan bound to memory.

    `weights` and `states` are tensors by name, of the plan's shapes, dtypes and device (PlanError otherwise, or where
    one that is read through views is not contiguous); without `states` all of them are allocated. `inputs` may hold
    some of the inputs, to share them with another executor; the others are allocated.
    """

    def __init__(
        self,
        plan: Plan,
        weights: Mapping[str, torch.Tensor],
        states: Mapping[str, torch.Tensor] | None = None,
        inputs: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.plan = plan
        self.states = allocate_states(plan) if states is None else dict(states)
        self.inputs = {
            name: inputs[name] if inputs and name in inputs else allocate(spec, plan.device)
            for name, spec in plan.inputs.items()
        }
        for kind, specs, tensors in (
            ("weight", plan.weights, weights),
            ("state", plan.states, self.states),
            ("input", plan.inputs, self.inputs),
        ):
            _check(plan, kind, specs, tensors)
        self._arena = torch.zeros(plan.arena_bytes, dtype=torch.uint8, device=plan.device)
        self._storages = {"weight": weights, "state": self.states, "input": self.inputs}
        self.calls = [self._bind(node) for node in plan.nodes]
        self.outputs = {name: self.tensor(ref) for name, ref in plan.outputs.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of the arena, the states and the inputs."""
        return sum(t.nbytes for t in (self._arena, *self.states.values(), *self.inputs.values()))

    def run(self) -> None:
        """Walk the plan once, in the plan's dtypes: an autocast region of the caller's does not reach in."""
        with torch.autocast(self.plan.device.type, enabled=False):
            for call in self.calls:
                call()

    def steps(self) -> Iterator[tuple[PlannedNode, list[torch.Tensor]]]:
        """Walk the plan, giving each node and the tensors it wrote as soon as they are written."""
        for node, call in zip(self.plan.nodes, self.calls, strict=True):
            with torch.autocast(self.plan.device.type, enabled=False):
                call()
            yield node, [self.tensor(ref) for ref in node.outputs]

    def tensor(self, ref: Ref) -> torch.Tensor:
        """The window that `ref` describes, on this executor's memory."""
        shape = [int(s) for s in ref.spec.shape]  # type: ignore[arg-type]
        if ref.kind == "node":
            start = self.plan.offsets[ref.root] // ref.spec.dtype.itemsize
            return self._arena.view(ref.spec.dtype).as_strided(shape, ref.strides, start + ref.offset)
        root = self._storages[ref.kind][ref.root]
        if list(root.shape) == shape and ref.offset == 0 and ref.strides == contiguous_strides(shape):
            return root  # keeps a weight's own memory format, e.g. channels last
        if not root.is_contiguous():
            raise PlanError(
                f"{self.plan.name}: {ref.kind} '{ref.root}' is read through views, expected it contiguous, "
                f"got strides {root.stride()}; call .contiguous()"
            )
        return root.as_strided(shape, ref.strides, root.storage_offset() + ref.offset)

    def _bind(self, node: PlannedNode) -> Callable[[], None]:
        args = [None if ref is None else self.tensor(ref) for ref in node.inputs]
        args += [self.tensor(ref) for ref in node.outputs]
        return partial(node.implementation.run, *args, **node.attrs)


def _check(plan: Plan, kind: str, specs: Mapping[str, TensorSpec], tensors: Mapping[str, torch.Tensor]) -> None:
    for name, spec in specs.items():
        if name not in tensors:
            raise PlanError(f"{plan.name}: {kind} '{name}' is missing, expected {spec}")
        got = TensorSpec(tuple(tensors[name].shape), tensors[name].dtype)
        if got != spec:
            raise PlanError(f"{plan.name}: {kind} '{name}' expected {spec}, got {got}")
        if tensors[name].device.type != plan.device.type:
            raise PlanError(f"{plan.name}: {kind} '{name}' expected on {plan.device}, got {tensors[name].device}")
