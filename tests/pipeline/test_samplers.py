"""Solvers and cheaper guidance on a whole model: what a row computes, what it saves, and that it sees no other row."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.engine.runtime.executor import Executor
from flashjanus.errors import InputError
from flashjanus.pipeline import presets
from flashjanus.pipeline.flow import FlowRequest, FlowSession, Prepared, skipping
from flashjanus.pipeline.schedule import Sampler
from small_model import LATENT, normal, prompt, relative_error, small_config, small_state

ALONE = 1e-5
PROMPT = "a red circle above a blue square"


def build(**options: Any) -> JanusFlow:
    config = small_config()
    return JanusFlow.from_state_dict(config, small_state(config), device="cpu", **options)


@pytest.fixture(scope="module")
def model() -> JanusFlow:
    return build(dtype="float32")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the runs of each program."""
    counts: Counter[str] = Counter()
    run = Executor.run

    def counted(self: Executor) -> None:
        counts[self.plan.name] += 1
        run(self)

    monkeypatch.setattr(Executor, "run", counted)
    return counts


SAMPLERS = {
    "euler": Sampler(4, 3.0),
    "heun": Sampler(3, 2.5, "heun"),
    "ab2": Sampler(5, 3.0, "ab2", timestep_shift=2.0),
    "dpmpp2m": Sampler(6, 3.0, "dpmpp2m"),
    "interval": Sampler(6, 4.0, "ab2", guidance_interval=(0.2, 0.6)),
    "rescale": Sampler(4, 6.0, guidance_rescale=0.7),
    "reuse": Sampler(7, 3.0, "dpmpp2m", uncond_every=3),
    "all": Sampler(5, 5.0, "heun", 1.5, (0.0, 0.8), 0.4, 2),
    "unguided": Sampler(4, 1.0, "ab2"),
}


def draw(model: JanusFlow, samplers: list[Sampler], first: int = 0, **more: Any) -> Any:
    """One row for each sampler, from prompts and noise of its own."""
    rows = range(first, first + len(samplers))
    options = {name: [getattr(s, name) for s in samplers] for name in Sampler.__dataclass_fields__}
    noise = torch.cat([normal(row, 1, *LATENT) for row in rows])
    return model.sample_latents([prompt(row, 4 + 3 * row) for row in rows], noise, **options, **more)


def guided(cond: torch.Tensor, uncond: torch.Tensor, scale: float, rescale: float) -> torch.Tensor:
    """As diffusers has it: rescale_noise_cfg behind classifier-free guidance."""
    w = uncond + scale * (cond - uncond)
    return rescale * w * (cond.std() / w.std()) + (1 - rescale) * w


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_row_computes_what_its_options_say(model: JanusFlow, name: str) -> None:
    """Every solver written out in float64 on the velocities of the trace."""
    sampler = SAMPLERS[name]
    z1, trace = draw(model, [sampler], trace=True)
    times, kept, count = [*sampler.schedule.times, 1.0], torch.tensor(torch.nan), 0
    points = [entry["z"][0].double() for entry in trace] + [z1[0].double()]
    before: list[torch.Tensor] = []
    for k, entry in enumerate(trace):
        t, after, z = times[k], times[k + 1], points[k]
        w = entry["v_cond"][0].double()
        low, high = sampler.guidance_interval
        if sampler.guidance_scale != 1 and low <= t <= high:
            fresh = count % sampler.uncond_every == 0
            assert bool(entry["v_uncond"].isnan().all()) != fresh
            kept = entry["v_uncond"][0].double() if fresh else kept
            w = guided(w, kept, sampler.guidance_scale, sampler.guidance_rescale)
            count += 1
        dt = after - t
        if sampler.solver == "heun" and k % 2:
            due = points[k - 1] + (t - times[k - 1]) * (before[-1] + w) / 2
        elif sampler.solver == "ab2" and k:
            due = z + dt * (w + dt / (t - times[k - 1]) * (w - before[-1]) / 2)
        elif sampler.solver == "dpmpp2m" and 1 < k < len(trace) - 1:
            s = [torch.tensor(x, dtype=torch.float64).logit() for x in times[k - 1 : k + 2]]
            x, x_before = z + (1 - t) * w, points[k - 1] + (1 - times[k - 1]) * before[-1]
            drawn = x + (s[2] - s[1]) / (s[1] - s[0]) * (x - x_before) / 2
            due = z + dt / (1 - t) * (drawn - z)
        else:
            due = z + (times[k + 2] - t if sampler.solver == "heun" and k + 2 < len(times) and after == t else dt) * w
        before.append(w)
        assert relative_error(points[k + 1], due) <= 1e-5, k


