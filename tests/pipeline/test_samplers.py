"""Solvers and cheaper guidance on a whole model: what a row computes, what it saves, and that it sees no other row."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.engine.runtime.executor import Executor
from flashjanus.errors import InputError
from flashjanus.execution.flow import FlowRequest, FlowSession, Prepared
from flashjanus.sampling import presets
from flashjanus.sampling.schedule import Sampler
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
def runs(monkeypatch: pytest.MonkeyPatch, model: JanusFlow) -> Counter[str]:
    """Counts the runs of each program."""
    model.prefixes.clear()
    counts: Counter[str] = Counter()
    run = Executor.run

    def counted(self: Executor) -> None:
        counts[self.plan.name] += 1
        run(self)

    monkeypatch.setattr(Executor, "run", counted)
    return counts


SAMPLERS = {
    "euler": Sampler(4, 3.0),
    "ab2": Sampler(5, 3.0, "ab2", timestep_shift=2.0),
    "interval": Sampler(6, 4.0, "ab2", guidance_interval=(0.2, 0.6)),
    "rescale": Sampler(4, 6.0, guidance_rescale=0.7),
    "reuse": Sampler(7, 3.0, "ab2", uncond_every=3),
    "all": Sampler(5, 5.0, "ab2", 1.5, (0.0, 0.8), 0.4, 2),
    "unguided": Sampler(4, 1.0, "ab2"),
    "cached": Sampler(7, 3.0, "ab2", step_cache=2),
    "all cached": Sampler(9, 4.0, "ab2", 0.7, (0.0, 0.7), 0.3, 2, (0.0, 0.1, 0.3, 0.6)),
}


def draw(model: JanusFlow, samplers: list[Sampler], first: int = 0, **more: Any) -> Any:
    """One row for each sampler, from prompts and noise of its own."""
    rows = range(first, first + len(samplers))
    options = {name: [getattr(s, name) for s in samplers] for name in Sampler.__dataclass_fields__}
    noise = torch.cat([normal(row, 1, *LATENT) for row in rows])
    return model.sample_latents([prompt(row, 4 + 3 * row) for row in rows], noise, **options, **more)


def guided(cond: torch.Tensor, uncond: torch.Tensor, scale: float, rescale: float) -> torch.Tensor:
    """As diffusers has it: rescale_noise_cfg after classifier-free guidance."""
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
        due = z + dt * w
        if sampler.solver == "ab2" and k:
            due = z + dt * (w + dt / (t - times[k - 1]) * (w - before[-1]) / 2)
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
    due = {"flow_prepare": 3, "flow_step": 3, "flow_step_conditional": 2}
    assert runs == due, "at 0 the first row's alone; at 1 and 2 both; at 3 none; the last is of a row without guidance"


def test_rows_whose_guidance_has_ended_do_not_pay_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever order they are asked for in; each has the bits that it has alone."""
    made = build(dtype="bfloat16")
    samplers = [Sampler(8, 3.0, guidance_interval=(0.0, end)) for end in (0.25, 1.0, 0.5, 0.75)]
    samplers += [Sampler(8, 1.0), Sampler(8, 2.0, guidance_interval=(0.6, 0.8))]
    ran, run = [], Executor.run

    def noted(self: Executor) -> None:
        sizes = self.plan.sizes
        if self.plan.program == "flow_step":
            ran.append((sizes["R"], sizes.get("V", sizes["U"])))
        run(self)

    alone = [draw(made, [sampler], row)[0] for row, sampler in enumerate(samplers)]
    monkeypatch.setattr(Executor, "run", noted)
    together = draw(made, samplers)
    # up to t = 0.25 all; the number of five is rounded up to an even one; the last interval is (0.6, 0.8)
    needed = [5, 5, 5, 4, 4, 3, 3, 1]
    assert ran == [(6, min(5, n + n % 2)) for n in needed]
    for got, due in zip(together, alone, strict=True):
        assert torch.equal(got, due)


def test_numbers_of_branches_are_few(model: JanusFlow) -> None:
    session = FlowSession(model.runner, 9, 9, 16, 4, skips=True)
    row = FlowRequest(tuple(prompt(0, 4)[:-1]), Sampler(4, 3.0), normal(0, *LATENT))
    prepared = Prepared(model.runner, 1, 1, 16, 4)
    prepared.run([row.timed_prompt])
    for place in range(9):
        session.join(prepared.prefix(0), place, row)
        session.step()
        session.leave(place)
    assert sorted(session.forms) == [(True, n) for n in (0, 3, 6, 9)]
    assert session.nbytes == session.flow.nbytes, "they work in the memory of the largest"


