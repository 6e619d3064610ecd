"""Finds the times at which the language model should run under `step_cache`.

A full run of the sampler gives D_k, what the language model adds to its input in evaluation k. A cached evaluation l
extrapolates a line through the last two runs, D_i and D_j. The error of that line against D_l is known for all
i < j < l, and dynamic programming over the last two runs finds the evaluations with the least total error. Each error
is weighted by its share of the step over the remaining time 1 - t, because later evaluations correct an early error and
nothing corrects a late one.
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
    """The number of runs, their `times` for step_cache, and the error relative to the language model's contribution."""

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
    """The best times for every number of runs from 2 to all but one, averaged over the prompts.

    An unconditional branch can only be recalled from runs that computed it. If guidance makes a number of runs
    impossible, the result has no entry for it.

    prompts: token ids with the trailing tag. noise: (B, c, L, L), one for each prompt. Raises InputError.
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
    """Inner products (K, K), float64, of the language model's contributions to evaluations, with and without guidance.

    With guidance, a contribution is g D_cond - (g - 1) D_uncond, if the evaluation needs its unconditional branch.
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
    """(K, K, K), float64: entry [i, j, l] is the cost of recalling evaluation l when the last two runs were i and j.

    i = j = 0 stands for a single run; unless i < j < l, all other entries are 0. The cost is infinite if l needs an
    unconditional branch that one of the runs did not compute; l then has to run.
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
    """For every number of runs from 2 to K - 1: the evaluations with the least total cost, and that cost.

    The first evaluation always runs. Numbers of runs with infinite cost are left out.
    """
    count = len(cost)
    # between[i, j, k]: cost of the evaluations j + 1 .. k - 1; infinite unless k is after j
    between = torch.nn.functional.pad(cost.cumsum(2), (1, 0))
    at = torch.arange(count + 1)
    between = torch.where(at > torch.arange(count)[:, None], between, torch.inf)
    rest = [between[:, :, count]]  # [m][i, j]: least cost after j with m more runs
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
    """The times of these evaluations as short numbers, each between its evaluation and the one before."""
    found = []
    for k in at:
        digits, short = 2, 0.0
        while k and not times[k - 1] < short <= times[k]:
            short = math.floor(times[k] * 10**digits) / 10**digits
            digits += 1
        found.append(short)
    return tuple(found)