@pytest.mark.parametrize(
    "options", [dict(dtype="float32"), dict(dtype="bfloat16"), dict(dtype="bfloat16", numerics="official")]
)
def test_rows_of_one_batch_are_those_of_each_alone(options: dict[str, str]) -> None:
    model, samplers = build(**options), list(SAMPLERS.values())
    together = draw(model, samplers)
    # another number of rows may make another kernel of torch's serve, which sums in another order
    allowed = ALONE if options["dtype"] == "float32" else 0.03
    for row, sampler in enumerate(samplers):
        assert relative_error(together[row], draw(model, [sampler], row)[0]) <= allowed, sampler


def test_evaluations_that_need_no_branch_run_without_them(model: JanusFlow, runs: Counter[str]) -> None:
    draw(model, [Sampler(7, 3.0, uncond_every=3)])
    assert runs == {"flow_prepare": 1, "flow_step": 3, "flow_step_conditional": 4}
    runs.clear()
    draw(model, [Sampler(8, 3.0, guidance_interval=(0.25, 0.5))])
    assert runs == {"flow_prepare": 1, "flow_step": 3, "flow_step_conditional": 5}
    runs.clear()
    draw(model, [Sampler(4, 3.0, uncond_every=2), Sampler(3, 3.0, guidance_interval=(0.3, 1.0)), Sampler(5, 1.0)])
    assert runs == {"flow_prepare": 1, "flow_step": 3, "flow_step_conditional": 2}, "one row is enough, at 0, 1 and 2"


@pytest.mark.parametrize("sampler", [Sampler(4, 3.0), Sampler(4, 1.0), Sampler(4, 3.0, "dpmpp2m")])
def test_without_these_options_there_is_one_plan(model: JanusFlow, runs: Counter[str], sampler: Sampler) -> None:
    made = build(dtype="float32")
    draw(made, [sampler])
    assert runs == {"flow_prepare": 1, "flow_step": 4}
    (session,) = [it for it in made.runner._idle.values() if isinstance(it, FlowSession)]
    assert session.conditional is None


def test_the_plan_without_branches_is_that_of_rows_without_guidance(model: JanusFlow) -> None:
    sizes = dict(R=2, P=16, K=4)
    full, none = (model.runner.plan("flow_step", U=u, **sizes).flops for u in (2, 0))
    assert model.runner.plan("flow_step_conditional", U=2, **sizes).flops == none < full


def test_a_row_joins_while_another_reuses(model: JanusFlow) -> None:
    first, second = Sampler(5, 3.0, "ab2", uncond_every=5), Sampler(3, 2.0, "heun")
    session = skipping(model.runner, 2, 2, 32, 6)
    for at, sampler in enumerate((first, second)):
        request = FlowRequest(tuple(prompt(at, 4 + 3 * at)[:-1]), sampler, normal(at, *LATENT))
        prepared = Prepared(model.runner, 1, 1, 32, 6)
        prepared.run([request.timed_prompt])
        session.join(prepared, 0, at, request)
        session.step()
        session.step()
    for _ in range(4):
        session.step()
    for row, sampler in enumerate((first, second)):
        assert relative_error(session.z[row], draw(model, [sampler], row)[0]) <= ALONE