@pytest.mark.parametrize("sampler", [Sampler(4, 3.0), Sampler(4, 1.0), Sampler(4, 3.0, "ab2")])
def test_without_these_options_there_is_one_plan(model: JanusFlow, runs: Counter[str], sampler: Sampler) -> None:
    made = build(dtype="float32")
    draw(made, [sampler])
    assert runs == {"flow_prepare": 1, "flow_step": 4}
    (session,) = [it for it in made.runner._idle.values() if isinstance(it, FlowSession)]
    assert [form.plan.name for form in session.forms.values()] == ["flow_step"]


def test_the_plan_without_branches_is_that_of_rows_without_guidance(model: JanusFlow) -> None:
    sizes = dict(R=2, P=16, K=4)
    full, none = (model.runner.plan("flow_step", U=u, **sizes).flops for u in (2, 0))
    assert model.runner.plan("flow_step_conditional", U=2, V=0, **sizes).flops == none < full


def test_a_row_joins_while_another_reuses(model: JanusFlow) -> None:
    first, second = Sampler(5, 3.0, "ab2", uncond_every=5), Sampler(3, 2.0, "ab2")
    session = FlowSession(model.runner, 2, 2, 32, 6, skips=True)
    for at, sampler in enumerate((first, second)):
        request = FlowRequest(tuple(prompt(at, 4 + 3 * at)[:-1]), sampler, normal(at, *LATENT))
        prepared = Prepared(model.runner, 1, 1, 32, 6)
        prepared.run([request.timed_prompt])
        session.join(prepared.prefix(0), at, request)
        session.step()
        session.step()
    for _ in range(4):
        session.step()
    for row, sampler in enumerate((first, second)):
        assert relative_error(session.z[row], draw(model, [sampler], row)[0]) <= ALONE


def test_rows_of_a_cache_join_and_leave_alone(model: JanusFlow) -> None:
    """Out of step with each other, over slots that hold anything, and in a row whose last request had a cache."""
    samplers = Sampler(8, 3.0, step_cache=(0,)), Sampler(7, 3.0, step_cache=(0.0, 0.5)), Sampler(4, 2.0)
    session = FlowSession(model.runner, 2, 2, 32, 9, caches=True)
    for name in ("slot_0", "slot_1"):
        session.flow.states[name].fill_(torch.nan)

    def join(row: int, at: int) -> None:
        request = FlowRequest(tuple(prompt(at, 4 + 3 * at)[:-1]), samplers[at], normal(at, *LATENT))
        prepared = Prepared(model.runner, 1, 1, 32, 9)
        prepared.run([request.timed_prompt])
        session.join(prepared.prefix(0), row, request)

    def is_drawn(row: int, at: int) -> bool:
        return relative_error(session.z[row], draw(model, [samplers[at]], at)[0]) <= ALONE

    join(0, 0)
    for _ in range(3):
        session.step()
    join(1, 1)
    for _ in range(5):
        session.step()
    assert is_drawn(0, 0)
    join(0, 2)
    for _ in range(4):
        session.step()
    assert is_drawn(1, 1)
    assert is_drawn(0, 2)


def test_a_row_that_left_runs_nothing(model: JanusFlow, runs: Counter[str]) -> None:
    session = FlowSession(model.runner, 2, 2, 32, 6, skips=True, caches=True)
    prepared = Prepared(model.runner, 1, 1, 32, 6)
    for row, sampler in enumerate((Sampler(6, 3.0, step_cache=(0,)), Sampler(6, 3.0))):
        request = FlowRequest(tuple(prompt(0, 4)[:-1]), sampler, normal(0, *LATENT))
        prepared.run([request.timed_prompt])
        session.join(prepared.prefix(0), row, request)
    runs.clear()
    session.step()
    session.step()
    session.leave(1)
    session.step()
    assert session._ran is session.forms[False, 1], "the first row's branch alone"
    session.leave(0)
    session.step()
    assert session._ran is session.forms[False, 0]
    assert runs == {"flow_step_storing": 2, "flow_step_recalling_conditional": 2}


def test_a_row_does_not_inherit_what_the_last_one_remembered(model: JanusFlow) -> None:
    session = FlowSession(model.runner, 1, 1, 32, 6)
    session.flow.states["history"].fill_(torch.nan)
    session.flow.states["kept"].fill_(torch.nan)
    sampler = Sampler(4, 3.0, "ab2", uncond_every=2)
    request = FlowRequest(tuple(prompt(0, 4)[:-1]), sampler, normal(0, *LATENT))
    prepared = Prepared(model.runner, 1, 1, 32, 6)
    prepared.run([request.timed_prompt])
    session.join(prepared.prefix(0), 0, request)
    for _ in range(4):
        session.step()
    assert relative_error(session.z[0], draw(model, [sampler])[0]) <= ALONE


