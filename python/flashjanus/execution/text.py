"""Images and text to text: encode images, prefill, then one `decode_step` per token for all rows together."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from flashjanus.engine.runtime.bound import ProcessBound
from flashjanus.engine.runtime.cuda import Staging
from flashjanus.engine.runtime.entry import entry
from flashjanus.engine.runtime.executor import allocate_states
from flashjanus.errors import InputError
from flashjanus.execution.buckets import padded
from flashjanus.execution.runner import Runner
from flashjanus.sampling.tokens import Sampling

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


class Encoder(ProcessBound):
    """Memory of a bucket of images to read."""

    def __init__(self, runner: Runner, images: int) -> None:
        self.executor = runner.executor("encode_images", I=images)

    @property
    def nbytes(self) -> int:
        return self.executor.nbytes


def encode_images(runner: Runner, pixels: torch.Tensor) -> torch.Tensor:
    """Aligned features (I, N, D), in the matrix dtype, of normalised pixels (I, 3, S, S)."""
    features = []
    for part in torch.split(pixels, IMAGES_AT_ONCE):
        with runner.lease(Encoder, min(padded(len(part), runner.buckets.rows), IMAGES_AT_ONCE)) as encoder:
            encoder.executor.host["pixels"][: len(part)].copy_(part)
            encoder.executor.upload()
            encoder.executor.run()
            features.append(encoder.executor.outputs["features"][: len(part)].clone())
    return torch.cat(features)


class TextSession(ProcessBound):
    """Memory of a bucket: B rows, prompts of up to N tokens, S key slots, F feature rows, K new tokens.

    It does not keep the model, which keeps it while it is idle.
    """

    @entry
    def __init__(self, runner: Runner, rows: int, prompt: int, slots: int, features: int, new: int) -> None:
        self._runner, self.config, self.rows, self.prompt = weakref.ref(runner), runner.config, rows, prompt
        self._begin_of_image = runner.weights["vit.begin"][0]
        self.states = allocate_states(runner.plan("decode_step", B=rows, S=slots, K=new), runner.gpu)
        self.prefill = runner.executor("prefill", self.states, B=rows, N=prompt, S=slots, F=features, K=new)
        self.decode = runner.executor("decode_step", self.states, self.prefill.inputs, B=rows, S=slots, K=new)
        self.prefill.host["slots"].copy_(torch.arange(prompt))
        self._staging = None if runner.gpu is None else Staging(runner.gpu, self.states["token"].nbytes)

    @property
    def nbytes(self) -> int:
        """States and settings are shared, and counted twice."""
        return self.prefill.nbytes + self.decode.nbytes

    @entry
    def start(
        self, requests: Sequence[TextRequest], tokens: ImageTokens | None, eos: int | None = None
    ) -> torch.Tensor:
        """Read the prompts; returns the logits (B, V) of each row's next token, which is then in state `token`.

        Rows stop moving at `eos`, and where the rotary table ends.
        """
        self.write(requests, tokens, eos)
        self.prefill.run()
        return self.prefill.outputs["logits"][: len(requests)]

    @entry
    def write(self, requests: Sequence[TextRequest], tokens: ImageTokens | None, eos: int | None) -> None:
        """What the prefill of `start` reads, written and sent; images are encoded."""
        inputs, host = self.prefill.inputs, self.prefill.host
        per_image = self.config.num_understanding_tokens
        pixels = [r.pixels for r in requests if r.pixels is not None]
        inputs["features"][0].copy_(self._begin_of_image)
        if pixels:
            features = encode_images(self._model(), torch.cat(pixels))
            inputs["features"][1 : 1 + features.shape[0] * per_image].copy_(features.flatten(0, 1))
        first = 1
        for row, request in enumerate(requests):
            start = self.prompt - len(request.ids)
            index, block_end = image_index(request, tokens, per_image, first)
            first += per_image * (0 if request.pixels is None else len(request.pixels))
            slots = torch.arange(self.prompt)
            host["ids"][row].zero_()
            host["ids"][row, start:].copy_(torch.tensor(request.ids))
            host["index"][row].fill_(-1)
            host["index"][row, start:].copy_(torch.tensor(index))
            host["positions"][row].copy_((slots - start).clamp(min=0))
            host["kv_start"][row] = start
            host["kv_end"][row].copy_(slots + 1)
            if self.config.image_attention == "bidirectional":
                host["kv_end"][row, start:].copy_(start + torch.tensor(block_end))
            self._settle(row, request.sampling)
        self.states["slot"].fill_(self.prompt)
        self.states["step"].zero_()
        self.states["seen"].zero_()
        last = self.config.language.max_position_embeddings - 1
        self.states["position"].zero_()
        self.states["position"][: len(requests)].copy_(torch.tensor([min(len(r.ids), last) for r in requests]))
        self.states["live"].fill_(1)
        self.decode.host["eos"].fill_(-1 if eos is None else eos)
        self.decode.upload()
        self.prefill.upload()

    @entry
    def step(self) -> torch.Tensor:
        """Decode one token of every row; returns the next tokens (B,)."""
        self.decode.run()
        return self.states["token"]

    def tokens(self) -> Callable[[], list[int]]:
        """The tokens (B,) of the last step, when they are asked for; a GPU may be given the next step before that."""
        if self._staging is None:
            return self.states["token"].tolist
        fetched = self._staging.fetch(self.states["token"])
        return lambda: fetched().tolist()

    def _model(self) -> Runner:
        runner = self._runner()
        if runner is None:
            raise InputError("pixels: expected the model of this session to be there, which encodes images; it is gone")
        return runner

    def _settle(self, row: int, sampling: Sampling) -> None:
        inputs = self.prefill.host
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
    buckets = runner.buckets
    prompt, new = padded(max(len(r.ids) for r in requests), buckets.prompt_tokens), padded(new, buckets.new_tokens)
    images = sum(len(r.pixels) for r in requests if r.pixels is not None)
    rows = padded(len(requests), buckets.rows)
    features = 1 + buckets.images(images, rows) * runner.config.num_understanding_tokens
    return rows, prompt, prompt + new, features, new


def next_token_logits(runner: Runner, requests: Sequence[TextRequest], tokens: ImageTokens | None) -> torch.Tensor:
    """Logits (B, V), float32, of the token behind each row."""
    with runner.lease(TextSession, *_bucket(runner, requests, 1)) as session:
        return session.start(requests, tokens).float().clone()  # the session's own buffer if it is float32 already


def generate(
    runner: Runner,
    requests: Sequence[TextRequest],
    tokens: ImageTokens | None,
    room: Sequence[int],
    eos: int | None,
    ended: Callable[[int], bool] = lambda row: False,
) -> Iterator[list[int | None]]:
    """The next token of every row, again and again; None for rows that have met `eos`, got `room[row]` tokens, or of
    which `ended(row)` is true after a step's tokens were passed on.

    Ends when all rows have.
    """
    done = [False] * len(requests)
    new = max(room)
    with runner.lease(TextSession, *_bucket(runner, requests, new)) as session:
        session.start(requests, tokens, eos)
        ahead, pending = runner.gpu is not None, session.tokens()
        for n in range(new):
            if ahead and n + 1 < new:  # before the host waits for this step's tokens
                session.step()
                following = session.tokens()
            ids = pending()[: len(requests)]
            yield [None if finished else token for token, finished in zip(ids, done, strict=True)]
            rows = enumerate(zip(done, ids, room, strict=True))
            done = [end or token == eos or n + 1 == size or ended(row) for row, (end, token, size) in rows]
            if all(done):
                return
            if not ahead:
                session.step()
                following = session.tokens()
            pending = following
