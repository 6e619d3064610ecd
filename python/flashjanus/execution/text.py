"""Images and text to text: images are encoded, conversations are read, and each token is then one `decode_step` for
all rows."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from flashjanus.engine.runtime.bound import ProcessBound
from flashjanus.engine.runtime.cuda import Staging
from flashjanus.engine.runtime.entry import entry
from flashjanus.engine.runtime.executor import Executor, allocate_states
from flashjanus.errors import InputError
from flashjanus.execution import adapters
from flashjanus.execution.adapters import Adapter
from flashjanus.execution.buckets import padded
from flashjanus.execution.likelihood import Likelihood, Likelihoods
from flashjanus.execution.runner import Runner
from flashjanus.execution.session import ProgramSession
from flashjanus.sampling.tokens import Sampling

IMAGES_AT_ONCE = 4
GREEDY = Sampling()


@dataclass(frozen=True)
class ImageTokens:
    """The ids that stand for an image in a prompt: one `start`, then one `image` for each of the encoder's features."""

    start: int
    image: int


@dataclass(frozen=True)
class TextRequest:
    """One row: token ids with image blocks expanded, the normalized pixels (n, 3, S, S) of its images, in order, and
    the adapter that it uses."""

    ids: tuple[int, ...]
    pixels: torch.Tensor | None = None
    sampling: Sampling = GREEDY
    adapter: Adapter | None = None

    @cached_property
    def digests(self) -> tuple[bytes, ...]:
        """One digest per image; images with equal pixels have the same digest."""
        images = () if self.pixels is None else self.pixels.detach().float().cpu().contiguous()
        return tuple(hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in images)


@dataclass(frozen=True)
class TextPrefix:
    """Keys and values (L, n, G, D) of the first n tokens of a conversation; `names` identifies each token."""

    names: tuple[Hashable, ...]
    k: torch.Tensor
    v: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    def common(self, names: Sequence[Hashable]) -> int:
        """The number of leading tokens that are the same."""
        pairs = zip(self.names, names, strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(self.names), len(names)))


def images_encoder(images: int) -> tuple[str, str, int]:
    """The arguments of a ProgramSession that encodes so many images, or the most that are encoded at once."""
    return "encode_images", "I", min(images, IMAGES_AT_ONCE)


def encode_images(runner: Runner, pixels: torch.Tensor, output: str = "features") -> torch.Tensor:
    """Aligned features (I, N, D), in the matrix dtype, of normalized pixels (I, 3, S, S); or another output of the
    program, such as `hidden` (I, N, W), the features before the aligner."""
    features = []
    for part in torch.split(pixels, IMAGES_AT_ONCE):
        with runner.lease(ProgramSession, *images_encoder(padded(len(part), runner.buckets.rows))) as encoder:
            encoder.executor.host["pixels"][: len(part)].copy_(part)
            encoder.executor.upload()
            encoder.executor.run()
            features.append(encoder.executor.outputs[output][: len(part)].clone())
    return torch.cat(features)


