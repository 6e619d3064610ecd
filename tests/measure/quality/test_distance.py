"""The measures of quality, and that the distance to the converged solution finds a wrong solver."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.errors import InputError
from flashjanus.measure.evaluation.sets import prompt_set
from flashjanus.measure.quality.distance import ENOUGH_PROMPTS, cosine, distances, is_farther, psnr, relative
from flashjanus.measure.quality.modes import Mode
from flashjanus.measure.quality.subject import Subject, Work
from flashjanus.measure.timing import Ratio

EXACT, FINE, CONVERGED = 30, 200, 600
PROMPTS = [prompt.text for prompt in prompt_set(2)][:8]


def first_order(steps: int) -> float:
    """Of a method whose error is proportional to its step: its distance at `steps` over that at EXACT."""
    return (1 / steps - 1 / CONVERGED) / (1 / EXACT - 1 / CONVERGED)


@pytest.fixture(scope="module")
def euler(small: JanusFlow) -> Callable[..., list[float]]:
    """euler(steps, length): distances to the converged solution of Euler steps that are `length` times too long."""
    work = Work(PROMPTS, 0, {"guidance_scale": 1.0})
    solution = Subject(Mode("converged", sampling={"num_inference_steps": CONVERGED}), small, work).latents()

    def run(steps: int, length: float = 1.0) -> list[float]:
        if length == 1.0:
            return distances(
                Subject(Mode("m", sampling={"num_inference_steps": steps}), small, work).latents(), solution
            )
        noise = [torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(k)) for k in range(len(PROMPTS))]
        before = torch.cat(noise)

        def stretch(model, step, t, state):
            state["latents"] = before + length * (state["latents"] - before)
            before.copy_(state["latents"])
            return state

        z = small.generate_image(
            PROMPTS,
            num_inference_steps=steps,
            guidance_scale=1.0,
            seed=0,
            output_type="latent",
            callback_on_step_end=stretch,
        ).images
        return distances(z, solution)

    return run


class TestConverged:
    def test_a_right_solver_passes_and_one_whose_steps_are_one_percent_too_long_does_not(self, euler):
        exact, bound = euler(EXACT), 1.25 * first_order(FINE)
        right, wrong = relative(euler(FINE), exact), relative(euler(FINE, 1.01), exact)
        assert not is_farther(right, bound)
        assert right.value == pytest.approx(first_order(FINE), rel=0.2)
        assert is_farther(wrong, bound)
        assert wrong.low > 2 * right.high

    def test_at_the_exact_mode_s_own_steps(self, euler):
        exact = euler(EXACT)
        assert not is_farther(relative(exact, exact), 1.0)
        assert is_farther(relative(euler(EXACT, 1.05), exact), 1.0)
        assert is_farther(relative(euler(20), exact), 1.5)
        assert not is_farther(relative(euler(60), exact), 1.0)

    def test_few_prompts_decide_nothing(self):
        for count, decided in ((ENOUGH_PROMPTS - 1, False), (ENOUGH_PROMPTS, True)):
            found = relative([2.0] * count, [1.0] * count)
            if decided:
                assert is_farther(found, 1.5)
            else:
                with pytest.raises(InputError, match="at least 5 prompts"):
                    is_farther(found, 1.5)

    def test_farther_is_beyond_the_bound_at_the_nearer_limit(self):
        assert not is_farther(Ratio(3.0, 1.5, 9.0, 0.9375), 1.5)
        assert is_farther(Ratio(3.0, 1.5001, 9.0, 0.9), 1.5)
        with pytest.raises(InputError):
            is_farther(Ratio(3.0, 1.6, 9.0, 0.8999), 1.5)

    def test_no_distance_to_compare_with(self):
        with pytest.raises(InputError, match="converged_steps"):
            relative([1.0, 1.0], [1.0, 0.0])


class TestMeasures:
    def test_distance(self):
        z = torch.zeros(2, 1, 2, 2)
        assert distances(z, torch.stack([z[0] + 3, z[1]])) == [3.0, 0.0]

    def test_psnr(self):
        exact = torch.tensor([[0.0, 1.0, 2.0, 4.0]]).repeat(2, 1)
        found = exact + torch.tensor([[0.04], [0.0]])
        assert psnr(found, exact) == [pytest.approx(40.0, abs=1e-4), math.inf]
        assert psnr(found, exact, peak=0.4)[0] == pytest.approx(20.0, abs=1e-4)

    def test_cosine(self):
        x = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        assert cosine(x, torch.tensor([[0.0, 2.0], [3.0, 3.0]])) == [pytest.approx(0.0), pytest.approx(1.0)]

    def test_a_ratio_is_paired_by_prompt(self):
        assert relative([2.0, 20.0, 200.0], [1.0, 10.0, 100.0]) == Ratio(2.0, 2.0, 2.0, 0.75)
