"""Times for `step_cache`: the search against all subsets, the errors against their definition, and a model's own."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.errors import InputError
from flashjanus.measure.quality.asked import noise, prompt_ids
from flashjanus.measure.quality.distance import distances
from flashjanus.measure.quality.step_cache import best, errors, find_times
from flashjanus.sampling import presets
from flashjanus.sampling.schedule import Sampler
from small_model import relative_error


def cost_of(runs: tuple[int, ...], cost: torch.Tensor) -> float:
    total = 0.0
    for last in range(len(cost)):
        past = [r for r in runs if r <= last]
        if past[-1] != last:
            total += float(cost[past[-2] if len(past) > 1 else past[-1], past[-1], last])
    return total


def test_the_search_finds_the_best_of_all_subsets() -> None:
    count = 8
    cost = torch.rand(count, count, count, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    at = torch.arange(count)
    cost *= (at[:, None, None] <= at[:, None]) & (at[:, None] < at)
    found = best(cost)
    assert [len(runs) for runs, _ in found] == [2, 3, 4, 5, 6, 7]
    for runs, total in found:
        every = [(0, *rest) for rest in combinations(range(1, count), len(runs) - 1)]
        assert total == pytest.approx(min(cost_of(one, cost) for one in every))
        assert cost_of(runs, cost) == pytest.approx(total)


def test_errors_are_those_of_a_line_through_the_last_two_runs() -> None:
    schedule = Sampler(6, 3.0, "ab2", 0.7, guidance_interval=(0.0, 0.6)).schedule
    added = torch.randn(2, 6, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cost = errors(schedule, *(rows @ rows.T for rows in added))
    for i, j, k in ((0, 0, 2), (0, 1, 2), (1, 3, 5), (0, 4, 5), (2, 3, 4)):
        d, t = added[0 if schedule.needs_branch(k) else 1], schedule.times
        line = d[j] if i == j else d[j] + (d[j] - d[i]) * (t[k] - t[j]) / (t[j] - t[i])
        due = (line - d[k]).norm() / d[k].norm() * schedule.lines[k].z_w / (1 - t[k])
        assert float(cost[i, j, k]) == pytest.approx(float(due))
    late = errors(Sampler(6, 3.0, guidance_interval=(0.4, 1.0)).schedule, *(rows @ rows.T for rows in added))
    assert late[0, 1, 4].isinf(), "evaluation 4 needs a branch, which 0 and 1 did without"
    assert late[3, 4, 5].isfinite()
    assert [schedule.needs_branch(k) for k in (2, 4, 5)] == [True, False, False]
    for outside in ((1, 1, 3), (2, 1, 3), (1, 3, 3), (0, 3, 2)):
        assert cost[outside] == 0


def test_found_times_beat_even_ones_on_the_built_in_model() -> None:
    """On other noise than they were found on, with as many runs."""
    model = JanusFlow.from_pretrained("shapes", device="cpu", dtype="float32")
    steps, runs = 16, 10
    options = dict(num_inference_steps=steps, solver="ab2", timestep_shift=0.7)
    sampler = presets.sampler(**options)
    texts = ["a red circle", "a blue square left of a green triangle", "two squares", "a circle above a yellow square"]
    prompts = prompt_ids(model, texts)
    found = find_times(model, prompts[:2], noise(model, range(2)), sampler)
    assert [one.runs for one in found] == list(range(2, steps))
    assert [one.error for one in found] == sorted((one.error for one in found), reverse=True)
    z0 = noise(model, range(10, 14))
    full = model.sample_latents(prompts, z0, **options)

    def away(times: tuple[float, ...]) -> float:
        schedule = presets.sampler(step_cache=times, **options).schedule
        assert sum(schedule.needs_model(k) for k in range(steps)) == runs
        return sum(distances(model.sample_latents(prompts, z0, step_cache=times, **options), full))

    even = tuple(sampler.schedule.times[round(k * (steps - 1) / (runs - 1))] for k in range(runs))
    assert away(next(one.times for one in found if one.runs == runs)) < 0.8 * away(even)


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(10, 3.0, "ab2", guidance_interval=(0.3, 1.0)),
        Sampler(12, 3.0, uncond_every=3),
        Sampler(9, 3.0, guidance_interval=(0.2, 0.7)),
        Sampler(7, 1.0, timestep_shift=1.5),
        Sampler(12, 2.0, timestep_shift=2.0),
    ],
)
def test_the_language_model_runs_as_often_as_was_found(small: JanusFlow, sampler: Sampler) -> None:
    found = find_times(small, prompt_ids(small, ["a red circle"]), noise(small, range(1)), sampler)
    assert found
    for one in found:
        schedule = replace(sampler, step_cache=one.times).schedule
        assert sum(map(schedule.needs_model, range(len(schedule)))) == one.runs, one.times


def test_a_network_without_its_language_model_is_wrong(small: JanusFlow) -> None:
    """What is recalled matters: runs at the first evaluation alone are far off."""
    prompts, z0 = prompt_ids(small, ["a red circle"]), noise(small, range(1))
    plain, cached = (small.sample_latents(prompts, z0, num_inference_steps=8, step_cache=c) for c in (1, (0,)))
    assert relative_error(cached, plain) > 1e-3


def test_too_few_evaluations_leave_nothing_to_find(small: JanusFlow) -> None:
    with pytest.raises(InputError, match="num_inference_steps: expected at least 3, got 2"):
        find_times(small, prompt_ids(small, ["a"]), noise(small, range(1)), Sampler(2))
