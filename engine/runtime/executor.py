"""Runs a plan: every tensor is bound to its memory once, and a run then walks over ready calls or replays a CUDA graph.

Between runs the caller writes `host`, calls `upload()` and reads `outputs`. States outlive the executor, and several
executors may share them. The loop over the calls makes no tensor and allocates nothing itself; torch implementations
may allocate temporaries inside torch. On a GPU the walk is captured once, and each run replays it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch

from ..device import native
from ..errors import PlanError
from ..ops import Implementation
from ..plan import Plan, PlannedNode, Ref
from ..plan.plan import nbytes
from ..specs import TensorSpec, contiguous_strides
from . import profile
from .bound import ProcessBound
from .cuda import Gpu, Replay, Staging
from .isolation import isolated
from .openmp import end_team
from .solo import solo
from .turns import TURNS

ALIGNMENT = 256
"""Alignment in bytes of every input in the host's block, as torch aligns tensors on a GPU."""


def allocate(spec: TensorSpec, device: torch.device) -> torch.Tensor:
    """Zeroed memory for a concrete spec. Keys that no row owns yet must not be NaN, because 0 * NaN is NaN."""
    return torch.zeros([int(s) for s in spec.shape], dtype=spec.dtype, device=device)  # type: ignore[arg-type]


def allocate_states(plan: Plan, gpu: Gpu | None = None) -> dict[str, torch.Tensor]:
    """One zeroed tensor per state of the plan. Raises OutOfMemoryError."""
    device = plan.device if gpu is None else gpu.device
    with _memory(plan, gpu, {"states": plan.state_bytes()}):
        return {name: allocate(spec, device) for name, spec in plan.states.items()}


