"""Seconds of GPU work by CUDA events, launches in one captured graph; on a CPU, for a dry run, by the host's clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

Summary = dict[str, float]


def summary(samples: Sequence[float]) -> Summary:
    return {
        "median_s": statistics.median(samples),
        "min_s": min(samples),
        "max_s": max(samples),
        "runs": len(samples),
    }


class Clock(Protocol):
    captures: bool
    """Whether launches can be captured."""

    def synchronize(self) -> None: ...

    def spans(self, run: Callable[[], object], repeats: int) -> list[float]:
        """Seconds of each run, one after the other."""
        ...

    def launches(self, run: Callable[[int], object], calls: int, repeats: int) -> tuple[list[float], bool]:
        """Seconds of one of run(0) .. run(calls - 1), measured several times, and whether the launches are excluded."""
        ...

    def peak_bytes(self) -> int | None:
        """The most memory that was in use since the last call of this method."""
        ...

    def held_bytes(self) -> int:
        """Memory that tensors hold now."""
        ...


class CudaClock:
    captures = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.aside = torch.cuda.Stream(device)  # one: each stream has its own workspaces

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def spans(self, run: Callable[[], object], repeats: int) -> list[float]:
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for start, end in marks:
            start.record()
            run()
            end.record()
        self.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in marks]

    def launches(self, run: Callable[[int], object], calls: int, repeats: int) -> tuple[list[float], bool]:
        def loop() -> None:
            for i in range(calls):
                run(i)

        self.synchronize()
        with torch.cuda.stream(self.aside):
            for i in range(min(calls, 3)):  # compiled, loaded, workspaces made
                run(i)
        self.synchronize()
        graph, captured = torch.cuda.CUDAGraph(), True
        try:
            with torch.cuda.stream(self.aside):  # without torch.cuda.graph, which empties torch's cache every time
                graph.capture_begin()
                try:
                    loop()
                finally:
                    graph.capture_end()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # it waits for the device, which no graph takes
            self.synchronize()
            captured = False
        timed = graph.replay if captured else loop
        timed()
        return [seconds / calls for seconds in self.spans(timed, repeats)], captured

    def peak_bytes(self) -> int | None:
        peak = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak

    def held_bytes(self) -> int:
        return torch.cuda.memory_allocated(self.device)


class HostClock:
    captures = False

    def synchronize(self) -> None:
        pass

    def spans(self, run: Callable[[], object], repeats: int) -> list[float]:
        samples = []
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            samples.append(time.perf_counter() - start)
        return samples

    def launches(self, run: Callable[[int], object], calls: int, repeats: int) -> tuple[list[float], bool]:
        def loop() -> None:
            for i in range(calls):
                run(i)

        return [seconds / calls for seconds in self.spans(loop, repeats)], False

    def peak_bytes(self) -> int | None:
        return None

    def held_bytes(self) -> int:
        return 0


def wall(clock: Clock, run: Callable[[], object], repeats: int) -> Summary:
    """What a caller waits for, without the first run."""
    samples = []
    for _ in range(1 + repeats):
        clock.synchronize()
        start = time.perf_counter()
        run()
        clock.synchronize()
        samples.append(time.perf_counter() - start)
    return summary(samples[1:])
