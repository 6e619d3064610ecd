"""The GPU's side of the runtime: one captured CUDA graph per plan, and what a GPU has to be.

`Gpu` keeps the rules (warm before capture, one memory pool, one stream after another, copies that nobody waits for)
and asks CUDA through `Driver`, a handful of calls; `TorchDriver` makes them.
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
        """Within it the device is the thread's current one, on which Triton launches, and products are exact."""
        ...

    def wait(self, stream: Any) -> None:
        """Let the current stream wait for what `stream` has been given so far."""
        ...

    def aside(self, run: Callable[[], None]) -> None:
        """Run on a stream of its own, in order with the current one."""
        ...

    def pool(self) -> Any:
        """A new memory pool for graphs, which lives as long as the driver."""
        ...

    def synchronize(self) -> None:
        """Wait for the device."""
        ...

    def release(self) -> None:
        """Wait for the device, then give back the memory that nobody holds."""
        ...

    def capture(self, run: Callable[[], None], pool: Any) -> Replay:
        """What `run` launches, as a graph with its temporaries in `pool`."""
        ...

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Bytes on the host that the device can copy from and to while the host goes on."""
        ...

    def event(self) -> Event: ...


_CAPTURE = RLock()
"""CUDA takes one capture at a time in a process, and nothing that waits for the device meanwhile."""


class TorchDriver:
    """Driver by torch.cuda.

    One stream warms up and one captures: torch's allocator gives a block back only to its own stream, so graphs that
    are to share temporaries have to be captured on one; and what a warm-up leaves behind in cuBLAS must not be what a
    replaying graph works in.
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
        """Float32 convolutions multiply in float32 there, which cuDNN's own default does not."""
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
        finally:  # whoever frees the memory of a run that failed frees it to this stream
            current.wait_stream(self._side)

    def pool(self) -> Any:
        pool = torch.cuda.graph_pool_handle()
        # a pool whose graphs are all gone cannot be used again: one stays
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
            torch.cuda.set_stream(before)  # which a capture that cannot be ended leaves undone
            raise (reasons.pop() if reasons else error) from None  # kept, it would hold this frame and be held by it
        return graph.replay

    def synchronize(self) -> None:
        with _CAPTURE:  # which a wait would break
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
    """One model's use of one GPU. Without `graphs` every run launches kernel by kernel."""

    def __init__(self, driver: Driver, graphs: bool = True) -> None:
        self.driver, self.graphs = driver, graphs
        self.device = driver.device
        self._pool: Any = None
        self._last: Any = None
        self._lock = RLock()

    @contextmanager
    def launching(self) -> Iterator[None]:
        """What is launched here comes after all that was launched for this model before, on whatever stream.

        Graphs share the memory of their temporaries, and sessions are used again by other requests.
        """
        with self._lock:
            stream = self.driver.stream()
            if self._last is not None and self._last != stream:
                self.driver.wait(self._last)
            self._last = stream
            yield

    def capture(self, name: str, run: Callable[[], None], reset: Callable[[], None]) -> Replay:
        """`run` as a graph; `reset` undoes what the runs before it have written. Raises DeviceError.

        All graphs share one pool: capture the largest first, and the others fit into what it has made.
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
                f"{name}: expected to capture it as a CUDA graph, but: {error}; cuda_graphs=False runs without graphs"
            ) from error

        def replay() -> None:
            with self.launching():
                captured()

        return replay

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
        with self._gpu.launching():
            to.copy_(stage, non_blocking=True)
            event.record(self._gpu.driver.stream())

    def fetch(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """A copy of a device tensor of so many bytes or fewer as it is now, in the stream's order; the result waits for
        it. Call it before the next but one fetch."""
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
    """The GPU of a device that `unusable` has nothing against."""
    return Gpu(TorchDriver(device), graphs)