class Executor(ProcessBound):
    """A plan bound to memory.

    `weights` and `states` are tensors by name, of the plan's shapes, dtypes and device. A PlanError is raised for
    others, and for one that is read through views and is not contiguous. Without `states`, all of them are
    allocated. `inputs` may hold some of the inputs, to share them with another executor; the others are allocated.
    beside: an executor that never runs at the same time, and whose outputs are not read once this one has run;
    it lends its arena if that is large enough. A plan for a GPU needs its `gpu`. Raises OutOfMemoryError.

    host: the inputs that the caller writes, in one block that `upload()` sends to the device; on a CPU, these are the
    inputs themselves. Inputs that the plan has on the device are not in it.
    """

    def __init__(
        self,
        plan: Plan,
        weights: Mapping[str, torch.Tensor],
        states: Mapping[str, torch.Tensor] | None = None,
        inputs: Mapping[str, torch.Tensor] | None = None,
        gpu: Gpu | None = None,
        beside: Executor | None = None,
    ) -> None:
        self.plan, self.gpu = plan, gpu
        self.device = plan.device if gpu is None else gpu.device
        shared = {name: inputs[name] for name in plan.inputs if inputs and name in inputs}
        self.states = allocate_states(plan, gpu) if states is None else dict(states)
        own = {name: spec for name, spec in plan.inputs.items() if name not in shared}
        self._arena: torch.Tensor
        lent = None if beside is None or beside._arena.nbytes < plan.arena_bytes else beside._arena
        self.arena_bytes = plan.arena_bytes if lent is None else 0
        """Bytes of the arena, if it is this executor's own."""
        with _memory(plan, gpu, {"intermediates": self.arena_bytes, "inputs": sum(map(nbytes, own.values()))}):
            self._arena = torch.zeros(plan.arena_bytes, dtype=torch.uint8, device=self.device) if lent is None else lent
            made = {name: allocate(spec, self.device) for name, spec in own.items() if name in plan.on_device}
            written = {name: spec for name, spec in own.items() if name not in plan.on_device}
            self._block, placed = _block(written, self.device)
        self.inputs = shared | made | placed
        self.host, self._host_block, self._staging = placed, self._block, None
        if gpu is not None and written:
            self._host_block, self.host = _block(written, torch.device("cpu"))
            self._staging = Staging(gpu, self._block.nbytes)
        for kind, specs, tensors in (
            ("weight", plan.weights, weights),
            ("state", plan.states, self.states),
            ("input", plan.inputs, self.inputs),
        ):
            _check(plan, self.device, kind, specs, tensors)
        # A dict of its own: bound calls hold addresses, so the tensors that they point into have to stay alive.
        self._storages: dict[str, Mapping[str, torch.Tensor]] = {
            "weight": dict(weights),
            "state": self.states,
            "input": self.inputs,
        }
        self.calls = [self.call(node) for node in plan.nodes]
        self.outputs = {name: self.tensor(ref) for name, ref in plan.outputs.items()}
        self._replay: Replay | None = None

    def capture(self) -> None:
        """From now on, a run replays one CUDA graph. This zeroes the states, so call it before they hold anything.

        Does nothing without a GPU or with graphs turned off. Raises DeviceError, OutOfMemoryError.
        """
        if self.gpu is None or not self.gpu.graphs or self._replay is not None:
            return
        self._replay = self.gpu.capture(f"{self.plan.name} [{self.plan.bucket}]", self._named_walk, self._clear)

    def upload(self) -> None:
        """Send what the caller wrote in `host`, in one copy. `host` may be overwritten at once."""
        if self._staging is not None:
            self._staging.send(self._host_block, self._block)

    @property
    def nbytes(self) -> int:
        """Bytes of the arena, the states and the inputs."""
        return sum(t.nbytes for t in (self._arena, *self.states.values(), *self.inputs.values()))

    def row(self, state: str, row: int) -> torch.Tensor:
        """The part of a state that belongs to one row: a window without the row axis."""
        return self.states[state].select(self.plan.row_axes[state], row)

    def run(self) -> None:
        """Run the plan once, in the plan's dtypes and independently of the caller's torch state. Raises DeviceError."""
        recorder = profile.active()
        if recorder is not None:
            recorder.run(self.plan, self.calls, self.alone, self._replay, self.gpu)
            return
        if self._replay is not None:
            self._replay()
            return
        with self.alone():
            for call in self._beside_others if native.pressed() else self.calls:
                call()

    @cached_property
    def _beside_others(self) -> list[Callable[[], None]]:
        """The calls to make while other processes compete for the cores."""
        calls = []
        for node, call in zip(self.plan.nodes, self.calls, strict=True):
            inputs = [self.tensor(ref) for ref in node.inputs if ref is not None]
            calls.append(solo(node, call, inputs, [self.tensor(ref) for ref in node.outputs]))
        return calls

    def alone(self) -> AbstractContextManager[Any]:
        """On the plan's device, isolated from the caller's state; on a CPU, also while this thread has its turn."""
        with ExitStack() as scope:
            scope.enter_context(isolated())
            scope.enter_context(_turn(self.gpu))
            if self.gpu is not None:
                scope.enter_context(self.gpu.launching())
                scope.enter_context(self.gpu.driver.current())
            return scope.pop_all()

    def _named_walk(self) -> None:
        """A walk whose RuntimeError names the node: CUDA does not say where a capture failed."""
        assert self.gpu is not None
        # Not ordered with other streams: a capture must not wait for anything that is not part of it.
        with isolated(), self.gpu.driver.current():
            for node, call in zip(self.plan.nodes, self.calls, strict=True):
                try:
                    call()
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError as error:
                    raise RuntimeError(f"{node.label} ({node.op} by {node.implementation.name}): {error}") from error

    def _clear(self) -> None:
        for state in self.states.values():
            state.zero_()

    def walk(self, choose: Callable[[PlannedNode], Implementation | None]) -> None:
        """Run the plan with each node by the implementation that `choose` returns for it (None: the plan's own).
        `choose` is asked when the node's inputs are ready."""
        for node, call in zip(self.plan.nodes, self.calls, strict=True):
            chosen = choose(node)
            with self.alone():
                (call if chosen is None else self.call(node, chosen))()

    def steps(self) -> Iterator[tuple[PlannedNode, list[torch.Tensor]]]:
        """Walk the plan; yield each node with the tensors it wrote, as soon as they are written."""
        for node, call in zip(self.plan.nodes, self.calls, strict=True):
            with self.alone():
                call()
            yield node, [self.tensor(ref) for ref in node.outputs]

    def tensor(self, ref: Ref) -> torch.Tensor:
        """The window that `ref` describes, in this executor's memory."""
        shape = [int(s) for s in ref.spec.shape]  # type: ignore[arg-type]
        if ref.kind == "node":
            start = self.plan.offsets[ref.root] // ref.spec.dtype.itemsize
            return self._arena.view(ref.spec.dtype).as_strided(shape, ref.strides, start + ref.offset)
        root = self._storages[ref.kind][ref.root]
        if list(root.shape) == shape and ref.offset == 0 and ref.strides == contiguous_strides(shape):
            return root  # keeps the memory format of a weight, e.g. channels last
        if not root.is_contiguous():
            raise PlanError(
                f"{self.plan.name}: {ref.kind} '{ref.root}' is read through views and must be contiguous, "
                f"got strides {root.stride()}; call .contiguous()"
            )
        return root.as_strided(shape, ref.strides, root.storage_offset() + ref.offset)

    def call(self, node: PlannedNode, implementation: Implementation | None = None) -> Callable[[], None]:
        """One call of a node on this memory, by `implementation` if given, else by the plan's own."""
        chosen = implementation or node.implementation
        args = [None if ref is None else self.tensor(ref) for ref in node.inputs]
        args += [self.tensor(ref) for ref in node.outputs]
        run = chosen.bound(args, node.attrs)
        if chosen.name not in ("native", "amx") or chosen.around:
            return run
        return native.bind(run, [arg for arg in args if arg is not None])


