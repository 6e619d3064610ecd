"""From the options of one image to the coefficients of each of its evaluations.

An evaluation is one run of the network at one time t. The schedule holds a line of coefficients for the op
`flow_update`, which says what a row does with its velocity, and a line for `step_cache`, which says whether the
language model runs. Rows with different options therefore share one captured step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

from typing_extensions import Never

from flashjanus.engine.ops.flow_update import Evaluation
from flashjanus.engine.ops.step_cache import CacheLine
from flashjanus.sampling.options import USUAL, FlowOptions


@dataclass(frozen=True, init=False)
class Sampler(FlowOptions[Never]):
    """The options of one image's flow, by position or by name. An option that is not given has its official value.

    Nothing is checked here: `presets.sampler` checks options and resolves presets."""

    def __init__(self, *ordered: Any, **named: Any) -> None:
        given = zip([*USUAL][: len(ordered)], ordered, strict=True)
        super().__init__(**{**USUAL, **dict(given), **named})

    @property
    def schedule(self) -> Schedule:
        return schedule(self)


@dataclass(frozen=True)
class Schedule:
    """times: t of each evaluation, in [0, 1). lines: its coefficients. cache: whether its language model runs or
    recalls; empty where it always runs."""

    times: tuple[float, ...]
    lines: tuple[Evaluation, ...]
    cache: tuple[CacheLine, ...] = ()

    def __len__(self) -> int:
        return len(self.times)

    def needs_branch(self, evaluation: int) -> bool:
        """Whether this evaluation computes the unconditional branch."""
        line = self.lines[evaluation] if evaluation < len(self) else Evaluation()
        return line.guidance != 1 and not line.reuse

    def branches_left(self, taken: int) -> int:
        """The number of evaluations after the first `taken` up to the last one that needs its unconditional branch."""
        needing = [k for k in range(taken, len(self)) if self.needs_branch(k)]
        return needing[-1] + 1 - taken if needing else 0

    def needs_model(self, evaluation: int) -> bool:
        """Whether this evaluation runs the language model."""
        return evaluation < len(self) and not (self.cache and self.cache[evaluation].recall)

    def left(self, taken: int) -> float:
        """What remains to t = 1 after `taken` evaluations, as a multiple of the last step; 0 at the end."""
        times, at = (*self.times, 1.0), min(taken, len(self))
        return (1 - times[at]) / (times[at] - times[at - 1])

    @property
    def guided(self) -> bool:
        return any(line.guidance != 1 for line in self.lines)

    @property
    def skips(self) -> bool:
        """Whether some evaluation of a guided row needs no unconditional branch."""
        return self.guided and not all(map(self.needs_branch, range(len(self))))

    @property
    def caches(self) -> bool:
        """Whether the language model's part is kept for evaluations that recall it."""
        return bool(self.cache)


@lru_cache(maxsize=256)
def schedule(sampler: Sampler) -> Schedule:
    """The evaluations of a sampler: its solver's, in order, with guidance inside its interval."""
    (*times, _), differences = grid(sampler.num_inference_steps, sampler.timestep_shift)
    lines = _LINES[sampler.solver](differences)
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
    plain = Schedule(tuple(times), tuple(complete))
    return plain if sampler.step_cache == 1 else replace(plain, cache=cached(plain, sampler.step_cache))


def cached(plain: Schedule, due: int | Sequence[float]) -> tuple[CacheLine, ...]:
    """Which evaluations run the language model; the others recall a line through its last two runs.

    due: n runs it in the first two evaluations and in every n-th; a sequence of times runs it in the first evaluation
    at or after each time. It also runs where an evaluation needs an unconditional branch that one of the last two runs
    did not compute.
    """
    lines: list[CacheLine] = []
    runs: list[tuple[float, bool]] = []
    before = -1.0
    for k, t in enumerate(plain.times):
        asked = k < 2 or k % due == 0 if isinstance(due, int) else any(before < at <= t for at in due)
        before, branch, past = t, plain.needs_branch(k), runs[-2:]
        if asked or (branch and not all(had for _, had in past)):
            lines.append(CacheLine(slot=len(runs) % 2))
            runs.append((t, branch))
            continue
        (first, _), (last, _) = past[0], past[-1]
        ahead = (t - last) / (last - first) if last > first else 0.0
        weights = (1 + ahead, -ahead) if len(runs) % 2 else (-ahead, 1 + ahead)
        lines.append(CacheLine(1.0, -1.0, *weights))
    return tuple(lines)


def grid(steps: int, shift: float) -> tuple[list[float], list[float]]:
    """The times t_0 = 0 .. t_steps = 1 and their differences.

    They are evenly spaced for shift = 1; another shift moves them as in SD3, with sigma = 1 - t:
    sigma' = shift sigma / (1 + (shift - 1) sigma).
    """
    even = [k / steps for k in range(steps + 1)]
    if shift == 1:
        return even, [1 / steps] * steps  # not the differences of rounded times: the official step has these bits
    times = [t / (t + shift * (1 - t)) for t in even]
    return times, [after - t for t, after in pairwise(times)]


def _euler(differences: list[float]) -> list[Evaluation]:
    """z' = z + dt w."""
    return [Evaluation(z_w=dt) for dt in differences]


def _ab2(differences: list[float]) -> list[Evaluation]:
    """z' = z + dt ((1 + r / 2) w - r / 2 h), h' = w, with r = dt / the step before; the first step is Euler's."""
    ratios = [0.0, *(dt / before for before, dt in pairwise(differences))]
    return [
        Evaluation(z_w=dt * (1 + r / 2), z_h=-dt * r / 2, h_w=1.0) for dt, r in zip(differences, ratios, strict=True)
    ]


_LINES = {"euler": _euler, "ab2": _ab2}