def recalled(model: JanusFlow, sampler: Sampler) -> list[torch.Tensor]:
    """What the language model added, per evaluation of row 0 alone: run or recalled."""
    schedule = sampler.schedule
    session = FlowSession(model.runner, 1, 1, 32, len(schedule), caches=True)
    request = FlowRequest(tuple(prompt(0, 4)[:-1]), sampler, normal(0, *LATENT))
    prepared = Prepared(model.runner, 1, 1, 32, len(schedule))
    prepared.run([request.timed_prompt])
    session.join(prepared.prefix(0), 0, request)
    added = []
    for line in schedule.cache:
        slots = [session.flow.states[name].clone() for name in ("slot_0", "slot_1")]
        session.step()
        if line.recall:
            added.append(line.w_0 * slots[0] + line.w_1 * slots[1])
        else:
            added.append(session.flow.states[f"slot_{int(line.slot)}"].clone())
    return added


def test_a_cache_extrapolates_what_the_language_model_added(model: JanusFlow) -> None:
    """A line through its last two runs, in time, for both branches."""
    sampler = Sampler(9, 3.0, timestep_shift=1.8, step_cache=(0.0, 0.1, 0.5))
    times, added = sampler.schedule.times, recalled(model, sampler)
    ran = [k for k in range(9) if sampler.schedule.needs_model(k)]
    assert ran == [k for k, t in enumerate(times) if k == 0 or any(times[k - 1] < at <= t for at in (0.1, 0.5))]
    assert len(ran) == 3
    assert added[0].shape[0] == 2
    for k in range(9):
        i, j = ([r for r in ran if r <= k] * 2)[-2:] if k < ran[1] else [r for r in ran if r <= k][-2:]
        slope = (added[j] - added[i]) / (times[j] - times[i]) if i != j else 0 * added[j]
        torch.testing.assert_close(added[k], added[j] + (times[k] - times[j]) * slope)
    assert relative_error(added[ran[1]], added[0]) > 1e-3, "there is something to extrapolate"


def test_a_cache_that_always_runs_changes_nothing(model: JanusFlow) -> None:
    plain = Sampler(5, 3.0)
    always = replace(plain, step_cache=plain.schedule.times)
    assert len(always.schedule.cache) == 5
    assert torch.equal(draw(model, [always, plain, Sampler(5, 3.0, step_cache=3)])[:2], draw(model, [plain] * 3)[:2])


def test_evaluations_that_recall_leave_the_language_model_out(model: JanusFlow, runs: Counter[str]) -> None:
    draw(model, [Sampler(8, 3.0, step_cache=3)])
    assert runs == {"flow_prepare": 1, "flow_step_storing": 4, "flow_step_recalling": 4}, "0, 1, 3 and 6 run"
    runs.clear()
    draw(model, [Sampler(8, 3.0, guidance_interval=(0.0, 0.5), step_cache=4)])
    forms = {"storing": 3, "recalling": 2, "recalling_conditional": 3}  # it runs at 0, 1 and 4; guidance ends after 4
    assert runs == {f"flow_step_{name}": count for name, count in forms.items()}, "the prompt is prepared already"
    runs.clear()
    draw(model, [Sampler(4, 3.0, step_cache=4), Sampler(4, 3.0)])
    assert runs == {"flow_prepare": 2, "flow_step_storing": 4}, "one row that runs is enough"
    full, less = (
        model.runner.plan(f"flow_step_{form}", R=1, U=1, P=16, K=4).flops for form in ("storing", "recalling")
    )
    assert less < full / 2


def test_a_branch_is_recalled_only_from_runs_that_had_it(model: JanusFlow) -> None:
    """Guidance begins in the middle: the runs before knew no unconditional branch."""
    late = Sampler(8, 3.0, guidance_interval=(0.3, 1.0), step_cache=4)
    assert [late.schedule.needs_model(k) for k in range(8)] == [True, True, False, True, True, False, False, False]
    session_wide = draw(model, [late, Sampler(8, 5.0)])[0]  # here its branch ran all along
    assert relative_error(draw(model, [late])[0], session_wide) <= ALONE


def test_one_list_of_times_serves_all_rows_or_each_has_its_own(model: JanusFlow) -> None:
    noise, prompts = normal(1, 2, *LATENT), [prompt(1, 5), prompt(2, 5)]
    both = model.sample_latents(prompts, noise, num_inference_steps=6, step_cache=(0.0, 0.4))
    own = model.sample_latents(prompts, noise, num_inference_steps=6, step_cache=[(0.0, 0.4), 2])
    assert torch.equal(own[0], both[0])
    assert not torch.equal(own[1], both[1])


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

    fine = latents(num_inference_steps=300)
    errors = {s: relative_error(latents(solver=s, num_inference_steps=16), fine) for s in ("euler", "ab2")}
    assert errors["ab2"] < 0.7 * errors["euler"], errors


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
            PROMPT, num_inference_steps=3, step_cache=2, output_type="latent", callback_on_step_end=watch
        )
        assert seen == [(k, pytest.approx(1000 * t)) for k, t in enumerate((0, 1 / 3, 2 / 3))]
