"""Every public entry gives the same bits whatever state the caller has torch, its threads and the process in."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.checkpoint import JanusFlowConfig
from flashjanus.errors import InputError
from flashjanus.execution.flow import FlowRequest, FlowSession, Prepared
from flashjanus.execution.latent_map import LatentMap, Previews
from flashjanus.execution.text import TextRequest, TextSession
from flashjanus.execution.text_rows import DecodeSession
from flashjanus.inputs.images import ImageProcessor
from flashjanus.sampling.presets import sampler
from flashjanus.scheduling.requests import Finished, ImageJob, Progress, TextJob
from flashjanus.scheduling.scheduler import Scheduler
from foreign_states import MANY, STATES, THREADS, smaller_teams, switched, threads
from PIL import Image
from small_adapter import write_adapter
from small_model import normal, prompt, small_config, small_state
from untrained_model import write_untrained_model

PROMPT, STEPS = "a red circle", 2
NOISE, LATENTS, PIXELS = normal(1, 2, 4, 8, 8), normal(2, 1, 4, 8, 8), normal(3, 2, 3, 64, 64)
PROMPTS, IDS = [prompt(1, 5), prompt(2, 9)], torch.tensor([[0, 11, 12, 13, 14], [0, 21, 22, 23, 24]])
DRAWING = FlowRequest(tuple(PROMPTS[0]), sampler("exact", num_inference_steps=STEPS), NOISE[0])
CACHING = replace(DRAWING, sampler=replace(DRAWING.sampler, step_cache=2))
MAP = LatentMap(normal(4, 3, 4), normal(5, 3))
PICTURE = Image.new("RGB", (40, 30), "red")
ASK = [{"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What is it?"}]}]
CONFIG = small_config()
STATE = small_state(CONFIG)
SAMPLED = dict(max_new_tokens=4, do_sample=True, seed=1)


class Entries:
    """What the public methods of JanusFlow give, under their names, on a model of its own; and the sessions'."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = JanusFlow.from_pretrained(folder, device="cpu", dtype="bfloat16", vae_dtype="float32")

    def from_pretrained(self) -> Any:
        return [*self.model.runner.weights.values(), *self.model.runner.vae_weights.values()]

    def from_state_dict(self) -> Any:
        model = JanusFlow.from_state_dict(CONFIG, STATE, device="cpu", dtype="bfloat16", quantization="int8")
        return list(model.runner.weights.values())

    def generate_image(self) -> Any:
        options = dict(num_inference_steps=STEPS, seed=5)
        seen = []
        plain = self.model.generate_image(
            [PROMPT], **options, output_type="pt", callback_on_step_end=lambda *step: seen.extend(step[2:]) or step[3]
        )
        seen = [value for one in seen for value in (one.values() if isinstance(one, dict) else [one])]
        best = self.model.generate_image(
            PROMPT, **options, preset="fast", best_of=2, judge="Is it {prompt}?", output_type="np"
        )
        return [plain.images, seen, best.images, best.scores]

    def stream_images(self) -> Any:
        seen = []
        outputs = self.model.stream_images(
            [PROMPT], num_images_per_prompt=9, num_inference_steps=1, seed=5, output_type="pt",
            callback_on_step_end=lambda *step: seen.append(step[2]) or step[3],
        )  # fmt: skip
        return [[output.images for output in outputs], seen]

    def chat(self) -> Any:
        return [self.model.chat([ASK, ASK], **SAMPLED), list(self.model.chat(ASK, **SAMPLED, stream=True))]

    def sample_latents(self) -> Any:
        latents, steps = self.model.sample_latents(PROMPTS, NOISE, 2.0, STEPS, trace=True)
        return [latents, [list(step.values()) for step in steps]]

    def decode_latents(self) -> Any:
        return self.model.decode_latents(LATENTS)

    def preview(self) -> Any:
        self.model.runner.previews = Previews(MAP, 4)
        return [self.model.preview(LATENTS), self.model.preview(LATENTS, full=True)]

    def encode_images(self) -> Any:
        return self.model.encode_images(PIXELS)

    def next_token_logits(self) -> Any:
        return self.model.next_token_logits(IDS)

    def generate_ids(self) -> Any:
        return self.model.generate_ids(IDS, **SAMPLED)

    def reserve_adapters(self) -> Any:
        self.model.reserve_adapters(2, 8)
        return [self.model.runner.weights["llm.0.qkv.lora.a"], self.model.runner.weights["llm.1.down.lora.ranks"]]

    def load_adapter(self) -> Any:
        self.model.reserve_adapters(1, 3)
        self.model.load_adapter(self.folder.parent / "adapter", "one")
        names = [name for name in self.model.runner.weights if ".lora." in name]
        found = self.model.sample_latents(PROMPTS, NOISE, 2.0, STEPS, adapter=["one", None])
        self.model.unload_adapter("one")
        return [*(self.model.runner.weights[name] for name in names), found]

    def load_adapters(self) -> Any:
        self.model.reserve_adapters(2, 3)
        self.model.load_adapters(dict.fromkeys(("four", "five"), self.folder.parent / "adapter"))
        found = self.model.sample_latents(PROMPTS, NOISE, 2.0, STEPS, adapter=["four", "five"])
        self.model.unload_adapter("four")
        self.model.unload_adapter("five")
        return found

    def combine_adapters(self) -> Any:
        self.model.reserve_adapters(2, 6)
        self.model.load_adapter(self.folder.parent / "adapter", "six")
        self.model.combine_adapters("seven", {"six": 0.5})
        found = self.model.sample_latents(PROMPTS, NOISE, 2.0, STEPS, adapter=["six", "seven"])
        self.model.unload_adapter("six")
        self.model.unload_adapter("seven")
        return found

    def unload_adapter(self) -> Any:
        self.model.load_adapter(self.folder.parent / "adapter", "two")
        self.model.unload_adapter("two")
        return list(self.model.adapters)

    def merge_adapter(self) -> Any:
        self.model.load_adapter(self.folder.parent / "adapter", "three")
        self.model.merge_adapter("three")
        found = self.model.sample_latents(PROMPTS, NOISE, 2.0, STEPS)
        self.model.unmerge_adapter()
        self.model.unload_adapter("three")
        return found

    def unmerge_adapter(self) -> Any:
        self.merge_adapter()
        return self.model.sample_latents(PROMPTS, NOISE, 2.0, STEPS)

    def warm_up(self) -> Any:
        return self.model.warm_up(prompt_tokens=(16,), steps=STEPS, new_tokens=8)

    def plan(self) -> Any:
        return str(self.model.plan("flow_step", rows=2))

    def scheduler(self) -> Any:
        made = self.model.scheduler()
        image = made.submit(ImageJob(rows=(CACHING,), decode=False, pauses=True))
        answer = made.submit(TextJob(request=TextRequest(tuple(PROMPTS[0])), room=2))
        gone = made.submit(TextJob(request=TextRequest(tuple(PROMPTS[0])), room=2))
        cancelled, found = made.cancel(gone), []
        while made.busy:
            for event in made.step():
                found.append(type(event).__name__)
                if isinstance(event, Progress):
                    found += [made.latents(image), *made.velocities(image), *made.added(image)]
                    made.resume(image)
                if isinstance(event, Finished):
                    found.append(event.result)
        return [cancelled, image.ended, answer.ended, *found]

    def image_job(self) -> Any:
        job = self.model.image_job("a red circle", num_images_per_prompt=2, seed=3, num_inference_steps=STEPS)
        return [row.noise for row in job.rows]

    def text_job(self) -> Any:
        job = self.model.text_job(ASK, **SAMPLED)
        return [job.request.pixels, list(job.request.ids), job.room]

    def decode_session(self) -> Any:
        read = TextSession(self.model.runner, 1, 8, 9, 1, 1, False)
        request = TextRequest(tuple(PROMPTS[0]))
        length = len(request.ids)
        read.read(request, [-1] * length, [*range(1, length + 1)], (0, length), None, None)
        one, two = (DecodeSession(self.model.runner, rows, 16, 8) for rows in (1, 2))
        one.join(0, request, read.prefix(request.ids), 1, None)
        two.take_over(1, request, None, one, 0, length)
        found, likelihoods = two.step()(), two.likelihoods([(1, 3)])()
        two.leave(0)
        return [found[1], likelihoods, two.states["live"]]

    def flow_session(self) -> Any:
        runner = self.model.runner
        prepared, session = Prepared(runner, 1, 1, 16, STEPS), FlowSession(runner, 1, 1, 16, STEPS)
        prepared.write([DRAWING.timed_prompt])
        prepared.run([DRAWING.timed_prompt])
        session.join(prepared.prefix(0), 0, DRAWING)
        session.step()
        found = [session.needs_branch(0), session.z, *session.velocities()]
        other = FlowSession(runner, 2, 2, 16, STEPS)
        other.take_over(prepared.prefix(0), 1, DRAWING, session, 0)
        session.leave(0)
        return [other.z, *prepared.executor.host.values(), *found, session.needs_branch(0)]

    def text_session(self) -> Any:
        session = TextSession(self.model.runner, 1, 8, 16, 1, 8)
        session.write([TextRequest(tuple(PROMPTS[0]))], None, None)
        logits = session.start([TextRequest(tuple(PROMPTS[0]))], None)
        likelihood = session.likelihood(3)
        session.step()
        return [*session.prefill.host.values(), logits, likelihood, session.tokens()()]

    def image_processor(self) -> Any:
        processor = ImageProcessor.from_file(None, 64)
        return [processor.preprocess(PICTURE), np.asarray(processor.resize(PICTURE))]


