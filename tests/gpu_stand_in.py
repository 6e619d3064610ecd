"""CUDA as the runtime sees it, on a machine without one: tensors on the CPU, and a record of what was asked for.

What a captured graph must not do is refused here too: read on the host, or make a tensor out of the host's numbers. As
on a GPU, a capture changes no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from flashjanus import triton_kernels
from flashjanus.api import tensor_model
from flashjanus.engine.device import capabilities as device_module
from flashjanus.engine.device import native
from flashjanus.engine.ops import dims
from flashjanus.engine.runtime import cuda
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

FORBIDDEN = {
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::unique_dim",
    "aten::lift_fresh",
}


class Capturing(TorchDispatchMode):
    """Refuses what CUDA refuses in a capture, and keeps what is overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        schema, kwargs = func._schema, kwargs or {}
        if schema.name in FORBIDDEN:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing: {schema.name}")
        named = dict(zip((arg.name for arg in schema.arguments), args, strict=False)) | kwargs
        for arg in schema.arguments:
            value = named.get(arg.name)
            if arg.alias_info is not None and arg.alias_info.is_write and isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                self.kept.setdefault(storage.data_ptr(), (storage, storage.clone()))
        return func(*args, **kwargs)

    def restore(self) -> None:
        for storage, before in self.kept.values():
            storage.copy_(before)


class LateCopies(TorchDispatchMode):
    """Within it, copies that nobody waits for land as late as on a GPU: when an event that was recorded after them is
    waited for, or when the device next uses memory of theirs. What the host does with pinned memory waits for none."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: list[tuple[torch.Tensor, torch.Tensor] | StandInEvent] = []
        self.pinned: list[torch.Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.copy_.default and (args[2:] or [(kwargs or {}).get("non_blocking")])[0]:
            self.queue.append((args[0], args[1]))
            return args[0]
        if self.queue:
            used = {_address(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
            if used & ({_address(t) for copy in self.under_way() for t in copy} - set(map(_address, self.pinned))):
                self.land()
        return func(*args, **(kwargs or {}))

    def under_way(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [entry for entry in self.queue if isinstance(entry, tuple)]

    def land(self, event: StandInEvent | None = None) -> None:
        """The copies before `event` was last recorded, or all; where it is not under way, none."""
        count = (
            len(self.queue) if event is None else max((i for i, e in enumerate(self.queue) if e is event), default=0)
        )
        landing, self.queue = self.queue[:count], self.queue[count:]
        with _disable_current_modes():
            for entry in landing:
                if isinstance(entry, tuple):
                    entry[0].copy_(entry[1])


def _address(t: torch.Tensor) -> int:
    return t.untyped_storage().data_ptr()


class StandInEvent:
    def __init__(self, log: list[tuple[Any, ...]], copies: LateCopies) -> None:
        self.log, self.copies = log, copies

    def record(self, stream: Any) -> None:
        self.log.append(("record", id(self)))
        self.copies.queue.append(self)

    def synchronize(self) -> None:
        self.log.append(("synchronize", id(self)))
        self.copies.land(self)


class StandInDriver:
    """flashjanus.engine.runtime.cuda.Driver; `log` holds a tuple for each call, `on` is the current stream.

    `with driver.copies:` makes copies late; else they land at once.
    """

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.on: Any = "stream 0"
        self.free = 3 << 30
        self.copies = LateCopies()

    def free_memory(self) -> tuple[int, int]:
        return self.free, 4 << 30

    def stream(self) -> Any:
        return self.on

    def current(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def wait(self, stream: Any) -> None:
        self.log.append(("wait", self.on, stream))

    def aside(self, run: Callable[[], None]) -> None:
        self.log.append(("aside",))
        run()

    def pool(self) -> Any:
        self.log.append(("pool",))
        return len(self.log)

    def capture(self, run: Callable[[], None], pool: Any) -> Callable[[], None]:
        number = sum(entry[0] == "capture" for entry in self.log)
        self.log.append(("capture", number, pool))
        with Capturing() as capturing:
            run()
        capturing.restore()

        def replay() -> None:
            self.log.append(("replay", number))
            self.copies.land()
            run()

        return replay

    def synchronize(self) -> None:
        self.log.append(("synchronize device",))
        self.copies.land()

    def release(self) -> None:
        self.log.append(("release",))

    def pinned(self, nbytes: int) -> torch.Tensor:
        self.log.append(("pinned", nbytes))
        self.copies.pinned.append(torch.full((nbytes,), 0xFF, dtype=torch.uint8))
        return self.copies.pinned[-1]

    def event(self) -> StandInEvent:
        return StandInEvent(self.log, self.copies)

    def asked(self, *kinds: str) -> list[str]:
        """The kinds of calls, in order; of these only, where given."""
        return [entry[0] for entry in self.log if not kinds or entry[0] in kinds]


def stand_in(patch: pytest.MonkeyPatch) -> StandInDriver:
    """From now on models on "cuda" run on the driver that is returned, by torch: kernels of GPUs refuse."""
    driver = StandInDriver()
    patch.setattr(device_module, "unusable", lambda device: None)
    patch.setattr(dims, "readable", lambda x: False)
    patch.setattr(tensor_model, "open_gpu", lambda device, graphs: cuda.Gpu(driver, graphs))
    patch.setattr(triton_kernels, "unavailable", lambda: "left out here")
    patch.setattr(native, "cuda_available", lambda: "left out here")
    patch.setattr(torch.backends.cudnn, "is_available", lambda: False)
    return driver
