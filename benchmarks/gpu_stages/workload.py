"""What is timed: a JanusFlow of the released sizes with random weights made in place, its sessions, and a small one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from flashjanus.checkpoint import JanusFlowConfig, Layout, VaeConfig, vae_layout, weight_layout
from flashjanus.engine.ops import all_ops, get_op
from flashjanus.engine.plan.w8a8 import QUANTISED
from flashjanus.engine.runtime.cuda import Gpu, no_e4m3, open_gpu
from flashjanus.engine.runtime.executor import Executor
from flashjanus.model import Policy
from flashjanus.pipeline.buckets import EXACT, PADDED, padded
from flashjanus.pipeline.flow import FlowRequest, FlowSession, Prepared
from flashjanus.pipeline.options import Sampling
from flashjanus.pipeline.runner import Runner
from flashjanus.pipeline.schedule import Sampler
from flashjanus.pipeline.text import TextRequest, TextSession
from full_size import CHAT_TOKENS, PROMPT_TOKENS, ROOT, config

from .clock import Clock, CudaClock, HostClock

CUDA = torch.device("cuda", 0)
VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.13025,
}
SAMPLED = Sampling(temperature=1.0, top_p=0.95, repetition_penalty=1.1)
"""The costlier way to a token."""
ENDLESS = 1 << 30
"""Steps of rows that are still to move however often a step is timed."""


@dataclass(frozen=True)
class Sizes:
    images: tuple[int, ...]
    """At once, in the model's stage; the first and the last of them in the kernels'."""
    conversations: tuple[int, ...]
    prompt: int
    steps: int
    chat: int
    context: int
    """Tokens of a longer conversation, for decoding."""
    new: int
    repeats: int
    calls: int
    """Of a kernel in one graph, at most."""


FULL = Sizes((1, 4, 16), (1, 8, 32), PROMPT_TOKENS, 30, CHAT_TOKENS, 1200, 128, repeats=10, calls=256)
SMALL = Sizes((1, 2), (1, 2), 6, 3, 20, 30, 8, repeats=2, calls=2)


@dataclass(frozen=True)
class Setting:
    """Where and on what; `implementations` may be timed, also of the model in `quantizations`."""

    device: torch.device
    clock: Clock
    sizes: Sizes
    config: Mapping[str, Any]
    vae_config: Mapping[str, Any]
    dtype: torch.dtype
    implementations: Callable[[str], Sequence[str]]
    gpu: Callable[[bool], Gpu | None]
    quantizations: Sequence[str]


def on_gpu() -> Setting:
    """The released model in bf16, the VAE of SDXL."""

    def implementations(op: str) -> list[str]:
        return [name for name in get_op(op).implementations if name != "native"]

    in_8_bits = ("int8", "fp8") if no_e4m3(CUDA) is None else ("int8",)
    gpu = partial(open_gpu, CUDA)
    return Setting(CUDA, CudaClock(CUDA), FULL, config(), VAE, torch.bfloat16, implementations, gpu, in_8_bits)


def dry_run() -> Setting:
    """The small model of the tests, on torch's implementations and the CPU."""
    from small_model import small_config

    vae = json.loads((ROOT / "tests/golden/vae_thin.config.json").read_text())
    return Setting(
        torch.device("cpu"),
        HostClock(),
        SMALL,
        small_config(),
        vae,
        torch.float32,
        lambda op: ["torch"],
        lambda graphs: None,
        ("int8", "fp8"),
    )


def random_weights(layout: Layout, policy: Policy, device: torch.device) -> dict[str, torch.Tensor]:
    """Of sizes that keep activations finite: norms about 1, biases small, matrices by their width."""
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
        weights |= policy.kept(target, weight)
    return weights


