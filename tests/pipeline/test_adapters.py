"""Low-rank adapters: a row with one gives what weights with it merged by hand give, and others keep their bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.checkpoint import JanusFlowConfig
from flashjanus.engine.device import native
from flashjanus.engine.formats.rows import quantized
from flashjanus.engine.ops import all_ops
from flashjanus.errors import CheckpointError, InputError
from flashjanus.execution import runner as running
from flashjanus.execution.text import ImageTokens
from flashjanus.scheduling.requests import ImageJob
from gpu_stand_in import stand_in
from small_adapter import merged, write_adapter
from small_jobs import SAMPLERS, drawn, events_of, finished, image, rows_alone, written
from small_model import (
    FEATURES,
    IMAGE,
    IMAGE_SIZE,
    LATENT,
    START,
    normal,
    prompt,
    relative_error,
    small_config,
    small_state,
)

CONFIG = small_config()
LANGUAGE = JanusFlowConfig.from_dict(CONFIG).language
STATE = small_state(CONFIG)
TOKENS = ImageTokens(START, IMAGE)
PROMPTS, NOISE = [prompt(n, 4 + 5 * n) for n in range(4)], normal(1, 4, *LATENT)
SETTINGS: Mapping[str, dict[str, Any]] = {
    "all": dict(rank=4),
    "some": dict(rank=9, seed=1, targets=("q_proj", "v_proj", "down_proj"), use_rslora=True, lora_alpha=2.0),
    "mixed": dict(rank=2, seed=2, ranks={"k_proj": 5, "gate_proj": 1}, of="model."),
}


def of(state: Mapping[str, torch.Tensor], **options: Any) -> JanusFlow:
    return JanusFlow.from_state_dict(CONFIG, state, **{"device": "cpu", "dtype": "float32"} | options)


@dataclass
class Adapted:
    """A model with all of SETTINGS loaded, the same without room for any, and by name weights merged by hand."""

    model: JanusFlow
    plain: JanusFlow
    folders: dict[str, Path]
    states: dict[str, dict[str, torch.Tensor]]

    def by_hand(self, name: str | None) -> JanusFlow:
        return self.plain if name is None else of(self.states[name])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    folder = tmp_path_factory.mktemp("adapters")
    scales = {"all": 1.0, "some": 2.0 / 3.0, "mixed": 1.0}
    patterns = dict(
        rank_pattern={"k_proj": 5, r"layers\.\d+\.mlp\.gate_proj": 1}, alpha_pattern={"k_proj": 5, "mlp.gate_proj": 1}
    )
    found = Adapted(of(STATE), of(STATE), {}, {})
    found.model.reserve_adapters(4, 16)
    for name, settings in SETTINGS.items():
        more = patterns if name == "mixed" else {}
        tensors = write_adapter(folder / name, LANGUAGE, **settings, **more)
        if name == "mixed":  # of a language model alone
            tensors = {at.replace(".model.model.", ".model.language_model.model."): t for at, t in tensors.items()}
        found.folders[name] = folder / name
        found.states[name] = merged(STATE, tensors, scales[name])
        found.model.load_adapter(folder / name)
    return found


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


def ids(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of rows, the first of which has an image."""
    block = [START, *[IMAGE] * FEATURES]
    rows = [[0, *block, *prompt(9, lengths[0])], *(prompt(n, length) for n, length in enumerate(lengths[1:]))]
    width = max(map(len, rows))
    padded = [[0] * (width - len(row)) + row for row in rows]
    return torch.tensor(padded), torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])


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
