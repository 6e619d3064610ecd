"""Adapters are merged and unmerged, loaded and unloaded, and added up; what cannot be is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapted import NOISE, PROMPTS, STATE, Adapted, adapted, ids, of
from flashjanus.errors import CheckpointError, InputError
from small_jobs import drawn, events_of, finished
from small_model import relative_error


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    return adapted(tmp_path_factory.mktemp("adapters"))


def test_merging_is_exact_both_ways(made: Adapted) -> None:
    model = of(STATE)
    model.load_adapter(made.folders["all"])
    model.load_adapter(made.folders["some"])
    before = {name: weight.clone() for name, weight in model.runner.weights.items()}
    drawing = dict(guidance_scale=2.0, num_inference_steps=3)
    plain = model.sample_latents(PROMPTS, NOISE, **drawing)
    model.merge_adapter("all")
    assert model.adapters["all"].merged
    hand = made.by_hand("all").sample_latents(PROMPTS, NOISE, **drawing)
    assert relative_error(model.sample_latents(PROMPTS, NOISE, **drawing), hand) < 1e-5
    with pytest.raises(InputError, match=r"^adapter: 'all' is merged into the weights"):
        model.sample_latents(PROMPTS, NOISE, **drawing, adapter="all")
    with pytest.raises(InputError, match=r"got 'all' merged"):
        model.merge_adapter("some")
    with pytest.raises(InputError, match=r"call unmerge_adapter\(\) first"):
        model.unload_adapter("all")
    on_top = model.sample_latents(PROMPTS, NOISE, **drawing, adapter="some")
    assert relative_error(on_top, hand) > 0.05
    model.unmerge_adapter()
    assert all(torch.equal(weight, before[name]) for name, weight in model.runner.weights.items())
    assert torch.equal(model.sample_latents(PROMPTS, NOISE, **drawing), plain)
    with pytest.raises(InputError, match=r"got the weights as they were loaded"):
        model.unmerge_adapter()


def test_weights_do_not_change_under_requests(made: Adapted) -> None:
    model = of(STATE)
    model.load_adapter(made.folders["all"])
    scheduler = model.scheduler()
    scheduler.submit(drawn(1))
    scheduler.step()
    for change in (lambda: model.merge_adapter("all"), lambda: model.reserve_adapters(8, 32)):
        with pytest.raises(InputError, match=r"^expected no request in progress, got 1: "):
            change()
    finished(scheduler)
    model.merge_adapter("all")
    quantized_model = of(STATE, quantization="int8")
    quantized_model.load_adapter(made.folders["all"])
    with pytest.raises(InputError, match=r"expected float weights, got int8.*name it in requests"):
        quantized_model.merge_adapter("all")


def test_room_is_full_and_free_again(made: Adapted, tmp_path: Path) -> None:
    model = of(STATE)
    model.reserve_adapters(slots=1, rank=4)
    model.load_adapter(made.folders["all"], "one")
    with pytest.raises(InputError, match=r"^name: expected one that no loaded adapter has, got 'one'"):
        model.load_adapter(made.folders["some"], "one")
    with pytest.raises(
        InputError, match=r"expected a free one of 1 slots, got none; loaded: one;.*reserve_adapters\(slots=2, rank=4\)"
    ):
        model.load_adapter(made.folders["all"], "two")
    with pytest.raises(InputError, match=r"of rank at most 4.*got rank 9; call reserve_adapters\(slots=1, rank=9\)"):
        model.load_adapter(made.folders["some"], "two")
    scheduler = model.scheduler()
    job = drawn(1)
    adapter = model.runner.adapters.loaded["one"]
    handle = scheduler.submit(replace(job, rows=tuple(replace(row, adapter=adapter) for row in job.rows)))
    scheduler.step()
    model.unload_adapter("one")
    with pytest.raises(InputError, match=r"got none; loaded: none, and 1 unloaded ones that running requests"):
        model.load_adapter(made.folders["all"], "two")
    got = finished(scheduler)[handle]
    hand = made.by_hand("all").scheduler()
    other = hand.submit(job)
    assert relative_error(got, finished(hand)[other]) < 1e-4
    model.load_adapter(made.folders["all"], "two")
    with pytest.raises(InputError, match=r"got 'one', which was unloaded"):
        scheduler.submit(handle.job)
    with pytest.raises(InputError, match=r"expected room for the 1 loaded adapters, which have ranks up to 4"):
        model.reserve_adapters(slots=1, rank=3)
    before = model.sample_latents(PROMPTS, NOISE, 2.0, 2, adapter="two")
    model.reserve_adapters(slots=3, rank=20)
    assert relative_error(model.sample_latents(PROMPTS, NOISE, 2.0, 2, adapter="two"), before) < 1e-6
    model.load_adapter(made.folders["some"])
    assert {name: (one.rank, one.targets) for name, one in model.adapters.items()} == {
        "two": (4, ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")),
        "some": (9, ("down_proj", "q_proj", "v_proj")),
    }


def test_adapters_are_added_up(made: Adapted) -> None:
    model = of(STATE)
    model.reserve_adapters(3, 13)
    model.load_adapter(made.folders["all"])
    model.load_adapter(made.folders["some"])
    model.combine_adapters("both", {"all": 0.5, "some": -1.5})
    assert (model.adapters["both"].rank, model.adapters["both"].source) == (13, "0.5 all + -1.5 some")
    total = {
        name: weight + 0.5 * (made.states["all"][name] - weight) - 1.5 * (made.states["some"][name] - weight)
        for name, weight in STATE.items()
    }
    got = model.sample_latents(PROMPTS, NOISE, 2.0, 3, adapter="both")
    assert relative_error(got, of(total).sample_latents(PROMPTS, NOISE, 2.0, 3)) < 1e-4
    for weights, refusal in (
        ({}, r"^weights: expected numbers by the names of loaded adapters, got {}"),
        ({"other": 1}, r"^weights: expected names of loaded adapters \('all', 'some', 'both'\), got 'other'"),
        ({"all": 200}, r"^weights\['all'\]: expected a finite number from -100 to 100, got 200"),
    ):
        with pytest.raises(InputError, match=refusal):
            model.combine_adapters("wrong", weights)


def test_names_that_are_none(made: Adapted) -> None:
    with pytest.raises(InputError, match=r"^adapter: expected the name of a loaded adapter \('all', 'some', 'mixed'\)"):
        made.model.sample_latents(PROMPTS, NOISE, adapter="other")
    with pytest.raises(InputError, match=r"^adapter: expected one name, or one for each row \(4\), got 2"):
        made.model.sample_latents(PROMPTS, NOISE, adapter=["all", None])
    with pytest.raises(InputError, match=r"^adapter: expected the name of a loaded adapter \(none\), got 'all'"):
        made.plain.next_token_logits(*ids(3), adapter="all")
    with pytest.raises(InputError, match=r"^name: expected the name of a loaded adapter"):
        made.model.unload_adapter("other")
    with pytest.raises(InputError, match=r"^name: expected 1 to 200 printable characters"):
        made.model.load_adapter(made.folders["all"], "")
    job = drawn(1)
    strange = replace(job, rows=tuple(replace(row, adapter="all") for row in job.rows))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^job.rows\[0\].adapter: expected an Adapter that the model has loaded"):
        made.model.scheduler().submit(strange)
    with pytest.raises(CheckpointError, match=r"expected a folder with adapter_config.json"):
        made.model.load_adapter(made.folders["all"] / "adapter_config.json", "file")
    assert events_of(made.model.scheduler()) == []
