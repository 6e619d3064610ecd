"""Solvers as tables of coefficients: closed forms, the order at which they converge, and what their options refuse."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from flashjanus.engine.ops.flow_update import Evaluation
from flashjanus.errors import InputError
from flashjanus.sampling import presets
from flashjanus.sampling.options import SOLVERS, ImageOptions
from flashjanus.sampling.schedule import Sampler, Schedule, schedule

ORDERS = {"euler": 0.9, "ab2": 1.8}
"""Observed at least, between 256 and 512 steps, where 1 and 2 are due."""


def velocity(z: float, t: float) -> float:
    """z' = cos(3 t) z + t, a flow whose solution depends on all of its path."""
    return math.cos(3 * t) * z + t


def integrate(plan: Schedule) -> float:
    """z(1) from z(0) = 1, in double precision, as flow_update goes through the schedule."""
    z, h = 1.0, 0.0
    for t, e in zip(plan.times, plan.lines, strict=True):
        w = velocity(z, t)
        z, h = e.z_z * z + e.z_w * w + e.z_h * h, e.h_z * z + e.h_w * w if e.z_h or e.h_z or e.h_w else h
    return z


@cache
def exact() -> float:
    """By the classical Runge-Kutta method, far below the errors that are compared."""
    n, z = 4000, 1.0
    for k in range(n):
        t, dt = k / n, 1 / n
        a = velocity(z, t)
        b = velocity(z + dt / 2 * a, t + dt / 2)
        c = velocity(z + dt / 2 * b, t + dt / 2)
        z += dt / 6 * (a + 2 * b + 2 * c + velocity(z + dt * c, t + dt))
    return z


def observed_order(solver: str, shift: float = 1.0, **factors: float) -> float:
    """log2 of what doubling the steps divides the error by; `factors` scale coefficients of all lines."""
    errors = []
    for steps in (256, 512):
        plan = schedule(Sampler(steps, 1.0, solver, shift))
        scaled = [{name: factor * getattr(e, name) for name, factor in factors.items()} for e in plan.lines]
        lines = tuple(e._replace(**values) for e, values in zip(plan.lines, scaled, strict=True))
        errors.append(abs(integrate(replace(plan, lines=lines)) - exact()))
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_converge_at_their_order(solver: str, shift: float) -> None:
    assert observed_order(solver, shift) >= ORDERS[solver]
    assert solver != "euler" or observed_order(solver, shift) < 1.5, "the measure tells first order from second"


USED = {
    "euler": ("z_z", "z_w"),
    "ab2": ("z_z", "z_w", "z_h", "h_w"),
}


@pytest.mark.parametrize("factor", [0.99, 1.01])
@pytest.mark.parametrize(("solver", "name"), [(solver, name) for solver, names in USED.items() for name in names])
def test_a_wrong_coefficient_fails_the_check_above(solver: str, name: str, factor: float) -> None:
    assert observed_order(solver, **{name: factor}) < 0.5


def test_coefficients_that_a_solver_does_without_are_zero() -> None:
    for solver, names in USED.items():
        lines = schedule(Sampler(5, 1.0, solver)).lines
        assert {name for name in Evaluation._fields[:5] if any(getattr(e, name) for e in lines)} == set(names)


def test_euler_is_the_official_step() -> None:
    plan = schedule(Sampler(7, 1.0))
    assert plan.times == tuple(k / 7 for k in range(7))
    assert plan.lines == (Evaluation(z_w=1 / 7),) * 7


def test_a_shift_is_that_of_stable_diffusion_3() -> None:
    plan = schedule(Sampler(4, 1.0, timestep_shift=3.0))
    sigmas = [3 * s / (1 + 2 * s) for s in (1, 0.75, 0.5, 0.25, 0)]
    assert plan.times == pytest.approx([1 - s for s in sigmas[:-1]])
    assert [e.z_w for e in plan.lines] == pytest.approx([a - b for a, b in pairwise(sigmas)])
    assert plan.times[0] == 0
    assert sum(e.z_w for e in plan.lines) == pytest.approx(1, abs=1e-12)


def test_adams_bashforth_weighs_uneven_steps() -> None:
    """The line through the last two velocities, integrated over a step that is not as long as the one before."""
    plan = schedule(Sampler(6, 1.0, "ab2", 2.5))
    for (t0, t1), t2, e in zip(pairwise(plan.times), (*plan.times[2:], 1.0), plan.lines[1:], strict=True):
        for w0, w1 in ((1.0, 1.0), (t0, t1)):  # of w = 1 and of w = t
            assert e.z_w * w1 + e.z_h * w0 == pytest.approx(t2 - t1 if w1 == 1 else (t2**2 - t1**2) / 2)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_straight_flow_is_followed_exactly(solver: str) -> None:
    """Every solver: z' = 2 from any start, at any number of steps."""
    for steps in (1, 2, 3, 8):
        plan, z, h = schedule(Sampler(steps, 1.0, solver, 1.7)), 0.5, 0.0
        for e in plan.lines:
            z, h = e.z_z * z + e.z_w * 2 + e.z_h * h, e.h_z * z + e.h_w * 2
        assert z == pytest.approx(2.5)


