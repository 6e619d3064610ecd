"""Images and text to text: encode images, prefill, then one `decode_step` per token for all rows together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from flashjanus.engine.runtime.executor import Executor, allocate_states
from flashjanus.errors import InputError

from .options import Sampling
from .runner import Runner, prompt_capacity

IMAGES_AT_ONCE = 4
GREEDY = Sampling()


@dataclass(frozen=True)
class TextRequest:
    """One row: token ids with image blocks expanded, and the normalised pixels (n, 3, S, S) of its images, in order."""

    ids: tuple[int, ...]
    pixels: torch.Tensor | None = None
    sampling: Sampling = GREEDY


@dataclass(frozen=True)
class ImageTokens:
    """The ids that stand for an image in a prompt: one `start`, then as many `image` as the encoder has features."""

    start: int
    image: int


class _Encoder:
    def __init__(self, runner: Runner, images: int) -> None:
        self.executor = runner.executor("encode_images", I=images)

    @property
    def nbytes(self) -> int:
        return self.executor.nbytes


def encode_images(runner: Runner, pixels: torch.Tensor) -> torch.Tensor:
    """Aligned features (I, N, D), in the matrix dtype, of normalised pixels (I, 3, S, S)."""
    features = []
    for part in torch.split(pixels, IMAGES_AT_ONCE):
        with runner.lease(_Encoder, len(part)) as encoder:
            encoder.executor.inputs["pixels"].copy_(part)
            encoder.executor.run()
            features.append(encoder.executor.outputs["features"].clone())
    return torch.cat(features)


class TextSession:
    """Memory of a bucket: B rows, prompts of up to N tokens, S key slots, F feature rows, K new tokens."""

    def __init__(self, runner: Runner, rows: int, prompt: int, slots: int, features: int, new: int) -> None:
        self.runner, self.rows, self.prompt = runner, rows, prompt
        plan = runner.plan("decode_step", B=rows, S=slots, K=new)
        self.states = allocate_states(plan)
        self.prefill = runner.executor("prefill", self.states, B=rows, N=prompt, S=slots, F=features, K=new)
        self.decode = Executor(plan, runner.weights, self.states, self.prefill.inputs)
        self.prefill.inputs["slots"].copy_(torch.arange(prompt))

    @property
    def nbytes(self) -> int:
        """States and settings are shared, and counted twice."""
        return self.prefill.nbytes + self.decode.nbytes

    def start(self, requests: Sequence[TextRequest], tokens: ImageTokens | None) -> torch.Tensor:
        """Read the prompts; returns the logits (B, V) of each row's next token, which is then in state `token`."""
        inputs = self.prefill.inputs
        per_image = self.runner.config.num_understanding_tokens
        pixels = [r.pixels for r in requests if r.pixels is not None]
        inputs["features"][0].copy_(self.runner.weights["vit.begin"][0])
        if pixels:
            features = encode_images(self.runner, torch.cat(pixels))
            inputs["features"][1 : 1 + features.shape[0] * per_image].copy_(features.flatten(0, 1))
        first = 1
        for row, request in enumerate(requests):
            start = self.prompt - len(request.ids)
            index, block_end = image_index(request, tokens, per_image, first)
            first += per_image * (0 if request.pixels is None else len(request.pixels))
            slots = torch.arange(self.prompt)
            inputs["ids"][row].zero_()
            inputs["ids"][row, start:].copy_(torch.tensor(request.ids))
            inputs["index"][row].fill_(-1)
            inputs["index"][row, start:].copy_(torch.tensor(index))
            inputs["positions"][row].copy_((slots - start).clamp(min=0))
            inputs["kv_start"][row] = start
            inputs["kv_end"][row].copy_(slots + 1)
            if self.runner.config.image_attention == "bidirectional":
                inputs["kv_end"][row, start:].copy_(start + torch.tensor(block_end))
            self.states["position"][row] = len(request.ids)
            self._settle(row, request.sampling)
        self.states["slot"].fill_(self.prompt)
        self.states["step"].zero_()
        self.states["seen"].zero_()
        self.prefill.run()
        return self.prefill.outputs["logits"]

    def step(self) -> torch.Tensor:
        """Decode one token of every row; returns the next tokens (B,)."""
        self.decode.run()
        return self.states["token"]

    def _settle(self, row: int, sampling: Sampling) -> None:
        inputs = self.prefill.inputs
        inputs["temperature"][row] = sampling.temperature
        inputs["top_k"][row] = sampling.top_k
        inputs["top_p"][row] = sampling.top_p
        inputs["penalty"][row] = sampling.repetition_penalty
        generator = torch.Generator().manual_seed(sampling.seed)
        torch.rand(inputs["uniforms"].shape[1], generator=generator, out=inputs["uniforms"][row])


def image_index(
    request: TextRequest, tokens: ImageTokens | None, per_image: int, first: int
) -> tuple[list[int], list[int]]:
    """For each token its feature row (-1: text; 0: begin of image; then from `first` on) and the end of its block.

    A block is an image's features; a text token is a block of its own.
    """
    ids = request.ids
    index, block_end = [-1] * len(ids), list(range(1, len(ids) + 1))
    images = 0 if request.pixels is None else len(request.pixels)
    starts = [] if tokens is None else [i for i, t in enumerate(ids) if t == tokens.start]
    if tokens is not None and (len(starts) != images or ids.count(tokens.image) != images * per_image):
        raise InputError(
            f"input_ids: expected {images} image blocks for {images} images, each the start tag {tokens.start} and "
            f"{per_image} image tags {tokens.image}; got {len(starts)} start and {ids.count(tokens.image)} image tags"
        )
    for n, at in enumerate(starts):
        end = at + 1 + per_image
        if tokens is not None and any(t != tokens.image for t in ids[at + 1 : end]):
            raise InputError(
                f"input_ids: expected {per_image} image tags behind the start tag at {at}, got other tokens"
            )
        index[at:end] = [0, *range(first + n * per_image, first + (n + 1) * per_image)]
        block_end[at + 1 : end] = [end] * per_image
    return index, block_end


def _bucket(runner: Runner, requests: Sequence[TextRequest], new: int) -> tuple[int, int, int, int, int]:
    prompt = prompt_capacity(max(len(r.ids) for r in requests))
    images = sum(len(r.pixels) for r in requests if r.pixels is not None)
    return len(requests), prompt, prompt + new, 1 + images * runner.config.num_understanding_tokens, new


def next_token_logits(runner: Runner, requests: Sequence[TextRequest], tokens: ImageTokens | None) -> torch.Tensor:
    """Logits (B, V), float32, of the token behind each row."""
    with runner.lease(TextSession, *_bucket(runner, requests, 1)) as session:
        return session.start(requests, tokens).float().clone()  # the session's own buffer if it is float32 already


def generate(
    runner: Runner, requests: Sequence[TextRequest], tokens: ImageTokens | None, room: Sequence[int], eos: int | None
) -> Iterator[list[int | None]]:
    """The next token of every row, again and again; None for rows that have met `eos` or got `room[row]` tokens.

    Ends when all rows have.
    """
    done = [False] * len(requests)
    new = max(room)
    with runner.lease(TextSession, *_bucket(runner, requests, new)) as session:
        session.start(requests, tokens)
        for n in range(new):
            ids = (session.step() if n else session.states["token"]).tolist()
            yield [None if finished else token for token, finished in zip(ids, done, strict=True)]
            for row, token in enumerate(ids):
                if not done[row] and (token == eos or n + 1 == room[row]):
                    done[row] = True
                    session.states["position"][row] = 0  # it runs on with the others, and could leave the rotary table
            if all(done):
                return
