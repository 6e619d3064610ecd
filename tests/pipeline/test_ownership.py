"""Who keeps what: a model goes with its last reference, and what it keeps of sessions is bounded."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.engine.ops import all_ops
from flashjanus.errors import InputError, OutOfMemoryError
from flashjanus.execution import runner as runner_module
from flashjanus.execution.runner import Runner
from flashjanus.execution.text import ImageTokens, TextRequest, TextSession
from gpu_stand_in import stand_in
from PIL import Image
from small_model import IMAGE, IMAGE_SIZE, LATENT, START, normal, prompt, small_config, small_state
from untrained_model import write_untrained_model

PROMPT = "a red circle"
TORCH = {name: ["torch"] for name in all_ops()}
"""What runs on the stand-in's tensors."""
PICTURE = {"type": "image", "image": Image.new("RGB", (40, 30), "red")}
ASK = [{"role": "user", "content": [PICTURE, {"type": "text", "text": "What is it?"}]}]


def fails(*given: Any) -> Any:
    raise KeyError("a mistake of the caller's")


def closed_early(model: JanusFlow) -> None:
    stream = model.chat(ASK, max_new_tokens=9, stream=True, do_sample=True, seed=1)
    next(stream)
    stream.close()


def dropped_early(model: JanusFlow) -> None:
    next(model.chat(ASK, max_new_tokens=9, stream=True, do_sample=True, seed=1))


def after_errors(model: JanusFlow) -> None:
    with suppress(InputError):
        model.generate_image(PROMPT, num_inference_steps=0)
    with suppress(KeyError):
        model.generate_image(PROMPT, num_inference_steps=1, callback_on_step_end=fails)


