"""The stages of a model that are timed, alone and together, at sizes that the caller names."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from flashjanus.api.janusflow import JanusFlow
from flashjanus.api.tensor_model import TensorModel
from flashjanus.errors import InputError
from flashjanus.execution import flow, text
from flashjanus.execution.buckets import padded
from flashjanus.measure.timing import Case, Clock, timed
from flashjanus.sampling.schedule import Sampler
from flashjanus.scheduling import calls
from flashjanus.scheduling.policy import Limits
from flashjanus.scheduling.scheduler import Scheduler
from flashjanus.scheduling.shared import SharedScheduler

from . import process
from .models import sibling

STAGES = {
    "import": (),
    "start": ("steps",),
    "load": (),
    "first image": ("rows", "prompt_tokens", "steps"),
    "first token": ("rows", "chat_tokens"),
    "image": ("rows", "prompt_tokens", "steps"),
    "latents": ("rows", "prompt_tokens", "steps"),
    "prepare": ("prompt_tokens", "steps"),
    "step": ("rows", "prompt_tokens"),
    "recalled step": ("rows", "prompt_tokens"),
    "VAE": (),
    "SigLIP": ("rows",),
    "prefill": ("rows", "chat_tokens"),
    "token": ("rows", "chat_tokens"),
    "mix": ("rows", "prompt_tokens", "steps", "chat_tokens"),
}
"""The sizes that each stage depends on. import: a fresh process imports the package; start: it also draws an image of
a short prompt. load: loading from disk. first image, first token: with plans and their memory made anew, and the
question's picture encoded. image, latents: a request with and without the VAE. prepare, step, token: one of each; a
recalled step skips the language model. mix: a flow step of `rows` images and MIXED tokens of `rows` conversations."""
LATENCY = (
    "load",
    "first image",
    "first token",
    "prepare",
    "step",
    "recalled step",
    "VAE",
    "SigLIP",
    "prefill",
    "token",
)
THROUGHPUT = ("latents", "image", "token", "mix")
FROM_DISK = ("import", "start", "load")
"""Timed only if the model came from a checkpoint."""
NEED_VAE = ("start", "first image", "VAE", "image")
COLD = (*FROM_DISK, "first image", "first token")
"""Timed once per round, without a warm-up run."""
MIXED = 8
TOKENS = 8
"""How many tokens are timed per repeat."""
CHAT_TOKENS, PROMPT_TOKENS, STEPS = 620, 40, 30


def cases(stages: Sequence[str], sizes: Mapping[str, Sequence[int]]) -> list[Case]:
    """Each stage at the first of all sizes, then at each further value of every size that it depends on."""
    found = []
    for stage in stages:
        for changed in STAGES[stage] or ("",):
            for value in sizes.get(changed, (0,)):
                at = {name: value if name == changed else sizes[name][0] for name in STAGES[stage]}
                found.append(Case(stage, tuple(at.items())))
    return list(dict.fromkeys(found))


def check(cases: Sequence[Case], model: TensorModel, repeats: int) -> None:
    """Raise InputError if a case does not fit into the model's context, or needs a VAE that is absent."""
    limit = model.config.language.max_position_embeddings
    room = {
        "prompt_tokens": limit - 1 - model.config.num_image_tokens,
        "chat_tokens": limit - new_tokens(repeats),
    }
    for case in cases:
        for name, most in room.items():
            if name in dict(case.sizes) and case[name] > most:
                raise InputError(f"{case}: expected {name} of at most {most} on {model.name}, got {case[name]}")
        if case.stage in NEED_VAE and model.runner.vae_config is None:
            raise InputError(f"{case}: {model.name} has no VAE; pass --vae, or name other stages with --stages")


def new_tokens(repeats: int) -> int:
    """How many tokens a session has room for: those timed in a round and those before them."""
    return TOKENS * repeats + MIXED + 1


def rates(case: Case, seconds: float) -> dict[str, float]:
    """Images and tokens per second."""
    if case.stage in ("image", "latents"):
        return {"images/s": case["rows"] / seconds}
    if case.stage == "token":
        return {"tokens/s": case["rows"] / seconds}
    if case.stage == "mix":
        return {"images/s": case["rows"] / case["steps"] / seconds, "tokens/s": case["rows"] * MIXED / seconds}
    return {}