def guidance_of(**options: object) -> list[tuple[float, float, float]]:
    plan = presets.sampler(num_inference_steps=8, guidance_scale=3.0, **options).schedule
    return [(e.guidance, e.reuse, e.keep) for e in plan.lines]


def test_guidance_holds_within_its_interval() -> None:
    none, full = (1.0, 0.0, 0.0), (3.0, 0.0, 0.0)
    assert guidance_of() == [full] * 8
    assert guidance_of(guidance_interval=(0.25, 0.5)) == [none] * 2 + [full] * 3 + [none] * 3
    assert guidance_of(guidance_interval=[0.9, 1]) == [none] * 8
    assert not presets.sampler(guidance_interval=(0.999, 1)).schedule.guided


def test_unconditional_velocities_serve_until_the_next() -> None:
    none, fresh, again = (1.0, 0.0, 0.0), (3.0, 0.0, 1.0), (3.0, 1.0, 0.0)
    assert guidance_of(uncond_every=3) == [fresh, again, again, fresh, again, again, fresh, again]
    late = guidance_of(uncond_every=2, guidance_interval=(0.3, 1))
    assert late == [none] * 3 + [fresh, again, fresh, again, fresh]


def test_a_schedule_says_when_the_branch_is_needed() -> None:
    plan = presets.sampler(num_inference_steps=5, uncond_every=2, guidance_interval=(0.0, 0.7)).schedule
    assert [plan.needs_branch(k) for k in range(7)] == [True, False, True, False, False, False, False]
    assert plan.skips
    assert not Sampler().schedule.skips
    assert not Sampler(guidance_scale=1.0).schedule.skips, "without any branch there is none to skip"


def test_the_language_model_runs_every_so_often_or_from_given_times_on() -> None:
    def ran(steps: int, **options: object) -> list[int]:
        plan = presets.sampler(num_inference_steps=steps, guidance_scale=3.0, **options).schedule
        return [k for k in range(steps + 2) if plan.needs_model(k)]

    assert ran(5) == [0, 1, 2, 3, 4]
    assert ran(8, step_cache=3) == [0, 1, 3, 6]
    assert ran(8, step_cache=(0, 0.25, 0.3, 0.31)) == [0, 2, 3]
    assert ran(16, step_cache=(0, 0.25, 0.3, 0.31)) == [0, 4, 5], "the same times in more steps"
    assert ran(1, step_cache=3) == [0]
    with_branch_at_0_and_4 = dict(step_cache=2, uncond_every=4)
    assert ran(8, **with_branch_at_0_and_4) == [0, 1, 2, 4, 6]
    assert not Sampler().schedule.caches
    assert Sampler(step_cache=2).schedule.caches


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(solver="rk4"), "solver: expected one of 'euler', 'ab2', got 'rk4'"),
        (dict(num_inference_steps=0), "num_inference_steps: expected an integer from 1 to 1000, got 0"),
        (dict(num_inference_steps=1001, solver="ab2"), "num_inference_steps: expected an integer from 1 to 1000"),
        (dict(timestep_shift=0), "timestep_shift: expected a finite number from 0.01 to 100, got 0"),
        (dict(guidance_interval=0.5), r"guidance_interval: expected two times \(low, high\) from 0 to 1, got 0.5"),
        (dict(guidance_interval=(0.6, 0.5)), r"guidance_interval: .*low <= high, got \(0.6, 0.5\)"),
        (dict(guidance_interval=(0, 2)), "guidance_interval: expected a finite number from 0 to 1, got 2"),
        (dict(guidance_rescale=1.5), "guidance_rescale: expected a finite number from 0 to 1, got 1.5"),
        (dict(uncond_every=0), "uncond_every: expected an integer from 1 to 1000, got 0"),
        (dict(step_cache=0), "step_cache: expected an integer from 1 to 1000, or times that begin with 0, got 0"),
        (dict(step_cache="2"), "step_cache: .* or times that begin with 0, got '2'"),
        (dict(step_cache=True), "step_cache: .* got True"),
        (dict(step_cache=[torch.zeros(2)]), "step_cache: .* or times that begin with 0"),
        (dict(step_cache=(0.2, 0.5)), r"step_cache: .* or times that begin with 0, got \(0.2, 0.5\)"),
        (
            dict(step_cache=(0, 0.5, 0.5)),
            r"step_cache: expected times that begin with 0, rise and stay below 1, got \(0",
        ),
        (dict(step_cache=(0, 0.5, 1)), "step_cache: expected times that begin with 0, rise and stay below 1"),
        (dict(step_cache=(0, 2)), "step_cache: expected a finite number from 0 to 1, got 2"),
        (dict(preset="best"), "preset: expected one of 'exact', 'balanced', 'fast', got 'best'"),
    ],
)
def test_options_that_make_no_sense_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        presets.sampler(**given)


def test_what_is_given_wins_over_a_preset() -> None:
    assert presets.sampler() == presets.sampler("exact") == Sampler()
    fast = presets.sampler("fast")
    assert len(fast.schedule) < len(presets.sampler("balanced").schedule) < 30
    assert presets.sampler("fast", num_inference_steps=7, solver=None) == replace(fast, num_inference_steps=7)
    for options in presets.PRESETS.values():
        assert ImageOptions(**options).checked() == ImageOptions(**options), "every preset holds valid options"