def image_index(
    request: TextRequest, tokens: ImageTokens | None, per_image: int, first: int
) -> tuple[list[int], list[int]]:
    """The feature row of each token (-1: text; 0: begin of image; then from `first` on), and the end of its block.

    A block is an image's features; a text token is a block of its own. Raises InputError.
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
                f"input_ids: expected {per_image} image tags after the start tag at {at}, got other tokens"
            )
        index[at:end] = [0, *range(first + n * per_image, first + (n + 1) * per_image)]
        block_end[at + 1 : end] = [end] * per_image
    return index, block_end


class TextSession(ProcessBound):
    """Memory of a bucket: B rows, up to N tokens to read at once, S key slots, F feature rows, K new tokens.

    Reading ends at slot S - K. decodes: whether the session also has the memory of a decode step. The session holds no
    strong reference to the model, because the model keeps the session while it is idle.
    """

    @entry
    def __init__(
        self, runner: Runner, rows: int, prompt: int, slots: int, features: int, new: int, decodes: bool = True
    ) -> None:
        self._runner, self.config = weakref.ref(runner), runner.config
        self.rows, self.prompt, self.end = rows, prompt, slots - new
        self._begin_of_image = runner.weights["vit.begin"][0]
        sizes, reads = dict(B=rows, S=slots, K=new), dict(N=prompt, F=features)
        plan = runner.plan("decode_step", **sizes) if decodes else runner.plan("prefill", **sizes, **reads)
        self.states = allocate_states(plan, runner.gpu)
        self.prefill = runner.executor("prefill", self.states, None, **sizes, **reads)
        if decodes:
            self.decode = runner.executor("decode_step", self.states, self.prefill.inputs, **sizes)
        self.decodes = decodes
        self.prefill.host["slots"].copy_(self.end - prompt + torch.arange(prompt))
        self._staging = None if runner.gpu is None else Staging(runner.gpu, self.states["token"].nbytes)

    @property
    def nbytes(self) -> int:
        return self.prefill.nbytes + (self.decode.plan.arena_bytes if self.decodes else 0)

    @entry
    def start(
        self, requests: Sequence[TextRequest], tokens: ImageTokens | None, eos: int | None = None
    ) -> torch.Tensor:
        """Read the prompts. Returns the logits (B, V) of each row's next token, which is then in state `token`.

        Rows stop moving at `eos`, and at the end of the rotary table.
        """
        self.write(requests, tokens, eos)
        self.prefill.run()
        return self.prefill.outputs["logits"][: len(requests)]

    @entry
    def write(self, requests: Sequence[TextRequest], tokens: ImageTokens | None, eos: int | None) -> None:
        """Write and send the inputs of the prefill of `start`, after encoding the images."""
        per_image = self.config.num_understanding_tokens
        pixels = [r.pixels for r in requests if r.pixels is not None]
        self._write_features(encode_images(self._model(), torch.cat(pixels)) if pixels else None)
        adapters.write(self.prefill, range(self.rows), None)
        first = 1
        for row, request in enumerate(requests):
            index, block_end = image_index(request, tokens, per_image, first)
            first += per_image * (0 if request.pixels is None else len(request.pixels))
            self._write_row(row, request, index, block_end, 0, len(request.ids))
        self.states["slot"].fill_(self.end)
        self._clear()
        last = self.config.language.max_position_embeddings - 1
        self.states["position"].zero_()
        self.states["position"][: len(requests)].copy_(torch.tensor([min(len(r.ids), last) for r in requests]))
        self.states["live"].fill_(1)
        self.decode.host["eos"].fill_(-1 if eos is None else eos)
        self.decode.upload()
        self.prefill.upload()

    @entry
    def read(
        self,
        request: TextRequest,
        index: Sequence[int],
        block_end: Sequence[int],
        span: tuple[int, int],
        before: TextPrefix | None,
        features: torch.Tensor | None,
    ) -> torch.Tensor:
        """Read the tokens span = (first, end) of a request into row 0, after those of `before`. Returns the logits (V,)
        of the next token, which is then in state `token`.

        index, block_end: as `image_index` returns them. features (I, N, D): of the request's images. If there are
        tokens before the span, the span must have as many tokens as the session reads at once.
        """
        begin, end = span
        if begin and end - begin != self.prompt:
            raise InputError(f"span: expected {self.prompt} tokens, because others come before them, got {end - begin}")
        self._write_features(features)
        adapters.write(self.prefill, range(self.rows), None)
        self._write_row(0, request, index, block_end, begin, end)
        if begin:
            assert before is not None, "what stands before the span has been read"
            first = self.end - end
            self.states["k_cache"][:, 0, first : first + begin].copy_(before.k[:, :begin])
            self.states["v_cache"][:, 0, first : first + begin].copy_(before.v[:, :begin])
        self._clear()
        self.prefill.upload()
        self.prefill.run()
        return self.prefill.outputs["logits"][0]

    @entry
    def likelihood(self, likeliest: int) -> Likelihood:
        """The likelihood of the token that follows what was read into row 0, with the `likeliest` likeliest tokens."""
        (found,) = self._likelihoods.fetch([(0, likeliest)])()
        return found

    @cached_property
    def _likelihoods(self) -> Likelihoods:
        return Likelihoods(self.prefill)

    @entry
    def prefix(self, names: Sequence[Hashable]) -> TextPrefix:
        """A copy of what was read into row 0, whose tokens are `names`."""
        first = self.end - len(names)
        k, v = (self.states[name][:, 0, first : self.end].clone() for name in ("k_cache", "v_cache"))
        return TextPrefix(tuple(names), k, v)

    @entry
    def step(self) -> torch.Tensor:
        """Decode one token of every row; returns the next tokens (B,)."""
        self.decode.run()
        return self.states["token"]

    def tokens(self) -> Callable[[], list[int]]:
        """Return a function that waits for the tokens (B,) of the last step, so that a GPU may start the next step
        meanwhile."""
        return fetch_tokens(self.states["token"], self._staging)

    def _model(self) -> Runner:
        runner = self._runner()
        if runner is None:
            raise InputError(
                "pixels: expected a session whose model still exists and can encode images; it was deleted"
            )
        return runner

    def _clear(self) -> None:
        self.states["step"].zero_()
        self.states["seen"].zero_()

    def _write_features(self, features: torch.Tensor | None) -> None:
        inputs = self.prefill.inputs["features"]
        inputs[0].copy_(self._begin_of_image)
        if features is not None:
            flat = features.flatten(0, 1)
            inputs[1 : 1 + len(flat)].copy_(flat)

    def _write_row(
        self, row: int, request: TextRequest, index: Sequence[int], block_end: Sequence[int], begin: int, end: int
    ) -> None:
        """Write tokens begin .. end of a request so that the last one is in the last slot of the read."""
        host = self.prefill.host
        at, first = self.prompt - (end - begin), self.end - end
        host["ids"][row].zero_()
        host["ids"][row, at:].copy_(torch.tensor(request.ids[begin:end]))
        host["index"][row].fill_(-1)
        host["index"][row, at:].copy_(torch.tensor(index[begin:end]))
        host["positions"][row].copy_((host["slots"][row] - first).clamp(min=0))
        host["kv_start"][row] = first
        host["kv_end"][row].copy_(host["slots"][row] + 1)
        if self.config.image_attention == "bidirectional":
            host["kv_end"][row, at:].copy_(first + torch.tensor(block_end[begin:end]))
        write_sampling(self.prefill, row, request.sampling)
        adapters.write(self.prefill, (row,), request.adapter)


def write_sampling(executor: Executor, row: int, sampling: Sampling) -> None:
    """Write a row's sampling options into the executor's inputs on the host."""
    host = executor.host
    host["temperature"][row] = sampling.temperature
    host["top_k"][row] = sampling.top_k
    host["top_p"][row] = sampling.top_p
    host["penalty"][row] = sampling.repetition_penalty
    generator = torch.Generator().manual_seed(sampling.seed)
    torch.rand(host["uniforms"].shape[1], generator=generator, out=host["uniforms"][row])


def fetch_tokens(tokens: torch.Tensor, staging: Staging | None) -> Callable[[], list[int]]:
    """Return a function that waits for the tokens (B,) of the last step, so that a GPU may start the next step
    meanwhile."""
    if staging is None:
        return tokens.tolist
    fetched = staging.fetch(tokens)
    return lambda: fetched().tolist()
