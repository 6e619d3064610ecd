"""The GPU's side of the runtime: one captured CUDA graph per plan, and what a GPU has to be.

`Gpu` keeps the rules (warm before capture, one memory pool, one stream after another, copies that nobody waits for)
and asks CUDA through `Driver`, a handful of calls; `TorchDriver` makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from ..errors import DeviceError, OutOfMemoryError

MIN_CAPABILITY = (8, 0)
"""Of the kernels: bfloat16 on tensor cores, asynchronous copies."""
WARM_RUNS = 2
"""Before a capture: kernels are compiled and loaded, libraries make their workspaces."""
STAGES = 2
"""Pinned copies of a block: one is written while another is on its way."""

Replay = Callable[[], None]


class Event(Protocol):
    """A point in a stream."""

    def record(self, stream: Any) -> None: ...

    def synchronize(self) -> None: ...


class Driver(Protocol):
    """What the runtime asks of CUDA."""

    device: torch.device
    """Where tensors are made."""

    def free_memory(self) -> tuple[int, int]:
        """Bytes that can still be had, and the device's."""
        ...

    def stream(self) -> Any:
        """The device's current stream."""
        ...

    def current(self) -> AbstractContextManager[Any]:
        """Within it the device is the thread's current one, on which Triton launches."""
        ...

    def wait(self, stream: Any) -> None:
        """Let the current stream wait for what `stream` has been given so far."""
        ...

    def aside(self, run: Callable[[], None]) -> None:
        """Run on a stream of its own, in order with the current one."""
        ...

    def pool(self) -> Any:
        """A new memory pool for graphs."""
        ...

    def capture(self, run: Callable[[], None], pool: Any) -> Replay:
        """What `run` launches, as a graph with its temporaries in `pool`."""
        ...

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Bytes on the host that the device can copy from and to while the host goes on."""
        ...

    def event(self) -> Event: ...


class TorchDriver:
    """Driver by torch.cuda."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def free_memory(self) -> tuple[int, int]:
        free, total = torch.cuda.mem_get_info(self.device)
        cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return free + cached, total

    def stream(self) -> Any:
        return torch.cuda.current_stream(self.device)

    def current(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self.device)

    def wait(self, stream: Any) -> None:
        self.stream().wait_stream(stream)

    def aside(self, run: Callable[[], None]) -> None:
        stream, current = torch.cuda.Stream(self.device), self.stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            run()
        current.wait_stream(stream)

    def pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def capture(self, run: Callable[[], None], pool: Any) -> Replay:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        # a stream of this device: torch's own belongs to the device of its first capture;
        # thread_local: other threads of the process may allocate meanwhile
        with self.current(), torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            run()
        return graph.replay

    def pinned(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def event(self) -> Event:
        return torch.cuda.Event()  # type: ignore[no-untyped-call]


class Gpu:
    """One model's use of one GPU. Without `graphs` every run launches kernel by kernel."""

    def __init__(self, driver: Driver, graphs: bool = True) -> None:
        self.driver, self.graphs = driver, graphs
        self.device = driver.device
        self._pool: Any = None
        self._last: Any = None

    def order(self) -> None:
        """Let the current stream wait for the one that used this model last.

        Sessions are used again by other requests, and graphs share the memory of their temporaries.
        """
        stream = self.driver.stream()
        if self._last is not None and self._last != stream:
            self.driver.wait(self._last)
        self._last = stream

    def capture(self, name: str, run: Callable[[], None], reset: Callable[[], None]) -> Replay:
        """`run` as a graph; `reset` undoes what the runs before it have written. Raises DeviceError.

        All graphs share one pool: capture the largest first, and the others fit into what it has made.
        """
        self.order()

        def warm() -> None:
            for _ in range(WARM_RUNS):
                run()

        try:
            self.driver.aside(warm)
            reset()
            if self._pool is None:
                self._pool = self.driver.pool()
            return self.driver.capture(run, self._pool)
        except torch.OutOfMemoryError as error:
            raise self.out_of_memory(name, {"temporaries of its kernels": None}) from error
        except RuntimeError as error:
            raise DeviceError(
                f"{name}: expected to capture it as a CUDA graph, but: {error}; cuda_graphs=False runs without graphs"
            ) from error

    def out_of_memory(self, what: str, parts: dict[str, int | None]) -> OutOfMemoryError:
        """The error for memory that `what` could not get; parts: bytes by what they are for, None where unknown."""
        free, total = self.driver.free_memory()
        needed = ", ".join(name if size is None else f"{size / 2**30:.2f} GiB {name}" for name, size in parts.items())
        return OutOfMemoryError(
            f"{what}: expected memory on {self.device} for {needed}; got {free / 2**30:.2f} of {total / 2**30:.2f} GiB "
            "free. Fewer images, conversations or new tokens at once, shorter prompts, or smaller buckets= take less"
        )


class Staging:
    """Crossings between host and device that nobody waits for: a ring of pinned copies, each with its event."""

    def __init__(self, gpu: Gpu, nbytes: int) -> None:
        self._gpu = gpu
        self._ring = [(gpu.driver.pinned(nbytes), gpu.driver.event()) for _ in range(STAGES)]
        self._next = 0

    def send(self, block: torch.Tensor, to: torch.Tensor) -> None:
        """Copy bytes from the host; `block` may be written again at once."""
        stage, event = self._take()
        event.synchronize()  # of the copy before the last: long over
        stage.copy_(block)
        to.copy_(stage, non_blocking=True)
        event.record(self._gpu.driver.stream())

    def fetch(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """A copy of a device tensor as it is now, in the stream's order; the result waits for it. Call it before the
        next but one fetch."""
        stage, event = self._take()
        held = stage.view(tensor.dtype).view(tensor.shape)
        held.copy_(tensor, non_blocking=True)
        event.record(self._gpu.driver.stream())

        def result() -> torch.Tensor:
            event.synchronize()
            return held.clone()

        return result

    def _take(self) -> tuple[torch.Tensor, Event]:
        self._next = (self._next + 1) % len(self._ring)
        return self._ring[self._next]


def open_gpu(device: torch.device, graphs: bool = True) -> Gpu:
    """The GPU behind a device that `unusable` has nothing against."""
    return Gpu(TorchDriver(device), graphs)


def unusable(device: torch.device) -> str | None:
    """Why a CUDA device cannot run the engine, or None."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA; install a CUDA build of torch"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except RuntimeError as error:  # no driver, one too old for torch, or no device
        return f"torch cannot use CUDA {torch.version.cuda} here: {error}"
    count, index = torch.cuda.device_count(), device.index or 0
    if index >= count:
        return f"expected one of {count} CUDA devices, cuda:0 to cuda:{count - 1}" if count else "no CUDA device here"
    found = torch.cuda.get_device_capability(index)
    if found < MIN_CAPABILITY:
        need, got = (".".join(map(str, version)) for version in (MIN_CAPABILITY, found))
        name = torch.cuda.get_device_name(index)
        return f"expected compute capability {need} or later (Ampere), got {got}: {name}"
    return None
