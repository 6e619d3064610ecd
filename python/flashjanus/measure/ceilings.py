"""Measures what this machine can do at best: the two ceilings that a roofline needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from flashjanus.engine.ops.linear_scaled import scales_rows_on_cpu

from .timing import timed

SECONDS = 0.4
"""Seconds spent on one ceiling after its warm-up run; at least MIN_SAMPLES runs are timed, however slow they are."""
MIN_SAMPLES = 3
COPY_BYTES = {"cpu": 128 * 2**20, "cuda": 2**30}
"""Bytes per copy: source and target together are larger than the caches."""
GEMM_SIZE = {"cpu": 1024, "cuda": 8192}
"""m = n = k: 2 n^3 FLOPs, which is enough to occupy every core or multiprocessor."""


@dataclass(frozen=True)
class Ceilings:
    """Bytes/s, and FLOP/s by dtype."""

    bandwidth: float
    rates: Mapping[torch.dtype, float]

    def seconds(self, flops: int, nbytes: int, dtype: torch.dtype) -> float:
        """max(flops / rate, nbytes / bandwidth): the roofline's time for work in a dtype."""
        return max(flops / self.rates[dtype], nbytes / self.bandwidth)


def measure(device: torch.device | str, dtypes: Iterable[torch.dtype]) -> Ceilings:
    """Measure both ceilings; the bandwidth and each dtype take about half a second."""
    return Ceilings(copy_bandwidth(device), {dtype: gemm_rate(device, dtype) for dtype in dict.fromkeys(dtypes)})


def copy_bandwidth(device: torch.device | str) -> float:
    """Bytes/s of a copy within the device's memory, on torch's threads; bytes read and bytes written both count.

    The result is the median over copies of COPY_BYTES. Data that stays in a cache, and reads without writes, may be
    faster.
    """
    device = torch.device(device)
    source = torch.ones(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), device)


def gemm_rate(device: torch.device | str, dtype: torch.dtype) -> float:
    """FLOP/s (for int8 op/s, summed in int32) of torch's matrix product of two n x n matrices, n = GEMM_SIZE.

    The median is taken on torch's threads, with a weight stored as [out, in], as linears have it. float8_e4m3fn is
    multiplied into bfloat16: on a GPU with one scale per operand, since only some GPUs take scales by row, and on a CPU
    with scales by row, since torch is fast only with those (torch 2.11 does not take them there). A torch that does not
    multiply it on a CPU at all (2.6) widens it, so its rate there is that of float32.
    """
    device = torch.device(device)
    if dtype == torch.float8_e4m3fn and not _multiplies_e4m3(device):
        return gemm_rate(device, torch.float32)
    n = GEMM_SIZE[device.type]
    a, weight = (_operand(n, device, dtype) for _ in range(2))
    if dtype == torch.int8:
        product = torch.empty((n, n), dtype=torch.int32, device=device)
        seconds = _seconds(lambda: torch._int_mm(a, weight.t(), out=product), device)
    elif dtype == torch.float8_e4m3fn:
        by_row = device.type == "cpu" and scales_rows_on_cpu(torch.bfloat16)
        scale = torch.ones((n, 1) if by_row else (), device=device, dtype=torch.float32)
        seconds = _seconds(lambda: torch._scaled_mm(a, weight.t(), scale, scale.t(), out_dtype=torch.bfloat16), device)
    else:
        product = torch.empty((n, n), dtype=dtype, device=device)
        seconds = _seconds(lambda: torch.mm(a, weight.t(), out=product), device)
    return 2 * n**3 / seconds


def _multiplies_e4m3(device: torch.device) -> bool:
    return device.type != "cpu" or torch._C._dispatch_has_kernel_for_dispatch_key("aten::_scaled_mm", "CPU")


def _operand(n: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Random values, because a chip's clock rate depends on the bits that it flips."""
    values = torch.randn((n, n), generator=torch.Generator().manual_seed(0))
    return (values * 32).round().clamp(-127, 127).to(device, dtype) if dtype == torch.int8 else values.to(device, dtype)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Median seconds of `run` after one warm-up run; on a GPU, each run is waited for."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    run()
    samples: list[float] = []
    while len(samples) < MIN_SAMPLES or sum(samples) < SECONDS:
        samples.append(timed(run, wait=wait))
    return median(samples)