SESSIONS = {
    DecodeSession: ["join", "leave", "likelihoods", "step", "take_over"],
    FlowSession: ["added", "join", "leave", "needs_branch", "step", "take_over", "velocities"],
    Prepared: ["prefix", "run", "write"],
    Scheduler: ["added", "cancel", "latents", "resume", "step", "submit", "velocities"],
    TextSession: ["likelihood", "prefix", "read", "start", "step", "tokens", "write"],
    ImageProcessor: ["from_file", "preprocess", "resize"],
}


def public(kind: type) -> list[str]:
    return sorted(name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name)))


def test_every_public_method_is_an_entry_of_the_sweep() -> None:
    """A new method has to be listed, in Entries or in SESSIONS, by what it gives in every state."""
    assert sorted({*public(Entries)} - {"decode_session", "flow_session", "text_session", "image_processor"}) == public(
        JanusFlow
    )
    assert {kind: public(kind) for kind in SESSIONS} == SESSIONS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    write_untrained_model(folder, layers=2)
    write_adapter(folder.parent / "adapter", JanusFlowConfig.from_file(folder / "config.json").language, rank=3)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> Callable[[int], dict[str, Any]]:
    """What every entry gives on so many threads, where nothing is unusual."""

    @cache
    def found(count: int) -> dict[str, Any]:
        with threads(count):
            return everything(folder)

    return found


