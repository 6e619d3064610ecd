"""Low-rank adapters: a row with one gives what weights with it merged by hand give, and others keep their bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from adapted import NOISE, PROMPTS, STATE, TOKENS, Adapted, adapted, ids, of
from flashjanus.engine.device import native
from flashjanus.engine.formats.rows import quantized
from flashjanus.engine.ops import all_ops
from flashjanus.execution import runner as running
from flashjanus.scheduling.requests import ImageJob
from gpu_stand_in import stand_in
from small_jobs import SAMPLERS, finished, image, rows_alone, written
from small_model import IMAGE_SIZE, normal, prompt, relative_error


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    return adapted(tmp_path_factory.mktemp("adapters"))


@pytest.mark.parametrize(
    "options",
    [
        dict(guidance_scale=3.0),
        dict(guidance_scale=[1.0, 2.0, 3.0, 1.0], solver="ab2"),
        dict(guidance_scale=2.0, uncond_every=2, guidance_interval=(0.2, 0.9)),
        dict(guidance_scale=2.0, step_cache=2, num_inference_steps=5),
    ],
)
def test_images_of_different_adapters_in_one_batch(made: Adapted, options: dict[str, Any]) -> None:
    names = ["all", None, "some", "mixed"]
    options = {"num_inference_steps": 3} | options
    got = made.model.sample_latents(PROMPTS, NOISE, **options, adapter=names)
    plain = made.plain.sample_latents(PROMPTS, NOISE, **options)
    assert torch.equal(got[1], plain[1])
    for row, name in enumerate(names):
        if name is not None:
            expected = made.by_hand(name).sample_latents(PROMPTS, NOISE, **options)
            assert relative_error(got[row], expected[row]) < 1e-4
            assert relative_error(got[row], plain[row]) > 0.05


def test_answers_of_different_adapters_in_one_batch(made: Adapted) -> None:
    names = ["some", None, "all", "mixed", None]
    rows = ids(3, 20, 7, 12, 2)
    given = dict(pixel_values=normal(3, 5, 1, 3, IMAGE_SIZE, IMAGE_SIZE), image_tokens=TOKENS)
    logits = made.model.next_token_logits(*rows, **given, adapter=names)
    answers = made.model.generate_ids(*rows, **given, max_new_tokens=6, adapter=names)
    for row, name in enumerate(names):
        hand = made.by_hand(name)
        expected = hand.next_token_logits(*rows, **given)[row]
        assert torch.equal(answers[row], hand.generate_ids(*rows, **given, max_new_tokens=6)[row])
        if name is None:
            assert torch.equal(logits[row], expected)
        else:
            assert relative_error(logits[row], expected) < 1e-4


def dequantized(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights that an int8 model has, in floats."""
    found = dict(state)
    for name, weight in state.items():
        if name.startswith("language_model.") and weight.dim() == 2 and "embed" not in name:
            q, scale = quantized(weight, torch.int8)
            found[name] = q.float() * scale[:, None]
    return found


def test_on_int8_weights(made: Adapted) -> None:
    """With activations in float32, so that nothing but the weights is rounded."""
    model = of(STATE, quantization="int8", implementations={"linear": "torch"})
    model.load_adapter(made.folders["all"])
    changed = {name: made.states["all"][name] - weight for name, weight in STATE.items()}
    hand = of({name: weight + changed[name] for name, weight in dequantized(STATE).items()})
    got = model.sample_latents(PROMPTS, NOISE, 3.0, 3, adapter=["all", None, "all", None])
    expected = hand.sample_latents(PROMPTS, NOISE, 3.0, 3)
    assert all(relative_error(got[row], expected[row]) < 1e-4 for row in (0, 2))
    assert torch.equal(
        got[1],
        of(STATE, quantization="int8", implementations={"linear": "torch"}).sample_latents(PROMPTS, NOISE, 3.0, 3)[1],
    )
    rows = ids(3, 20)
    given = dict(pixel_values=normal(3, 2, 1, 3, IMAGE_SIZE, IMAGE_SIZE), image_tokens=TOKENS)
    answers = [
        m.generate_ids(*rows, **given, max_new_tokens=6, **a) for m, a in ((model, dict(adapter="all")), (hand, {}))
    ]
    assert torch.equal(*answers)


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_on_weights_in_tiles(made: Adapted, monkeypatch: pytest.MonkeyPatch, quantization: str | None) -> None:
    """As on a CPU with AMX, by torch where there is none: no further from floats than without an adapter."""
    monkeypatch.setattr(native, "refuses_amx", lambda device: None)
    model = of(STATE, dtype="bfloat16", quantization=quantization)
    monkeypatch.undo()
    model.load_adapter(made.folders["all"])
    assert model.runner.policy.tiled
    errors = {}
    for name in (None, "all"):
        hand, rows = made.by_hand(name), ids(3, 5, 9)
        given = dict(pixel_values=normal(3, 3, 1, 3, IMAGE_SIZE, IMAGE_SIZE), image_tokens=TOKENS)
        images = [m.sample_latents(PROMPTS, NOISE, 2.0, 2, adapter=a) for m, a in ((model, name), (hand, None))]
        logits = [m.next_token_logits(*rows, **given, adapter=a) for m, a in ((model, name), (hand, None))]
        errors[name] = relative_error(*images), relative_error(*logits)
    assert all(with_one < 2 * without + 0.01 for without, with_one in zip(errors[None], errors["all"], strict=True))
    if quantization is None:
        before = {name: weight.clone() for name, weight in model.runner.weights.items()}
        model.merge_adapter("all")
        got = model.sample_latents(PROMPTS, NOISE, 2.0, 2)
        hand = made.by_hand("all").sample_latents(PROMPTS, NOISE, 2.0, 2)
        assert relative_error(got, hand) < 2 * errors[None][0] + 0.01
        model.unmerge_adapter()
        assert all(torch.equal(weight, before[name]) for name, weight in model.runner.weights.items())


