"""How an image's flow is integrated and guided: options, and the numbers of every evaluation that follow from them.

An evaluation is one run of the network, at a time of its own. What a row does with its velocity is a line of
coefficients of the op `flow_update`, so rows with different solvers share one captured step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from flashjanus.engine.ops.flow_update import Evaluation
from flashjanus.errors import InputError

from . import options

SOLVERS = ("euler", "heun", "ab2", "dpmpp2m")


@dataclass(frozen=True)
class Sampler:
    """How one image is drawn; `JanusFlow.generate_image` describes the options, `Sampler.of` checks them."""

    num_inference_steps: int = 30
    guidance_scale: float = 2.0
    solver: str = "euler"
    timestep_shift: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    uncond_every: int = 1

    @staticmethod
    def of(**given: Any) -> Sampler:
        """Checked options, the defaults where they are not given. Raises InputError."""
        default = Sampler()
        value = {name: given.get(name, getattr(default, name)) for name in OPTIONS}
        solver = options.choice("solver", value["solver"], SOLVERS)
        heun = solver == "heun"
        most = (options.MAX_STEPS + 1) // 2 if heun else options.MAX_STEPS
        name = "num_inference_steps" + (" with solver='heun'" if heun else "")
        return Sampler(
            options.integer(name, value["num_inference_steps"], 1, most),
            options.number("guidance_scale", value["guidance_scale"], 0.0, options.MAX_GUIDANCE),
            solver,
            options.number("timestep_shift", value["timestep_shift"], 0.01, 100.0),
            _interval(value["guidance_interval"]),
            options.number("guidance_rescale", value["guidance_rescale"], 0.0, 1.0),
            options.integer("uncond_every", value["uncond_every"], 1, options.MAX_STEPS),
        )

    @property
    def schedule(self) -> Schedule:
        return schedule(self)


OPTIONS = tuple(Sampler.__dataclass_fields__)


def _interval(value: Any) -> tuple[float, float]:
    name = "guidance_interval"
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise InputError(f"{name}: expected two times (low, high) from 0 to 1, got {value!r:.80}")
    low, high = (options.number(name, end, 0.0, 1.0) for end in value)
    if low > high:
        raise InputError(f"{name}: expected (low, high) with low <= high, got {value!r:.80}")
    return low, high


@dataclass(frozen=True)
class Schedule:
    """times: of each evaluation, in [0, 1); lines: what the row does there."""

    times: tuple[float, ...]
    lines: tuple[Evaluation, ...]

    def __len__(self) -> int:
        return len(self.times)

    def needs_branch(self, evaluation: int) -> bool:
        """True where the unconditional branch is to be computed."""
        line = self.lines[evaluation] if evaluation < len(self) else Evaluation()
        return line.guidance != 1 and not line.recall

    @property
    def guided(self) -> bool:
        return any(line.guidance != 1 for line in self.lines)

    @property
    def skips(self) -> bool:
        """True where a row with guidance can do without its unconditional branch at some evaluation."""
        return self.guided and not all(map(self.needs_branch, range(len(self))))


@lru_cache(maxsize=256)
def schedule(sampler: Sampler) -> Schedule:
    """The evaluations of a sampler: each step's, by its solver, with guidance where and when it is due."""
    times, lines = _EVALUATIONS[sampler.solver](*grid(sampler.num_inference_steps, sampler.timestep_shift))
    low, high = sampler.guidance_interval
    every, count, complete = sampler.uncond_every, 0, []
    for t, line in zip(times, lines, strict=True):
        if sampler.guidance_scale == 1 or not low <= t <= high:
            complete.append(line)
            continue
        fresh = count % every == 0
        guidance = (sampler.guidance_scale, sampler.guidance_rescale, float(not fresh), float(fresh and every > 1))
        complete.append(Evaluation(*line[:5], *guidance))
        count += 1
    return Schedule(tuple(times), tuple(complete))


def grid(steps: int, shift: float) -> tuple[list[float], list[float]]:
    """Times t_0 = 0 .. t_steps = 1, and their differences.

    Even ones, where shift is not 1 moved as SD3's are: sigma = 1 - t becomes shift sigma / (1 + (shift - 1) sigma).
    """
    even = [k / steps for k in range(steps + 1)]
    if shift == 1:
        return even, [1 / steps] * steps  # not the differences of rounded times: the official step has these bits
    times = [t / (t + shift * (1 - t)) for t in even]
    return times, [after - t for t, after in pairwise(times)]


Evaluations = tuple[list[float], list[Evaluation]]


def _euler(times: list[float], differences: list[float]) -> Evaluations:
    """z' = z + dt w."""
    return times[:-1], [Evaluation(z_w=dt) for dt in differences]


def _heun(times: list[float], differences: list[float]) -> Evaluations:
    """z* = z + dt w, h = w; then z' = z* + dt / 2 (w(z*, t') - h).

    The last step is Euler's, as in diffusers: at t' = 1 the network was not trained.
    """
    at: list[float] = []
    lines: list[Evaluation] = []
    for t, after, dt in zip(times, times[1:], differences, strict=False):
        last = after == 1
        at += [t] if last else [t, after]
        lines += [Evaluation(z_w=dt)] if last else [Evaluation(z_w=dt, h_w=1.0), Evaluation(z_w=dt / 2, z_h=-dt / 2)]
    return at, lines


def _ab2(times: list[float], differences: list[float]) -> Evaluations:
    """z' = z + dt ((1 + r / 2) w - r / 2 h), h' = w, with r = dt / the step before; the first step is Euler's."""
    ratios = [0.0, *(dt / before for before, dt in pairwise(differences))]
    lines = [
        Evaluation(z_w=dt * (1 + r / 2), z_h=-dt * r / 2, h_w=1.0) for dt, r in zip(differences, ratios, strict=True)
    ]
    return times[:-1], lines


def _dpmpp2m(times: list[float], differences: list[float]) -> Evaluations:
    """DPM-Solver++(2M) with alpha = t, sigma = 1 - t: x = z + sigma w predicts the image, h' = x, and

    z' = sigma' / sigma z + dt / sigma ((1 + g) x - g h), g = d / (2 d_before), d the step in log(alpha / sigma). Where
    one of these is infinite, in the first two steps and in the last one, it is Euler's. Source: Lu et al. 2022, arXiv
    2211.01095, algorithm 2.
    """
    at = [-math.inf, *(math.log(t / (1 - t)) for t in times[1:-1]), math.inf]
    widths = [after - now for now, after in pairwise(at)]
    lines: list[Evaluation] = []
    for k, (t, dt) in enumerate(zip(times, differences, strict=False)):
        inner = 1 < k < len(widths) - 1
        sigma, g = 1 - t, widths[k] / (2 * widths[k - 1]) if inner else 0.0
        drawn = g * dt / sigma
        lines.append(Evaluation(1 + drawn, dt + drawn * sigma, -drawn, h_z=1.0, h_w=sigma))
    return times[:-1], lines


_EVALUATIONS = {"euler": _euler, "heun": _heun, "ab2": _ab2, "dpmpp2m": _dpmpp2m}
