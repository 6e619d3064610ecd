"""The GPU part of the runtime: one captured CUDA graph per plan, and what the runtime requires of a GPU.

`Gpu` keeps the rules (warm up before a capture, one memory pool, streams ordered after each other, copies that do not
block) and reaches CUDA through the few calls of `Driver`, which `TorchDriver` implements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import RLock
from typing import Any, Protocol

import torch

from ..errors import DeviceError, OutOfMemoryError
from .bound import ProcessBound
from .isolation import EXACT_GPU_CONVOLUTIONS

WARM_RUNS = 2
"""Runs before a capture, in which kernels are compiled and loaded and libraries allocate their workspaces."""
STAGES = 2
"""Pinned copies of a block: one can be written while another is being transferred."""

Replay = Callable[[], None]


class Event(Protocol):
    """A point in a stream."""

    def record(self, stream: Any) -> None: ...

    def synchronize(self) -> None: ...


class Driver(Protocol):
    """What the runtime asks of CUDA."""

    device: torch.device
    """The device that tensors are made on."""

    def free_memory(self) -> tuple[int, int]:
        """Bytes that can still be allocated, and bytes that the device has."""
        ...

    def stream(self) -> Any:
        """The device's current stream."""
        ...

    def current(self) -> AbstractContextManager[Any]:
        """Within it, the device is the thread's current one, as Triton's launches require, and products are exact."""
        ...

    def wait(self, stream: Any) -> None:
        """Make the current stream wait for everything that `stream` has been given so far."""
        ...

    def aside(self, run: Callable[[], None]) -> None:
        """Run on a separate stream, ordered with the current one."""
        ...

    def pool(self) -> Any:
        """A new memory pool for graphs, which lives as long as the driver."""
        ...

    def synchronize(self) -> None:
        """Wait for the device."""
        ...

    def release(self) -> None:
        """Wait for the device, then release the cached memory that nothing uses."""
        ...

    def capture(self, run: Callable[[], None], pool: Any) -> Replay:
        """What `run` launches, as a graph whose temporaries are in `pool`."""
        ...

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Host memory that the device can copy from and to asynchronously."""
        ...

    def event(self) -> Event: ...


_CAPTURE = RLock()
"""CUDA allows one capture at a time in a process, and nothing may wait for the device during it."""


class TorchDriver:
    """Driver by torch.cuda.

    One stream warms up and another captures. torch's allocator gives a freed block only to the stream that used it, so
    graphs that are to share temporaries have to be captured on the same stream; and the workspaces that cuBLAS keeps
    from a warm-up must not be those that a replaying graph works in.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._side: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._capturing: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._anchors: list[Replay] = []

    def free_memory(self) -> tuple[int, int]:
        free, total = torch.cuda.mem_get_info(self.device)
        cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return free + cached, total

    def stream(self) -> Any:
        return torch.cuda.current_stream(self.device)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Within it, float32 convolutions multiply in float32, which is not cuDNN's default."""
        with EXACT_GPU_CONVOLUTIONS, torch.cuda.device(self.device):
            yield

    def wait(self, stream: Any) -> None:
        self.stream().wait_stream(stream)

    def aside(self, run: Callable[[], None]) -> None:
        current = self.stream()
        self._side.wait_stream(current)
        try:
            with torch.cuda.stream(self._side):
                run()
        finally:  # memory of a failed run, whoever frees it, is freed to this stream
            current.wait_stream(self._side)

    def pool(self) -> Any:
        pool = torch.cuda.graph_pool_handle()
        # A pool whose graphs are all gone cannot be used again, so one graph stays.
        self._anchors.append(self.capture(lambda: torch.zeros(1, device=self.device), pool))
        return pool

    def capture(self, run: Callable[[], Any], pool: Any) -> Replay:
        graph, before, reasons = torch.cuda.CUDAGraph(), self.stream(), []

        def reasoned() -> None:
            try:
                run()
            except RuntimeError as error:
                reasons.append(error)
                raise

        # thread_local: other threads of the process may allocate meanwhile
        region = torch.cuda.graph(graph, pool=pool, stream=self._capturing, capture_error_mode="thread_local")
        try:
            with self.current(), region:
                reasoned()
        except RuntimeError as error:
            torch.cuda.set_stream(before)  # not done by a capture that could not be ended
            raise (
                reasons.pop() if reasons else error
            ) from None  # if chained, the error and its frame would hold each other
        return graph.replay

    def synchronize(self) -> None:
        with _CAPTURE:  # a wait would break a capture
            torch.cuda.synchronize(self.device)

    def release(self) -> None:
        with _CAPTURE:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()

    def pinned(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def event(self) -> Event:
        return torch.cuda.Event()  # type: ignore[no-untyped-call]


class Gpu(ProcessBound):
    """One model's use of one GPU. Without `graphs`, every run launches its kernels one by one."""

    def __init__(self, driver: Driver, graphs: bool = True) -> None:
        self.driver, self.graphs = driver, graphs
        self.device = driver.device
        self._pool: Any = None
        self._last: Any = None
        self._lock = RLock()

    @contextmanager
    def launching(self) -> Iterator[None]:
        """What is launched within it comes after everything launched for this model before, on whichever stream.

        Graphs share the memory of their temporaries, and other requests use the same sessions again.
        """
        with self._lock:
            stream = self.driver.stream()
            if self._last is not None and self._last != stream:
                self.driver.wait(self._last)
            self._last = stream
            yield

    def capture(self, name: str, run: Callable[[], None], reset: Callable[[], None]) -> Replay:
        """Capture `run` as a graph; `reset` undoes what the warm-up runs wrote. Raises DeviceError.

        All graphs share one pool: capture the largest first, so that the others fit into the memory it has allocated.
        """

        def warm() -> None:
            for _ in range(WARM_RUNS):
                run()

        try:
            with _CAPTURE, self.launching():
                self.driver.aside(warm)
                reset()
                if self._pool is None:
                    self._pool = self.driver.pool()
                captured = self.driver.capture(run, self._pool)
        except torch.OutOfMemoryError as error:
            raise self.out_of_memory(name, {"temporaries of its kernels": None}) from error
        except RuntimeError as error:
            raise DeviceError(
                f"{name}: could not be captured as a CUDA graph: {error}; cuda_graphs=False runs without graphs"
            ) from error

        def replay() -> None:
            with self.launching():
                captured()

        return replay

    def out_of_memory(self, what: str, parts: dict[str, int | None]) -> OutOfMemoryError:
        """The error for a failed allocation of `what`. parts: bytes by what they are for, None where unknown."""
        free, total = self.driver.free_memory()
        needed = ", ".join(name if size is None else f"{size / 2**30:.2f} GiB {name}" for name, size in parts.items())
        return OutOfMemoryError(
            f"{what}: not enough memory on {self.device} for {needed}; {free / 2**30:.2f} of {total / 2**30:.2f} GiB "
            "are free. Ask for fewer images, conversations or new tokens at once, shorten prompts, or give smaller "
            "buckets="
        )


class Staging:
    """Non-blocking transfers between host and device: a ring of pinned copies, each with its event."""

    def __init__(self, gpu: Gpu, nbytes: int) -> None:
        self._gpu = gpu
        self._ring = [(gpu.driver.pinned(nbytes), gpu.driver.event()) for _ in range(STAGES)]
        self._next = 0

    def send(self, block: torch.Tensor, to: torch.Tensor) -> None:
        """Copy bytes from the host; `block` may be overwritten as soon as this returns."""
        stage, event = self._take()
        event.synchronize()  # the event of the copy before the last, which has usually ended long ago
        stage.copy_(block)
        with self._gpu.launching():
            to.copy_(stage, non_blocking=True)
            event.record(self._gpu.driver.stream())

    def fetch(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Start copying a device tensor, as it is now in stream order. The returned function waits for the copy and
        gives it; call that before the next but one fetch. The tensor must not be larger than the pinned copies."""
        stage, event = self._take()
        held = stage[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        with self._gpu.launching():
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
    """The GPU of a device for which `unusable` returned None."""
    return Gpu(TorchDriver(device), graphs)
