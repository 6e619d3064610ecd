"""Every stage and every op of a small model, end to end, on a clock that only counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.engine.ops import get_op
from flashjanus.errors import InputError, PeerError
from flashjanus.measure.bench import stages as timed
from flashjanus.measure.bench.ops import executors, forms, measure_ops, time_form
from flashjanus.measure.bench.stages import STAGES, Stages, cases, check, rates
from flashjanus.measure.ceilings import Ceilings
from flashjanus.measure.timing import Case, measure

SIZES = {"rows": [1, 2], "prompt_tokens": [6], "chat_tokens": [20, 30], "steps": [3]}
CEILINGS = Ceilings(1e9, {torch.float32: 1e9, torch.bfloat16: 1e9, torch.int8: 1e9})


def test_one_size_is_varied_at_a_time() -> None:
    found = [dict(case.sizes) for case in cases(["token", "VAE"], SIZES)]
    assert found == [
        {"rows": 1, "chat_tokens": 20},
        {"rows": 2, "chat_tokens": 20},
        {"rows": 1, "chat_tokens": 30},
        {},
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs(
    small: JanusFlow, clock: Callable[[], float], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(timed.process, "answer", lambda *command: asked.append(command))
    monkeypatch.setattr(timed.JanusFlow, "from_pretrained", lambda **source: asked.append(source))
    engine = Stages(small, source={"source": "shapes"}, clock=clock)
    found = cases([stage], SIZES)
    check(found, small, repeats=2)
    records = measure([engine], found, rounds=2, repeats=2, minutes=1)
    assert [r.case for r in records] == found
    samples = 1 if stage in timed.COLD else 2 * timed.TOKENS if stage == "token" else 2
    assert all(r.rounds == [[1.0] * samples] * 2 for r in records)
    assert len(asked) == (2 if stage in ("import", "start", "load") else 0)


def test_a_fresh_process_imports_and_draws(small: JanusFlow) -> None:
    engine = Stages(small, source={"source": "shapes", "vae": None, "dtype": "float32"})
    ((_, [imported]), (_, [started])) = engine.round(cases(["import", "start"], SIZES), 3)
    assert min(imported, started) > 0
    with pytest.raises(PeerError, match=r"(?s)start: exit code 1 .*/no/model: no such folder"):
        Stages(small, source={"source": "/no/model"}).time(Case("start", (("steps", 1),)), 1)


def test_nothing_is_loaded_where_there_is_no_checkpoint(small: JanusFlow) -> None:
    assert list(Stages(small).round(cases(["import", "start", "load"], SIZES), 1)) == []


def test_cold_stages_make_their_plans_anew(small: JanusFlow, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(timed, "sibling", lambda model: made.append(model) or model)
    engine = Stages(small)
    for case in cases(["first image", "first token", "image"], {**SIZES, "rows": [1], "chat_tokens": [20]}):
        engine.time(case, 2)
    assert made == [small, small]


def test_the_first_token_is_of_a_question_about_a_picture(small: JanusFlow) -> None:
    (request,), tokens = Stages(small)._questions(Case("first token", (("rows", 1), ("chat_tokens", 30))))
    assert tokens is not None
    assert len(request.ids) == 30
    assert (request.ids.count(tokens.start), request.ids.count(tokens.image)) == (1, 16)
    (request,), tokens = Stages(small)._questions(Case("first token", (("rows", 1), ("chat_tokens", 17))))
    assert tokens is None
    assert request.pixels is None


def test_rates() -> None:
    sizes = (("rows", 4), ("steps", 10))
    assert rates(Case("image", sizes), 2.0) == {"images/s": 2.0}
    assert rates(Case("token", sizes), 2.0) == {"tokens/s": 2.0}
    assert rates(Case("mix", sizes), 2.0) == {"images/s": 0.2, "tokens/s": 2.0 * timed.MIXED}
    assert rates(Case("step", sizes), 2.0) == {}


@pytest.mark.parametrize(
    ("stage", "sizes", "words"),
    [
        ("step", {"prompt_tokens": [200]}, "prompt_tokens of at most 111 on state_dict, got 200"),
        ("token", {"chat_tokens": [112]}, "chat_tokens of at most 111 on state_dict, got 112"),
    ],
)
def test_what_does_not_fit(small: JanusFlow, stage: str, sizes: dict[str, list[int]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check(cases([stage], {**SIZES, **sizes}), small, repeats=1)


def test_every_implementation_of_every_op(small: JanusFlow, clock: Callable[[], float]) -> None:
    (case,) = cases(["mix"], {name: values[:1] for name, values in SIZES.items()})
    engine = Stages(small)
    planned = {
        node.op
        for program in ("encode_images", "prefill", "decode_step", "flow_prepare", "flow_step", "decode_latents")
        for node in small.plan(program).nodes
    }
    assert len({it.plan.name for it in executors(engine, case, 2)}) == 6
    records = measure_ops(engine, case, repeats=3, ceilings=CEILINGS, clock=clock)
    assert {r.case.stage for r in records} == planned
    assert all(len(r.rounds) == 3 for r in records)
    for chosen in (r for r in records if r.facts["chosen"]):
        assert chosen.facts["bytes_per_s"] > 0
        assert chosen.facts["bound"] in ("memory", "compute")
    by_case = {r.case: [x.engine for x in records if x.case == r.case] for r in records}
    for made, names in by_case.items():
        assert len(names) == len(set(names)) <= len(get_op(made.stage).implementations)
        assert "torch" in names


def test_timing_leaves_small_states_as_they_were(small: JanusFlow, clock: Callable[[], float]) -> None:
    (case,) = cases(["mix"], {name: values[:1] for name, values in SIZES.items()})
    engine = Stages(small)
    with engine.drawing(case) as drawing:
        before = drawing.z.clone(), drawing.flow.states["step"].clone()
        (form,) = [form for form in forms(drawing.flow) if form.op == "flow_update"]
        assert {"torch"} <= set(form.serving())
        assert len(form.moving()) == 4
        time_form(form, 2, clock, CEILINGS, engine.synchronize)
        assert torch.equal(drawing.z, before[0])
        assert torch.equal(drawing.flow.states["step"], before[1])


def test_only_the_ops_asked_for(small: JanusFlow, clock: Callable[[], float]) -> None:
    (case,) = cases(["mix"], {name: values[:1] for name, values in SIZES.items()})
    found = measure_ops(Stages(small), case, repeats=1, ceilings=CEILINGS, wanted=["silu_mul"], clock=clock)
    assert {r.case.stage for r in found} == {"silu_mul"}