def test_a_later_adapter_makes_no_plan_and_no_memory(made: Adapted, monkeypatch: pytest.MonkeyPatch) -> None:
    model = of(STATE)
    model.load_adapter(made.folders["all"])
    rows = ids(3)  # of which the plans do not depend on who comes first

    def everything(name: str | None) -> list[torch.Tensor]:
        given = dict(pixel_values=normal(3, 1, 1, 3, IMAGE_SIZE, IMAGE_SIZE), image_tokens=TOKENS, adapter=name)
        model.prefixes.clear()
        return [
            model.sample_latents(PROMPTS, NOISE, 2.0, 3, adapter=name),
            model.generate_ids(*rows, **given, max_new_tokens=4),
        ]

    first = everything("all")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("made anew")

    monkeypatch.setattr(running, "lower", refuse)
    monkeypatch.setattr(running, "Executor", refuse)
    model.load_adapter(made.folders["some"])
    model.load_adapter(made.folders["mixed"])
    others = {name: everything(name) for name in ("some", "mixed", "all", None)}
    assert all(map(torch.equal, others["all"], first))
    assert len({one[0].sum().item() for one in others.values()}) == 4


def test_no_graph_is_captured_again(made: Adapted, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stand-in for a GPU, whose kernels are torch's."""
    driver = stand_in(monkeypatch)
    torch_alone = {name: ["torch"] for name in all_ops()}
    model = of(STATE, device="cuda", implementations=torch_alone)
    captured = []
    for name in ("all", "some", None, "mixed"):
        if name is not None:
            model.load_adapter(made.folders[name])
        model.prefixes.clear()
        got = model.sample_latents(PROMPTS, NOISE, 2.0, 2, adapter=name)
        asked = (*ids(3), normal(3, 1, 1, 3, IMAGE_SIZE, IMAGE_SIZE))
        answer = model.generate_ids(*asked, 4, image_tokens=TOKENS, adapter=name)
        captured.append(len(driver.asked("capture")))
        expected = made.model.sample_latents(PROMPTS, NOISE, 2.0, 2, adapter=name)
        assert relative_error(got, expected) < 1e-4
        assert answer.shape == (1, 4)
    assert captured == [captured[0]] * 4
    assert captured[0] > 0


def test_a_model_without_adapters_has_the_plans_of_before(made: Adapted) -> None:
    ops = {node.op for node in made.plain.plan("flow_step").nodes}
    assert "low_rank" not in ops
    assert "adapter" not in made.plain.plan("decode_step").inputs
    for program in ("flow_step", "flow_step_storing", "flow_prepare"):  # others fuse what an adapter stands between
        nodes = made.model.plan(program).nodes
        assert [n.op for n in nodes if n.op != "low_rank"] == [n.op for n in made.plain.plan(program).nodes]
        assert sum(n.op == "low_rank" for n in nodes) >= 4


def test_prefixes_are_of_an_adapter(made: Adapted) -> None:
    model, z = of(STATE), NOISE[:1]
    model.load_adapter(made.folders["all"])
    model.load_adapter(made.folders["some"])
    found = [model.sample_latents(PROMPTS[:1], z, 2.0, 2, adapter=name) for name in (None, "all", "some") * 2]
    assert (model.prefixes.prompts.hits, model.prefixes.prompts.misses) == (3, 3)
    assert all(map(torch.equal, found[:3], found[3:]))
    read = [
        model.next_token_logits(*ids(3), normal(3, 1, 1, 3, IMAGE_SIZE, IMAGE_SIZE), TOKENS, name)
        for name in (None, "all")
    ]
    assert relative_error(*read) > 0.05
    assert model.prefixes.images.misses == 1  # which no adapter changes
    asked = torch.tensor([[0, *prompt(3, 20)]])
    answer = model.generate_ids(asked, max_new_tokens=9, adapter="all")
    names = model.runner.adapters.named([*asked[0].tolist(), *answer[0].tolist()], model.runner.adapters.loaded["all"])
    assert model.prefixes.longest(names)[1] == len(names) - 1  # the next turn reads the answer's last token alone
    assert model.prefixes.longest(asked[0].tolist())[1] == 1  # what was read without an adapter begins so too
    model.unload_adapter("all")
    model.load_adapter(made.folders["mixed"], "all")
    assert not torch.equal(model.sample_latents(PROMPTS[:1], z, 2.0, 2, adapter="all"), found[1])


def test_rows_of_different_adapters_come_and_go(made: Adapted) -> None:
    """Answers and images that move between buckets keep their adapters."""
    adapters = made.model.runner.adapters.loaded
    by_name = [None, "all", "some", "mixed"]
    jobs = []
    for n, sampler in enumerate(SAMPLERS):
        adapter = adapters.get(by_name[n % 4] or "")
        jobs.append(ImageJob(rows=(replace(image(sampler, n, 3 + 6 * n), adapter=adapter),), decode=False))
        answer = written(n, room=2 + n)
        jobs.append(replace(answer, request=replace(answer.request, adapter=adapter)))
    alone = [rows_alone(made.model, job) for job in jobs]
    scheduler = made.model.scheduler()
    handles = []
    for job in jobs:
        handles.append(scheduler.submit(job))
        scheduler.step()
    found = finished(scheduler)
    for handle, expected in zip(handles, alone, strict=True):
        if handle in found:
            assert torch.equal(torch.as_tensor(found[handle]), torch.as_tensor(expected))
    assert len(found) > len(jobs) // 2