class Stages:
    """A model in this process as an engine. source: the arguments of `JanusFlow.from_pretrained` that made it."""

    def __init__(
        self,
        model: TensorModel,
        name: str = "flashjanus",
        source: Mapping[str, Any] | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.model, self.runner, self.name, self.source, self.clock = model, model.runner, name, source, clock
        self.shared = unkept(model)

    def round(self, cases: Sequence[Case], repeats: int) -> Iterator[tuple[Case, list[float]]]:
        for case in cases:
            if case.stage not in FROM_DISK or self.source is not None:
                yield case, self.time(case, repeats)

    def time(self, case: Case, repeats: int) -> list[float]:
        cold = case.stage in COLD
        runs = 1 if cold else repeats * (TOKENS if case.stage == "token" else 1)
        with self.ready(case, repeats) as run:
            if not cold:
                run()
            return [timed(run, self.clock, self.synchronize) for _ in range(runs)]

    @property
    def device(self) -> torch.device:
        return self.model.device if self.runner.gpu is None else self.runner.gpu.device

    def synchronize(self) -> None:
        if self.runner.gpu is not None:
            torch.cuda.synchronize(self.device)

    @contextmanager
    def ready(self, case: Case, repeats: int) -> Iterator[Callable[[], object]]:
        """Yield what is to be timed, after making everything that it needs."""
        stage, runner = case.stage, self.runner
        if stage in FROM_DISK:
            source = self.source or {}
            yield {
                "import": process.import_package,
                "start": lambda: process.start(source, case["steps"]),
                "load": lambda: JanusFlow.from_pretrained(**source),
            }[stage]
        elif stage == "first image":
            yield lambda: self._image(unkept(sibling(self.model)), case)
        elif stage == "first token":
            asked = self._questions(case)
            yield lambda: calls.next_logits(unkept(sibling(self.model)), *asked)
        elif stage == "image":
            yield lambda: self._image(self.shared, case)
        elif stage == "latents":
            yield lambda: calls.draw(self.shared, self.images(case))
        elif stage == "prepare":
            wanted = (self.ids(case["prompt_tokens"]), Sampler(case["steps"]).schedule.times)
            with self.preparing(case) as prepared:
                yield lambda: prepared.run([wanted])
        elif stage == "step":
            with self.drawing(case) as drawing:
                yield drawing.step
        elif stage == "recalled step":
            with self.drawing(case, caches=True) as drawing:
                yield drawing.forms[False, drawing.guided].run
        elif stage == "VAE":
            latents = self.noise(1)
            yield lambda: self.model.decode_latents(latents)
        elif stage == "SigLIP":
            pixels = self.pixels(case["rows"])
            yield lambda: text.encode_images(runner, pixels)
        elif stage == "prefill":
            with self.conversing(case, repeats) as chat:
                yield lambda: chat.start(self.conversations(case), None)
        elif stage == "token":
            with self.conversing(case, repeats) as chat:
                chat.start(self.conversations(case), None)
                yield chat.step
        elif stage == "mix":
            with self.drawing(case) as drawing, self.conversing(case, repeats) as chat:
                chat.start(self.conversations(case), None)
                yield lambda: _mix(drawing, chat)

    @contextmanager
    def preparing(self, case: Case) -> Iterator[flow.Prepared]:
        """A place for one prepared prompt."""
        with self.runner.lease(flow.Prepared, *self._flow_bucket(1, case)) as prepared:
            yield prepared

    @contextmanager
    def drawing(self, case: Case, caches: bool = False) -> Iterator[flow.FlowSession]:
        """A session in which all rows have joined, with the same prompt."""
        runner, requests = self.runner, self.images(case)
        with runner.lease(flow.FlowSession, *self._flow_bucket(case["rows"], case), False, caches) as session:
            with self.preparing(case) as prepared:
                prepared.run([requests[0].timed_prompt])
                for row, request in enumerate(requests):
                    session.join(prepared.prefix(0), row, request)
            yield session

    @contextmanager
    def conversing(self, case: Case, repeats: int) -> Iterator[text.TextSession]:
        buckets = self.runner.buckets
        rows, prompt = padded(case["rows"], buckets.rows), padded(case["chat_tokens"], buckets.prompt_tokens)
        new = padded(new_tokens(repeats), buckets.new_tokens)
        features = 1 + buckets.images(0, rows) * self.model.config.num_understanding_tokens
        with self.runner.lease(text.TextSession, rows, prompt, prompt + new, features, new) as session:
            yield session

    def ids(self, length: int) -> tuple[int, ...]:
        vocabulary = self.model.config.language.vocab_size
        return tuple(5 + i % (vocabulary - 5) for i in range(length))

    def noise(self, rows: int) -> torch.Tensor:
        size, channels = self.model.config.latent_size, self.model.config.gen_encoder.input_channels
        return torch.randn(rows, channels, size, size, generator=torch.Generator().manual_seed(0))

    def pixels(self, images: int) -> torch.Tensor:
        size = self.model.config.understanding.image_size
        return torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(1))

    def images(self, case: Case) -> list[flow.FlowRequest]:
        sizes = dict(case.sizes)
        sampler = Sampler(int(sizes.get("steps", STEPS)))
        return [flow.FlowRequest(self.ids(case["prompt_tokens"]), sampler, z) for z in self.noise(case["rows"])]

    def conversations(self, case: Case) -> list[text.TextRequest]:
        return [text.TextRequest(self.ids(case["chat_tokens"]))] * case["rows"]

    def _questions(self, case: Case) -> tuple[list[text.TextRequest], text.ImageTokens | None]:
        """Conversations that begin with a picture, if there is room for one."""
        block, length = self.model.config.num_understanding_tokens, case["chat_tokens"]
        if length < block + 2:
            return self.conversations(case), None
        ids = (3, *[4] * block, *self.ids(length - block - 1))
        ids = ids[: block + 1] + tuple(5 if i in (3, 4) else i for i in ids[block + 1 :])
        pixels = self.pixels(case["rows"])
        return [text.TextRequest(ids, one[None]) for one in pixels], text.ImageTokens(3, 4)

    def _flow_bucket(self, rows: int, case: Case) -> tuple[int, int, int, int]:
        """The bucket that a request for `rows` images uses."""
        buckets, sizes = self.runner.buckets, dict(case.sizes)
        padded_rows = padded(rows, buckets.rows)
        capacity = padded(case["prompt_tokens"], buckets.prompt_tokens)
        steps = padded(int(sizes.get("steps", STEPS)), buckets.steps)
        return padded_rows, buckets.branches(rows, padded_rows), capacity, steps

    def _image(self, shared: SharedScheduler, case: Case) -> torch.Tensor:
        return calls.draw(shared, self.images(case), decode=True).result


def unkept(model: TensorModel) -> SharedScheduler:
    """A scheduler without a cache of prefixes: it prepares and reads every request as if it were new."""
    return SharedScheduler(partial(Scheduler, model.runner, Limits(prefix_bytes=0)))


def _mix(drawing: flow.FlowSession, chat: text.TextSession) -> None:
    drawing.step()
    for _ in range(MIXED):
        chat.step()