class Workload:
    """One set of weights behind three runners: with graphs, without, and without graphs and with linears unfused.

    in_8_bits: runners without graphs on quantised weights, made when they are asked for.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting, self.sizes, self.clock = setting, setting.sizes, setting.clock
        config, vae = JanusFlowConfig.from_dict(dict(setting.config)), VaeConfig.from_dict(dict(setting.vae_config))
        exact = Policy.of(setting.dtype)
        exact_weights = random_weights(weight_layout(config), exact, setting.device)
        vae_weights = random_weights(vae_layout(vae), exact, setting.device)
        self.config = config

        def runner(
            graphs: bool,
            forced: Sequence[str],
            policy: Policy = exact,
            weights: Mapping[str, torch.Tensor] = exact_weights,
        ) -> Runner:
            return Runner(
                config,
                policy,
                weights,
                setting.device,
                vae_config=vae,
                vae_weights=vae_weights,
                implementations={op: tuple(setting.implementations(op)) for op in forced},
                buckets=EXACT if setting.device.type == "cpu" else PADDED,
                gpu=setting.gpu(graphs),
            )

        every = list(all_ops()) if setting.device.type == "cpu" else []
        self.graphs, self.eager = runner(True, every), runner(False, every)
        self.parts = runner(False, every or ["silu_mul"])  # a part that is forced keeps its neighbours apart

        def in_8_bits(quantization: str) -> Runner:
            policy = Policy.of(setting.dtype, quantization=quantization)
            weights = random_weights(weight_layout(config), policy, setting.device)
            # what the plan replaces by what is to be timed: it stays where it is forced
            return runner(False, [op for op in every if op not in ("linear_w8a16", *QUANTISED)], policy, weights)

        self.in_8_bits = in_8_bits

    def flow_requests(self, rows: int) -> list[FlowRequest]:
        size, channels = self.config.latent_size, self.config.gen_encoder.input_channels
        noise = torch.randn(rows, channels, size, size, generator=torch.Generator().manual_seed(0))
        return [FlowRequest(ids(self.sizes.prompt), Sampler(self.sizes.steps), z) for z in noise]

    def flow_bucket(self, runner: Runner, rows: int) -> tuple[int, int, int, int]:
        """Of FlowSession and Prepared, as flow.generate takes them for flow_requests(rows)."""
        buckets = runner.buckets
        return rows, rows, padded(self.sizes.prompt, buckets.prompt_tokens), padded(self.sizes.steps, buckets.steps)

    def prepared(self, runner: Runner) -> Prepared:
        """One prompt, which all rows may share."""
        made = Prepared(runner, *self.flow_bucket(runner, 1))
        made.run([self.flow_requests(1)[0].timed_prompt])
        return made

    def join(self, session: FlowSession, prepared: Prepared) -> None:
        for row, request in enumerate(self.flow_requests(session.rows)):
            session.join(prepared, 0, row, request)

    def chat_requests(self, rows: int, length: int, sampling: Sampling = SAMPLED) -> list[TextRequest]:
        return [TextRequest(ids(length), None, sampling)] * rows

    def chat_bucket(self, runner: Runner, rows: int, length: int) -> tuple[int, int, int, int, int]:
        """Of TextSession, as text.generate takes it for chat_requests(rows, length)."""
        buckets, new = runner.buckets, padded(self.sizes.new, runner.buckets.new_tokens)
        prompt = padded(length, buckets.prompt_tokens)
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

    def ready(self) -> Iterator[tuple[Executor, str]]:
        """Executors about to run, whose nodes are all forms of every op that the model meets; each of them once.

        And in which form the model is where it is not the usual one: "unfused", or its quantization.
        """
        yield from self._flow(self.eager, self.sizes.images[0])
        yield self.encoder(self.eager), ""
        yield self.decoder(self.eager), ""
        yield from self._chats(self.eager, self.sizes.conversations)
        yield from list(self._chats(self.parts, self.sizes.conversations[:1], "unfused"))[1:]
        for rows in self.sizes.conversations:
            length, new = self.sizes.context, self.sizes.new
            chat = TextSession(self.eager, rows, length, length + new, 1, new)
            chat.start(self.chat_requests(rows, length), None)
            yield chat.decode, ""
        for quantization in self.setting.quantizations:
            runner = self.in_8_bits(quantization)
            yield from self._flow(runner, self.sizes.images[0], quantization)
            yield from self._chats(runner, self.sizes.conversations, quantization)
        yield from self._flow(self.eager, self.sizes.images[-1])  # last: the largest may not fit

    def _chats(self, runner: Runner, conversations: Sequence[int], form: str = "") -> Iterator[tuple[Executor, str]]:
        """The prefill of the first number of conversations, and the decoding of each."""
        for rows in conversations:
            chat = TextSession(runner, *self.chat_bucket(runner, rows, self.sizes.chat))
            chat.start(self.chat_requests(rows, self.sizes.chat), None)
            if rows == conversations[0]:
                yield chat.prefill, form
            yield chat.decode, form

    def _flow(self, runner: Runner, rows: int, form: str = "") -> Iterator[tuple[Executor, str]]:
        """Without a step cache, and storing and recalling with one."""
        for caches in (False, True):
            session = FlowSession(runner, *self.flow_bucket(runner, rows), caches=caches)
            self.join(session, self.prepared(runner))
            session.flow.host["steps"].fill_(ENDLESS)
            session.flow.upload()
            yield from ((executor, form) for executor in session.forms.values())


def ids(length: int) -> tuple[int, ...]:
    return tuple(range(5, 5 + length))
