"""What is timed: a JanusFlow of the released sizes with random weights that are made in place, its sessions, and a
small one."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from flashjanus.checkpoint import JanusFlowConfig, Layout, VaeConfig, vae_layout, weight_layout
from flashjanus.engine.device.capabilities import no_e4m3
from flashjanus.engine.ops import Given, get_op
from flashjanus.engine.ops.linear import fused as has_neighbors
from flashjanus.engine.plan import Plan
from flashjanus.engine.runtime.cuda import Gpu, open_gpu
from flashjanus.engine.runtime.executor import Executor
from flashjanus.engine.specs import TensorSpec
from flashjanus.execution.buckets import EXACT, PADDED, Buckets, padded
from flashjanus.execution.flow import FlowRequest, FlowSession, Prepared
from flashjanus.execution.runner import Runner
from flashjanus.execution.text import TextRequest, TextSession
from flashjanus.measure.bench.models import configs
from flashjanus.measure.bench.stages import CHAT_TOKENS, PROMPT_TOKENS
from flashjanus.model import Policy
from flashjanus.sampling.schedule import Sampler
from flashjanus.sampling.tokens import Sampling

from .clock import Clock, CudaClock, HostClock

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).parents[2]
CUDA = torch.device("cuda", 0)
SAMPLING = {"sampled": Sampling(temperature=1.0, top_p=0.95, repetition_penalty=1.1), "greedy": Sampling()}
ENDLESS = 1 << 30
"""Steps of rows that must still move, however often a step is timed."""
Programs = Iterator[tuple[str, Executor]]


@dataclass
class Faults:
    """What must not serve, and why: calls by op, implementation and form, and whole implementations.

    torch's is never avoided as a whole, because it serves when nothing else does.
    """

    calls: dict[tuple[str, str, str], str] = field(default_factory=dict)
    whole: dict[tuple[str, str], str] = field(default_factory=dict)

    def __call__(self, op: str, name: str, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
        """Why this implementation must not serve this call, or None: see engine.ops.Avoided."""
        of_all = None if name == "torch" else self.whole.get((op, name))
        return of_all or self.calls.get((op, name, call_form(op, specs, attrs)))

    def left_out(self, plans: Sequence[Plan]) -> list[str]:
        """What the plans would have chosen without these faults, with the reason."""
        known = {**self.calls, **self.whole}
        found = {}
        for node in (node for plan in plans for node in plan.nodes):
            for (op, name, *_), why in known.items():
                # what a fusion gave up is told in the reason why there is none
                if node.op == op and any(why in reason for reason in node.refused.values()):
                    found[f"{op} {name}: {why}"] = None
        return list(found)


@dataclass(frozen=True)
class Sizes:
    images: tuple[int, ...]
    """Numbers of images that are drawn together."""
    conversations: tuple[int, ...]
    prompt: int
    steps: int
    chat: int
    new: int
    repeats: int
    calls: int
    """The most calls of a kernel in one graph."""


FULL = Sizes((1, 16), (1, 8, 32), PROMPT_TOKENS, 30, CHAT_TOKENS, 128, repeats=10, calls=256)
SMALL = Sizes((1, 2), (1, 2), 6, 3, 20, 8, repeats=2, calls=2)


@dataclass(frozen=True)
class Setting:
    """Where and on what the model runs: plans are for CUDA, and tensors are on `device`. The model also runs in
    `quantizations`."""

    device: torch.device
    clock: Clock
    sizes: Sizes
    config: Mapping[str, Any]
    vae_config: Mapping[str, Any]
    dtype: torch.dtype
    gpu: Callable[[bool], Gpu]
    buckets: Buckets
    quantizations: Sequence[str]


def on_gpu() -> Setting:
    """The released model in bf16, with the VAE of SDXL."""
    in_8_bits = ("fp8", "int8") if no_e4m3(CUDA) is None else ("int8",)
    clock = CudaClock(CUDA)
    config, vae = configs("full")
    return Setting(CUDA, clock, FULL, config, vae, torch.bfloat16, partial(open_gpu, CUDA), PADDED, in_8_bits)


def dry_run(patch: pytest.MonkeyPatch) -> Setting:
    """The small model of the tests on their stand-in for CUDA, which `patch` activates; torch implements all ops."""
    from gpu_stand_in import stand_in
    from small_model import small_config

    driver = stand_in(patch)
    vae = json.loads((ROOT / "tests/golden/vae_thin.config.json").read_text())
    gpu, clock = partial(Gpu, driver), HostClock()
    return Setting(driver.device, clock, SMALL, small_config(), vae, torch.float32, gpu, EXACT, ("fp8", "int8"))


def random_weights(layout: Layout, policy: Policy, device: torch.device) -> dict[str, torch.Tensor]:
    """Random weights that keep activations finite: norms about 1, small biases, matrices scaled by their width."""
    weights: dict[str, torch.Tensor] = {}
    generator = torch.Generator(device).manual_seed(0)
    for target in layout:
        if target.same_as:
            weights[target.name] = weights[target.same_as]
            continue
        dtype = policy.matrix if target.kind == "matrix" else policy.vector
        order = torch.channels_last if target.channels_last else torch.contiguous_format
        weight = torch.empty(target.shape, dtype=dtype, device=device, memory_format=order).normal_(generator=generator)
        if len(target.shape) > 1:
            weight.mul_(1 / math.sqrt(math.prod(target.shape[1:])))
        else:
            weight.mul_(0.1).add_(0 if target.name.endswith(".b") else 1)
        weights |= policy.pack(target, weight)
    return weights


class Workload:
    """Runners of one model with and without graphs, in bf16 and in 8 bits. Weights are made when they are needed.

    faults: what must not serve; plans that are made from then on avoid it.
    """

    def __init__(self, setting: Setting, faults: Faults | None = None) -> None:
        self.setting, self.sizes, self.clock = setting, setting.sizes, setting.clock
        self.faults = faults or Faults()
        self.config = JanusFlowConfig.from_dict(dict(setting.config))
        self.vae = VaeConfig.from_dict(dict(setting.vae_config))
        self.vae_weights = random_weights(vae_layout(self.vae), Policy.of(setting.dtype), setting.device)
        self._weights: dict[str | None, dict[str, torch.Tensor]] = {}
        self._runners: dict[tuple[bool, str | None], Runner] = {}

    def runner(self, graphs: bool, quantization: str | None = None) -> Runner:
        """One runner for each choice; it is kept."""
        key = graphs, quantization
        if key not in self._runners:
            self._runners[key] = self.new_runner(graphs, quantization)
        return self._runners[key]

    def new_runner(self, graphs: bool, quantization: str | None = None, fused: bool = True) -> Runner:
        """Without `fused`, linears and their neighbors are separate nodes, as in conversations of many rows."""
        policy = Policy.of(self.setting.dtype, quantization=quantization)
        if quantization not in self._weights:
            self._weights[quantization] = random_weights(weight_layout(self.config), policy, self.setting.device)

        def apart(op: str, name: str, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
            apart = op == "linear" and has_neighbors(Given(get_op(op), specs, attrs, CUDA))
            return "its parts are looked at" if apart else self.faults(op, name, specs, attrs)

        return Runner(
            self.config,
            policy,
            self._weights[quantization],
            CUDA,
            vae_config=self.vae,
            vae_policy=Policy.of(self.setting.dtype),
            vae_weights=self.vae_weights,
            avoided=self.faults if fused else apart,
            buckets=self.setting.buckets,
            gpu=self.setting.gpu(graphs),
        )

    def forget(self) -> None:
        """Make the runners again, because what they must avoid has changed."""
        self._runners.clear()

    def flow_requests(self, rows: int) -> list[FlowRequest]:
        size, channels = self.config.latent_size, self.config.gen_encoder.input_channels
        noise = torch.randn(rows, channels, size, size, generator=torch.Generator().manual_seed(0))
        return [FlowRequest(ids(self.sizes.prompt), Sampler(self.sizes.steps), z) for z in noise]

    def flow_bucket(self, runner: Runner, rows: int) -> tuple[int, int, int, int]:
        """The bucket of FlowSession and Prepared that the scheduler would use for flow_requests(rows)."""
        buckets = runner.buckets
        return rows, rows, padded(self.sizes.prompt, buckets.prompt_tokens), padded(self.sizes.steps, buckets.steps)

    def to_prepare(self, runner: Runner) -> Prepared:
        """One prompt, which all rows may share, written but not run."""
        made = Prepared(runner, *self.flow_bucket(runner, 1))
        made.write([self.flow_requests(1)[0].timed_prompt])
        return made

    def prepared(self, runner: Runner) -> Prepared:
        made = self.to_prepare(runner)
        made.executor.run()
        return made

    def join(self, session: FlowSession, prepared: Prepared) -> None:
        for row, request in enumerate(self.flow_requests(session.rows)):
            session.join(prepared.prefix(0), row, request)
        session.flow.upload()

    def chat_requests(self, rows: int, sampling: Sampling) -> list[TextRequest]:
        return [TextRequest(ids(self.sizes.chat), None, sampling)] * rows

    def chat_bucket(self, runner: Runner, rows: int) -> tuple[int, int, int, int, int]:
        """The bucket of TextSession for chat_requests(rows)."""
        buckets, new = runner.buckets, padded(self.sizes.new, runner.buckets.new_tokens)
        prompt = padded(self.sizes.chat, buckets.prompt_tokens)
        features = 1 + buckets.images(0, rows) * self.config.num_understanding_tokens
        return rows, prompt, prompt + new, features, new

    def encoder(self, runner: Runner) -> Executor:
        made, size = runner.executor("encode_images", I=1), self.config.understanding.image_size
        made.host["pixels"].copy_(torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1)))
        made.upload()
        return made

    def decoder(self, runner: Runner) -> Executor:
        size = self.config.latent_size
        made = runner.executor("decode_latents", B=1, H=size, W=size)
        made.inputs["z"].normal_()
        return made

    def programs(self, largest: bool = True) -> Iterator[Programs]:
        """Groups of executors whose inputs are ready, by name, none of which has run. The caller runs each one before
        it takes the next; if one cannot be made, the next group follows.

        Nothing runs here before it is handed out, so a kernel that ends the process does so in the caller's hands. The
        headline's groups come first, the `largest` last.
        """
        eager = self.runner(False)
        one, *more = self.sizes.images
        yield self._flow(eager, one)
        yield self._chat(eager, 1)
        yield self._whole("decode_latents", self.decoder)
        yield self._whole("encode_images", self.encoder)
        for quantization in self.setting.quantizations:
            yield self._flow(self.runner(False, quantization), one, quantization)
            yield self._chat(self.runner(False, quantization), 1, quantization)
        if not largest:
            return
        for rows in self.sizes.conversations[1:]:
            yield self._chat(eager, rows)
        yield self._chat(self.new_runner(False, fused=False), 1, "unfused")
        for rows in more:
            yield self._flow(eager, rows)
        yield self._flow(eager, one, caches=True)

    def _whole(self, name: str, make: Callable[[Runner], Executor]) -> Programs:
        yield name, make(self.runner(False))

    def _chat(self, runner: Runner, rows: int, form: str = "") -> Programs:
        chat = TextSession(runner, *self.chat_bucket(runner, rows))
        chat.write(self.chat_requests(rows, SAMPLING["sampled"]), None, None)
        yield f"prefill {rows} {form}".rstrip(), chat.prefill
        yield f"decode_step {rows} {form}".rstrip(), chat.decode

    def _flow(self, runner: Runner, rows: int, form: str = "", caches: bool = False) -> Programs:
        """With `caches`, the step stores and recalls."""
        prepared = self.to_prepare(runner)
        yield f"flow_prepare {form}".rstrip(), prepared.executor
        session = FlowSession(runner, *self.flow_bucket(runner, rows), caches=caches)
        self.join(session, prepared)
        session.flow.host["steps"].fill_(ENDLESS)
        session.flow.upload()
        for executor in session.forms.values():
            yield f"{executor.plan.name} {rows} {form}".rstrip(), executor


def call_form(op: str, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str:
    """A short key, the same in every process, that is equal for two calls of an op with the same work."""
    told = [*map(str, specs), *sorted(f"{name}={value}" for name, value in attrs.items())]
    return hashlib.sha256(repr((op, told)).encode()).hexdigest()[:8]


def ids(length: int) -> tuple[int, ...]:
    return tuple(range(5, 5 + length))