USES: dict[str, Callable[[JanusFlow], Any]] = {
    "loaded": lambda model: None,
    "an image": lambda model: model.generate_image(PROMPT, num_inference_steps=1),
    "a chat": lambda model: model.chat([ASK, ASK], max_new_tokens=2),
    "a stream": lambda model: list(model.chat(ASK, max_new_tokens=2, stream=True)),
    "a stream closed early": closed_early,
    "a stream dropped early": dropped_early,
    "the best of two": lambda model: model.generate_image(PROMPT, num_inference_steps=1, best_of=2, judge="{prompt}?"),
    "a callback": lambda model: model.generate_image(
        PROMPT, num_inference_steps=1, callback_on_step_end=lambda *step: {"model": step[0]}
    ),
    "a trace": lambda model: model.sample_latents([prompt(1, 5)], normal(1, 1, *LATENT), 2.0, 1, trace=True),
    "warmed up": lambda model: model.warm_up(prompt_tokens=[16], steps=1, new_tokens=2),
    "errors": after_errors,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    write_untrained_model(folder, layers=1)
    return folder


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only references count."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def kept(model: JanusFlow) -> list[weakref.ref]:
    sessions = list(model.runner._idle.values())
    return [weakref.ref(it) for it in (model, model.runner, model.runner.weights["llm.0.qkv"], *sessions)]


@pytest.mark.parametrize("use", USES)
def test_a_model_goes_with_its_last_reference(no_collector: None, folder: Path, use: str) -> None:
    model = JanusFlow.from_pretrained(folder, device="cpu", dtype="float32")
    USES[use](model)
    references = kept(model)
    del model
    assert [reference() for reference in references] == [None] * len(references)


def test_so_does_one_on_a_gpu(no_collector: None, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    for _ in range(2):  # what the stand-in's first capture imports of torch keeps the frames that asked for it
        model = small(device="cuda", implementations=TORCH)
        model.sample_latents([prompt(1, 5)], normal(1, 1, *LATENT), num_inference_steps=1)
        model.generate_ids(torch.tensor([prompt(1, 5)]), max_new_tokens=2)
        model_itself, runner, _, *sessions = kept(model)  # the stand-in's graphs hold weights, as CUDA's do not
        references = [model_itself, runner, *sessions]
        assert len(references) > 3
        del model
    assert [reference() for reference in references] == [None] * len(references)


def small(**options: Any) -> JanusFlow:
    config = small_config()
    return JanusFlow.from_state_dict(config, small_state(config), **{"device": "cpu", "dtype": "float32", **options})


def test_a_stream_keeps_the_model_that_it_needs(folder: Path) -> None:
    model = JanusFlow.from_pretrained(folder, device="cpu", dtype="float32")
    options = dict(max_new_tokens=9, do_sample=True, seed=1)
    whole, stream = model.chat(ASK, **options), model.chat(ASK, **options, stream=True)
    del model
    assert "".join(stream) == whole


def test_a_session_outlives_its_model_but_for_images() -> None:
    model = small()
    session = TextSession(model.runner, rows=1, prompt=32, slots=64, features=17, new=32)
    expected = model.next_token_logits(torch.tensor([prompt(1, 5)]))
    features = model.config.num_understanding_tokens
    del model
    assert torch.equal(session.start([TextRequest(tuple(prompt(1, 5)))], None), expected)
    pixels = normal(1, 1, 3, IMAGE_SIZE, IMAGE_SIZE)
    with pytest.raises(InputError, match="expected a session whose model still exists"):
        session.start([TextRequest((0, START, *[IMAGE] * features), pixels)], ImageTokens(START, IMAGE))


class Memory:
    """A session that counts how often its size is asked for."""

    asked = 0

    def __init__(self, runner: Runner, number: int) -> None:
        self.size = 10 + number

    @property
    def nbytes(self) -> int:
        Memory.asked += 1
        return self.size


def sizes(runner: Runner) -> list[int]:
    return [session.size for session in runner._idle.values()]


def test_releasing_a_session_asks_no_other_for_its_size() -> None:
    runner, asked = small().runner, []
    for number in range(100):
        Memory.asked = 0
        with runner.lease(Memory, number):
            pass
        asked.append(Memory.asked)
    assert max(asked) == asked[1] <= 3


def test_what_is_kept_is_bounded_by_bytes_and_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = small().runner
    monkeypatch.setattr(runner_module, "IDLE_SESSIONS", 4)
    for number in range(9):
        with runner.lease(Memory, number):
            pass
    assert sizes(runner) == [15, 16, 17, 18]
    with runner.lease(Memory, 5):
        pass
    assert sizes(runner) == [16, 17, 18, 15], "the last used is the last"
    monkeypatch.setattr(runner_module, "IDLE_BYTES", 18 + 15)
    with runner.lease(Memory, 8) as one, runner.lease(Memory, 8) as another:
        assert one is not another
    assert sizes(runner) == [15, 18]
    runner.reserve({(Memory, 25): 500})
    runner.reserve({(Memory, number): 100 for number in (26, 27, 28, 29)})
    for number in range(20, 30):
        with runner.lease(Memory, number):
            pass
    assert sizes(runner) == [35, 36, 37, 38, 39]
    with ExitStack() as leases:
        for number in (25, 26, 27, 28, 29):
            leases.enter_context(runner.lease(Memory, number))
        assert (sizes(runner), runner._idle_sum) == ([], 0)
    assert runner._idle_sum == sum(sizes(runner))


def test_what_several_calls_have_warmed_up_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "IDLE_SESSIONS", 1)
    monkeypatch.setattr(runner_module, "IDLE_BYTES", 1)
    model, sizes = small(), dict(prompt_tokens=[16], steps=1, new_tokens=2)
    model.warm_up(images=[1], conversations=[], **sizes)
    drawing = set(map(id, model.runner._idle.values()))
    model.warm_up(images=[], conversations=[1], **sizes)
    assert drawing < set(map(id, model.runner._idle.values()))


def test_sessions_beyond_the_bound_are_gone_at_once(no_collector: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "IDLE_SESSIONS", 2)
    model, seen = small(), set()
    for steps in range(1, 4):
        model.sample_latents([prompt(1, 5)], normal(1, 1, *LATENT), num_inference_steps=steps)
        model.generate_ids(torch.tensor([prompt(1, 5)]), max_new_tokens=steps + 1)
        seen |= {weakref.ref(session) for session in model.runner._idle.values()}
    alive = [reference() for reference in seen if reference() is not None]
    assert {id(session) for session in alive} == {id(session) for session in model.runner._idle.values()}
    assert len(alive) == 2 < len(seen)


def test_memory_that_runs_out_takes_the_idle_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    runner, tried = small(device="cuda", implementations=TORCH).runner, []

    def scarce(runner: Runner, number: int) -> Memory:
        tried.append(number)
        if len(tried) == 1:
            raise OutOfMemoryError("no room")
        return Memory(runner, number)

    with runner.lease(Memory, 1):
        pass
    with runner.lease(scarce, 2):
        assert (sizes(runner), runner._idle_sum) == ([], 0)
    assert runner._idle_sum == sum(sizes(runner)) == 12