def _check(
    plan: Plan,
    device: torch.device,
    kind: str,
    specs: Mapping[str, TensorSpec],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    for name, spec in specs.items():
        if name not in tensors:
            raise PlanError(f"{plan.name}: {kind} '{name}' is missing, expected {spec}")
        got = TensorSpec(tuple(tensors[name].shape), tensors[name].dtype)
        if got != spec:
            raise PlanError(f"{plan.name}: {kind} '{name}' expected {spec}, got {got}")
        if tensors[name].device.type != device.type:
            raise PlanError(f"{plan.name}: {kind} '{name}' expected on {device}, got {tensors[name].device}")


def _block(specs: Mapping[str, TensorSpec], device: torch.device) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Zeroed bytes, and a tensor in them for each spec."""
    starts, end = {}, 0
    for name, spec in specs.items():
        starts[name], end = end, end + -(-nbytes(spec) // ALIGNMENT) * ALIGNMENT
    block = torch.zeros(end, dtype=torch.uint8, device=device)

    def placed(name: str, spec: TensorSpec) -> torch.Tensor:
        part = block[starts[name] : starts[name] + nbytes(spec)].view(spec.dtype)
        return part.view([int(s) for s in spec.shape])  # type: ignore[arg-type]

    return block, {name: placed(name, spec) for name, spec in specs.items()}


def _turn(gpu: Gpu | None) -> AbstractContextManager[None]:
    return nullcontext() if gpu is not None else TURNS.turn(torch.get_num_threads(), end_team)


@contextmanager
def _memory(plan: Plan, gpu: Gpu | None, parts: dict[str, int | None]) -> Iterator[None]:
    """Turns a failed allocation into an error that says what the memory was for. On a CPU, all cores clear memory."""
    try:
        with _turn(gpu):
            yield
    except torch.OutOfMemoryError as error:
        if gpu is None:
            raise
        raise gpu.out_of_memory(f"{plan.name} [{plan.bucket}]", parts) from error