def everything(folder: Path) -> dict[str, Any]:
    entries = Entries(folder)
    return {name: getattr(entries, name)() for name in public(Entries)}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        kinds = [(t.dtype, t.device, t.is_inference(), t.requires_grad) for t in (a, b)]
        return kinds[0] == kinds[1] and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("state", STATES)
def test_the_callers_state_does_not_count(folder: Path, expected: Callable[[int], dict[str, Any]], state: str) -> None:
    right = expected(THREADS.get(state, 1))
    with threads(1), STATES[state]():
        got = everything(folder)
    assert [name for name in right if not same(got[name], right[name])] == []


def test_a_stream_goes_on_in_any_state(folder: Path) -> None:
    model = Entries(folder).model
    options = dict(max_new_tokens=3 * len(STATES), do_sample=True, seed=1)
    expected = list(model.chat(ASK, **options, stream=True))
    assert len(expected) > len(STATES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stream = model.chat(ASK, **options, stream=True)
        pieces = []
        for state in STATES.values():
            with threads(1), state():
                pieces.append(next(stream))
    assert [*pieces, *stream] == expected


def test_functions_of_the_caller_run_in_the_callers_state(folder: Path) -> None:
    model, seen = Entries(folder).model, []

    def look(*given: Any) -> Any:
        seen.append((torch.zeros(1).device.type, torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")))
        return given[3] if len(given) > 1 else [("Is it red?", "yes", ("no",))]

    with torch.device("meta"), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        model.generate_image(
            PROMPT, num_inference_steps=STEPS, seed=5, best_of=1, judge=look, callback_on_step_end=look
        )
    assert seen == [("meta", True, True)] * (1 + STEPS)


def test_the_callers_state_is_as_before_after_an_error(folder: Path) -> None:
    def fails(*given: Any) -> Any:
        raise KeyError("a mistake of the caller's")

    model, dynamic = Entries(folder).model, ctypes.PyDLL(None).omp_get_dynamic
    with torch.device("meta"), torch.autocast("cpu", torch.bfloat16), smaller_teams("omp_set_dynamic", 1, 0):
        with switched(torch.set_float32_matmul_precision, "medium", "highest"):
            with pytest.raises(KeyError):
                model.generate_image(PROMPT, num_inference_steps=STEPS, callback_on_step_end=fails)
            with pytest.raises(InputError):
                model.generate_image(PROMPT, num_inference_steps=0)
            assert torch.get_float32_matmul_precision() == "medium"
        assert (torch.zeros(1).device.type, torch.is_autocast_enabled("cpu")) == ("meta", True)
        assert (dynamic(), torch.get_num_threads()) == (1, MANY)


def test_tensors_without_data_are_refused(folder: Path) -> None:
    model = Entries(folder).model
    with torch.device("meta"), pytest.raises(InputError, match="with values, got one on the meta device"):
        model.decode_latents(torch.zeros(1, 4, 8, 8))


def test_results_need_no_grad_and_seeds_leave_torchs_generator_alone(folder: Path) -> None:
    model = Entries(folder).model
    trained = {name: torch.nn.Parameter(tensor) for name, tensor in STATE.items()}
    of_parameters = JanusFlow.from_state_dict(CONFIG, trained, device="cpu")
    state = torch.get_rng_state()
    results = [
        model.decode_latents(LATENTS.clone().requires_grad_()),
        model.encode_images(PIXELS.clone().requires_grad_()),
        of_parameters.next_token_logits(IDS),
        of_parameters.sample_latents(PROMPTS, NOISE.clone().requires_grad_(), num_inference_steps=STEPS),
    ]
    model.generate_image(PROMPT, num_inference_steps=STEPS)
    model.chat(ASK, max_new_tokens=2, do_sample=True)
    assert not any(result.requires_grad for result in results)
    assert torch.equal(torch.get_rng_state(), state)
