"""Profiles a request, and runs it without the recorder too, so that the cost of recording is known."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from flashjanus.api.tensor_model import TensorModel
from flashjanus.engine.plan import Plan
from flashjanus.engine.runtime.profile import Recorder, Run, Span, recording
from flashjanus.measure.ceilings import Ceilings
from flashjanus.measure.ceilings import measure as measure_ceilings
from flashjanus.measure.timing import timed

Request = Callable[[], object]

GAPS = {
    (None, "flow_prepare"): "prompt encoding, noise, host writes",
    ("flow_prepare", "flow_step"): "prompt keys into rows, host writes",
    ("flow_step", "flow_step"): "between flow steps",
    ("flow_step", "flow_prepare"): "next images: host writes",
    ("flow_step", "decode_latents"): "latents to the VAE",
    ("decode_latents", "decode_latents"): "between images: latents to the VAE",
    ("decode_latents", None): "images to PIL",
    (None, "encode_images"): "prompt encoding, pixels, host writes",
    ("encode_images", "encode_images"): "between images: pixels",
    ("encode_images", "prefill"): "features into rows, host writes",
    (None, "prefill"): "prompt encoding, host writes",
    ("prefill", "decode_step"): "first token to the host",
    ("decode_step", "decode_step"): "between tokens: each to the host",
    ("prefill", None): "tokens to text",
    ("decode_step", None): "tokens to text",
}
"""What the host does after a program (None: from the request's beginning) until the next one starts."""


@dataclass(frozen=True)
class Gap(Span):
    """Time outside programs."""

    name: str


@dataclass(frozen=True)
class Kernel:
    """All launches of one GPU kernel in a request, taken together."""

    name: str
    calls: int
    seconds: float


@dataclass(frozen=True)
class Timeline:
    """One recorded request: `begin` and `wall` on the caller's clock, and its runs."""

    begin: float
    wall: float
    runs: Sequence[Run]

    @property
    def gaps(self) -> list[Gap]:
        """The gaps before, between and after the runs."""
        names = [None, *(run.plan.program for run in self.runs), None]
        begins = [self.begin, *(run.begin + run.seconds for run in self.runs)]
        ends = [*(run.begin for run in self.runs), self.begin + self.wall]
        return [
            Gap(begin, end - begin, GAPS.get((before, after), f"between {before or 'begin'} and {after or 'end'}"))
            for (before, after), begin, end in zip(itertools.pairwise(names), begins, ends, strict=True)
        ]


@dataclass(frozen=True)
class Profile:
    """`median`: the recorded request with the median wall time. walls, plain: seconds of all recorded requests, and of
    as many without the recorder, taken in turns. kernels: on a GPU, the longest first."""

    median: Timeline
    walls: Sequence[float]
    plain: Sequence[float]
    ceilings: Ceilings
    dtype: torch.dtype
    vae_dtype: torch.dtype
    kernels: Sequence[Kernel]

    def floor(self, plan: Plan, flops: int, nbytes: int) -> float:
        """The roofline's seconds, at the GEMM rate of the dtype in which the plan's program multiplies."""
        return self.ceilings.seconds(flops, nbytes, self.vae_dtype if plan.program == "decode_latents" else self.dtype)


def measure(
    model: TensorModel, request: Request, repeats: int, nvtx: bool = False, done: Callable[[int], None] = lambda n: None
) -> Profile:
    """The profile of `request()`, a call of `model`. It runs 2 * repeats + 1 times; `done(n)` is called after each run.

    The first run allocates memory (on a GPU, it captures graphs) and is not counted.
    """
    dtype, vae_dtype = model.runner.policy.matrix, model.runner.vae_policy.matrix
    device = model.runner.device
    ceilings = measure_ceilings(device, (dtype, vae_dtype))
    request()
    done(1)
    plain, recorded = [], []
    for n in range(repeats):
        plain.append(timed(request))
        done(2 * n + 2)
        with recording(Recorder(nvtx)) as recorder:
            begin = time.perf_counter()
            request()
            wall = time.perf_counter() - begin
        recorded.append(Timeline(begin, wall, recorder.runs))
        done(2 * n + 3)
    ordered = sorted(recorded, key=lambda timeline: timeline.wall)
    kernels = [] if device.type == "cpu" else _kernels(request)
    walls = [timeline.wall for timeline in recorded]
    return Profile(ordered[(repeats - 1) // 2], walls, plain, ceilings, dtype, vae_dtype, kernels)


def _kernels(request: Request) -> list[Kernel]:
    """Run the request once more under torch.profiler: a replayed graph hides its nodes, but not its kernels."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        request()
        torch.cuda.synchronize()
    kernels = [Kernel(e.key, e.count, e.self_device_time_total / 1e6) for e in seen.key_averages()]
    return sorted((k for k in kernels if k.seconds), key=lambda k: -k.seconds)
