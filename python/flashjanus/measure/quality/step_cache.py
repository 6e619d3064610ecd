"""Times at which the language model is to run, found beforehand for `step_cache`.

One run of the sampler that recalls nothing gives what the language model adds in every evaluation, D_k. From it follows
how far a line through D_i and D_j is from D_l, for all i < j < l, and so the evaluations for which the sum of these
errors is least, by dynamic programming over the last two. An error counts for its velocity's share of the step over the
time 1 - t that is left: what is spoilt late is not mended any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import torch

from flashjanus.api.janusflow import JanusFlow
from flashjanus.errors import InputError
from flashjanus.execution.flow import FlowRequest
from flashjanus.sampling.schedule import Sampler, Schedule
from flashjanus.scheduling.requests import ImageJob, Progress

LEAST_EVALUATIONS = 3


@dataclass(frozen=True)
class Found:
    """runs of the language model, their `times` for step_cache, and the error, relative to what the model adds."""

    runs: int
    times: tuple[float, ...]
    error: float


def find_times(
    model: JanusFlow,
    prompts: Sequence[Sequence[int]],
    noise: torch.Tensor,
    sampler: Sampler,
    done: Callable[[str], None] = lambda what: None,
) -> list[Found]:
    """The best times for 2 runs of the language model, 3, ..., all but one, on average over prompts.

    Numbers of runs that guidance does not allow are left out: a branch is recalled from runs that had it alone.

    prompts: token ids with the trailing tag; noise (B, c, L, L): of each. Raises InputError.
    """
    schedule = replace(sampler, step_cache=1).schedule
    if len(schedule) < LEAST_EVALUATIONS:
        raise InputError(f"num_inference_steps: expected at least {LEAST_EVALUATIONS}, got {len(schedule)}")
    always = replace(sampler, step_cache=schedule.times)
    error = torch.zeros(())
    for number, (ids, z0) in enumerate(zip(prompts, noise, strict=True), 1):
        error = error + errors(schedule, *_products(model, FlowRequest(tuple(ids[:-1]), always, z0)))
        done(f"prompt {number} of {len(prompts)}")
    chosen = best(error / len(prompts))
    return [Found(len(at), _times(schedule.times, at), total) for at, total in chosen]


def _products(model: JanusFlow, request: FlowRequest) -> tuple[torch.Tensor, torch.Tensor]:
    """Inner products (K, K), float64, of what the language model adds, in evaluations with guidance and without.

    With guidance it is g D_cond - (g - 1) D_uncond, where the evaluation needs its unconditional branch.
    """
    with_guidance, without = [], []
    guidance, shared = request.sampler.guidance_scale, model.shared
    with closing(shared.serve([ImageJob(rows=(request,), decode=False, pauses=True)])) as events:
        for event in events:
            if isinstance(event, Progress):
                conditional, unconditional = (added.flatten() for added in shared.added(event.handle))
                shared.resume(event.handle)
                guided = request.schedule.needs_branch(event.step - 1)
                without.append(conditional)
                with_guidance.append(guidance * conditional - (guidance - 1) * unconditional if guided else conditional)
    a, b = (rows @ rows.T for rows in (torch.stack(added).double() for added in (with_guidance, without)))
    return a.cpu(), b.cpu()


def errors(schedule: Schedule, with_guidance: torch.Tensor, without: torch.Tensor) -> torch.Tensor:
    """(K, K, K), float64: [i, j, l] is what recalling evaluation l costs behind runs at i and then j.

    0 unless i < j < l, or i = j = 0: behind a single run. Infinite where l needs an unconditional branch and a run did
    without its own: l runs then whatever was asked for.
    """
    t = torch.tensor(schedule.times, dtype=torch.float64)
    share = torch.tensor([line.z_w for line in schedule.lines], dtype=torch.float64) / (1 - t)
    needs = torch.tensor([schedule.needs_branch(k) for k in range(len(t))])
    i, j, last = torch.meshgrid(*[torch.arange(len(t))] * 3, indexing="ij")
    width = t[j] - t[i]
    ahead = torch.where(width > 0, (t[last] - t[j]) / width.clamp(min=1e-9), 0)

    def relative(products: torch.Tensor) -> torch.Tensor:
        """||(1 + r) D_j - r D_i - D_l|| / ||D_l||."""
        square = products.diagonal()
        out = square[last] + (1 + ahead) ** 2 * square[j] + ahead**2 * square[i]
        out = out - 2 * (1 + ahead) * products[last, j] + 2 * ahead * products[last, i]
        out = out - 2 * ahead * (1 + ahead) * products[i, j]
        return (out.clamp(min=0) / square[last].clamp(min=1e-30)).sqrt()

    cost = torch.where(needs[last], relative(with_guidance), relative(without)) * share[last]
    cost = torch.where(needs[last] & ~(needs[i] & needs[j]), torch.inf, cost)
    return torch.where((i <= j) & (j < last) & ((i < j) | (i == 0)), cost, 0.0)


def best(cost: torch.Tensor) -> list[tuple[tuple[int, ...], float]]:
    """For 2 runs, 3, ..., K - 1 the evaluations with the least sum of `cost`, and that sum, where it is finite.

    The first is 0.
    """
    count = len(cost)
    # between[i, j, k]: of the evaluations j + 1 .. k - 1; infinite where k is not behind j
    between = torch.nn.functional.pad(cost.cumsum(2), (1, 0))
    at = torch.arange(count + 1)
    between = torch.where(at > torch.arange(count)[:, None], between, torch.inf)
    rest = [between[:, :, count]]  # [m][i, j]: least cost behind j with m more runs
    following = []
    for _ in range(count - 2):
        least = (between[:, :, :count] + rest[-1]).min(2)
        rest.append(least.values)
        following.append(least.indices)
    found = []
    for more in range(1, count - 1):
        runs, i, j = [0], 0, 0
        for left in reversed(range(more)):
            i, j = j, int(following[left][i, j])
            runs.append(j)
        found.append((tuple(runs), float(rest[more][0, 0])))
    return [(runs, total) for runs, total in found if math.isfinite(total)]


def _times(times: Sequence[float], at: Sequence[int]) -> tuple[float, ...]:
    """Short numbers up to the times of these evaluations, beyond those of the ones before."""
    found = []
    for k in at:
        digits, short = 2, 0.0
        while k and not times[k - 1] < short <= times[k]:
            short = math.floor(times[k] * 10**digits) / 10**digits
            digits += 1
        found.append(short)
    return tuple(found)
