"""Where other processes compete for the cores, small torch calls stay on the calling thread too.

torch cuts a call into as many parts as there are threads and waits for all of them; beside busy processes, that takes
longer than the call takes on one thread. But the order of its sums may depend on the number of threads, and results
must not. A call therefore stays on one thread only after a trial both ways on its own arguments gave the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..ops import get_op
from ..plan import PlannedNode
from .openmp import on_one_thread

SMALL_FLOPS, SMALL_BYTES = 1e9, 1e8
"""The work that one thread does in a few milliseconds. For more, it pays to wait for another thread's time slice."""


class Solo:
    """`call`, which can be repeated safely, and the tensors that it writes."""

    def __init__(self, call: Callable[[], None], outputs: Sequence[torch.Tensor]) -> None:
        self._call, self._outputs = call, outputs
        self.same: bool | None = None
        """Whether one thread gives the same bits; None until that is known."""

    def __call__(self) -> None:
        if self.same:
            on_one_thread(self._call)
            return
        self._call()
        if self.same is None:
            self._compare()

    def _compare(self) -> None:
        kept = [output.clone() for output in self._outputs]
        if not all(t.count_nonzero() > t.numel() // 2 for t in kept):
            return  # zeros are the same in any order
        on_one_thread(self._call)
        self.same = all(torch.equal(_bits(t), _bits(o)) for t, o in zip(kept, self._outputs, strict=True))
        if not self.same:
            for output, t in zip(self._outputs, kept, strict=True):
                output.copy_(t)


def solo(
    node: PlannedNode,
    call: Callable[[], None],
    inputs: Sequence[torch.Tensor],
    outputs: Sequence[torch.Tensor],
) -> Callable[[], None]:
    """`call` of `node` for use under competition: a Solo if it is small and can be repeated safely."""
    if node.implementation.name not in ("torch", "scaled_mm") or node.flops > SMALL_FLOPS or node.nbytes > SMALL_BYTES:
        return call
    repeats = not any(arg.mutated for arg in get_op(node.op).schema.inputs)
    apart = all(_apart(output, other) for output in outputs for other in inputs)
    return Solo(call, outputs) if outputs and repeats and apart else call


def _bits(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous().view(torch.uint8)


def _apart(a: torch.Tensor, b: torch.Tensor) -> bool:
    """True if the address ranges of `a` and `b` do not overlap."""
    starts, ends = zip(*(_reach(t) for t in (a, b)), strict=True)
    return bool(max(starts) >= min(ends))


def _reach(t: torch.Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.itemsize