def test_a_row_does_not_inherit_what_the_last_one_remembered(model: JanusFlow) -> None:
    session = FlowSession(model.runner, 1, 1, 32, 6)
    session.flow.states["history"].fill_(torch.nan)
    session.flow.states["kept"].fill_(torch.nan)
    sampler = Sampler(4, 3.0, "dpmpp2m", uncond_every=2)
    request = FlowRequest(tuple(prompt(0, 4)[:-1]), sampler, normal(0, *LATENT))
    prepared = Prepared(model.runner, 1, 1, 32, 6)
    prepared.run([request.timed_prompt])
    session.join(prepared, 0, 0, request)
    for _ in range(4):
        session.step()
    assert relative_error(session.z[0], draw(model, [sampler])[0]) <= ALONE


def test_reuse_and_rescaling_change_the_picture(model: JanusFlow) -> None:
    plain = draw(model, [Sampler(6, 4.0)])
    for other in (Sampler(6, 4.0, uncond_every=2), Sampler(6, 4.0, guidance_rescale=0.7), Sampler(6, 4.0, "ab2")):
        assert relative_error(draw(model, [other]), plain) > 1e-4
    again = Sampler(6, 4.0, "euler", 1.0, (0.0, 1.0), 0.0, 1)
    assert torch.equal(draw(model, [again]), plain)


def test_second_order_comes_closer_to_the_flow_of_a_trained_model() -> None:
    """At as many evaluations, where the network is smooth in time as untrained weights are not."""
    shapes = JanusFlow.from_pretrained("shapes", device="cpu", dtype="float32")

    def latents(**options: Any) -> torch.Tensor:
        z = shapes.generate_image(PROMPT, seed=5, output_type="latent", **options).images
        assert isinstance(z, torch.Tensor)
        return z

    fine = latents(solver="heun", num_inference_steps=60)
    errors = {s: relative_error(latents(solver=s, num_inference_steps=16), fine) for s in ("euler", "ab2", "dpmpp2m")}
    assert errors["ab2"] < 0.7 * errors["euler"], errors
    assert errors["dpmpp2m"] < errors["euler"], errors


def test_one_interval_serves_all_rows_or_each_has_its_own(model: JanusFlow) -> None:
    noise, prompts = normal(1, 2, *LATENT), [prompt(1, 5), prompt(2, 5)]

    def latents(interval: Any) -> torch.Tensor:
        z = model.sample_latents(prompts, noise, 4.0, 4, guidance_interval=interval)
        assert isinstance(z, torch.Tensor)
        return z

    assert torch.equal(latents((0.0, 0.5)), latents([(0.0, 0.5), (0.0, 0.5)]))
    assert not torch.equal(latents((0.0, 0.5)), latents([(0.0, 0.5), None]))
    with pytest.raises(InputError, match="guidance_interval: expected one value or 2, one per row, got 3"):
        latents([(0.0, 0.5)] * 3)


class TestGenerateImage:
    def test_a_preset_is_its_options(self, untrained: JanusFlow) -> None:
        def latents(**options: Any) -> torch.Tensor:
            z = untrained.generate_image(PROMPT, seed=5, output_type="latent", **options).images
            assert isinstance(z, torch.Tensor)
            return z

        for name, options in presets.PRESETS.items():
            assert torch.equal(latents(preset=name), latents(**options))
        assert torch.equal(
            latents(preset="fast", num_inference_steps=3),
            latents(**{**presets.PRESETS["fast"], **dict(num_inference_steps=3)}),
        )

    def test_a_callback_sees_every_evaluation_at_its_time(self, untrained: JanusFlow) -> None:
        seen = []

        def watch(model: JanusFlow, step: int, t: float, state: dict[str, Any]) -> dict[str, Any]:
            seen.append((step, t))
            return state

        untrained.generate_image(
            PROMPT, num_inference_steps=3, solver="heun", output_type="latent", callback_on_step_end=watch
        )
        assert seen == [(k, pytest.approx(1000 * t)) for k, t in enumerate((0, 1 / 3, 1 / 3, 2 / 3, 2 / 3))]
