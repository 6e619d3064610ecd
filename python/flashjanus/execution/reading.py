"""Reads the new part of a conversation, in pieces between which other requests can be served."""

from __future__ import annotations

from collections.abc import Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch

from flashjanus.execution.buckets import padded
from flashjanus.execution.likelihood import Likelihood
from flashjanus.execution.prefixes import PrefixStore
from flashjanus.execution.runner import Runner
from flashjanus.execution.text import ImageTokens, TextPrefix, TextRequest, TextSession, encode_images, image_index

LEAST_PIECE = 512
"""The minimum number of tokens in a piece. A piece has at least as many tokens as a guided evaluation of an image,
and may therefore take as long."""


@dataclass(frozen=True)
class Read:
    """A conversation that has been read: the logits (V,), float32, of its next token, the token sampled from them,
    and its likelihood if requested. cached: the number of its tokens that had been read before."""

    prefix: TextPrefix
    logits: torch.Tensor
    token: int
    likelihood: Likelihood | None
    cached: int


def reading(
    runner: Runner,
    store: PrefixStore,
    request: TextRequest,
    tokens: ImageTokens | None,
    likeliest: int | None = None,
) -> Generator[None, None, Read]:
    """Pauses after each image that is encoded and each piece that is read. likeliest: as TextJob.logprobs. Raises
    InputError, OutOfMemoryError."""
    length, per_image = len(request.ids), runner.config.num_understanding_tokens
    index, block_end = image_index(request, tokens, per_image, 1)
    names = runner.adapters.named(names_of(request, index, per_image), request.adapter)
    before, done = store.longest(names)
    pieces = list(_pieces(runner, block_end, min(done, length - 1)))
    features = yield from _features(runner, store, request, index, min(begin for begin, _ in pieces))
    rows, sizes = padded(1, runner.buckets.rows), runner.buckets
    for begin, end in pieces:
        size = padded(end - begin, sizes.prompt_tokens)
        images = 0 if features is None else len(features)
        room = 1 + sizes.images(images, rows) * per_image
        with runner.lease(TextSession, rows, size, padded(end, sizes.prompt_tokens) + 1, room, 1, False) as session:
            logits = session.read(request, index, block_end, (begin, end), before, features)
            before = session.prefix(names[:end])
            if end == length:
                likelihood = None if likeliest is None else session.likelihood(likeliest)
                logits = logits.to(torch.float32, copy=True)
                found = Read(before, logits, session.tokens()()[0], likelihood, pieces[0][0])
        if end < length:
            yield
    store.put_conversation(found.prefix)
    return found


def names_of(request: TextRequest, index: Sequence[int], per_image: int) -> tuple[Hashable, ...]:
    """A name for each token: its id, None where an image begins, or which feature of which image it is."""
    digests = request.digests

    def name(token: int, at: int) -> Hashable:
        return token if at < 0 else None if at == 0 else (digests[(at - 1) // per_image], (at - 1) % per_image)

    return tuple(map(name, request.ids, index))


def _pieces(runner: Runner, block_end: Sequence[int], done: int) -> Iterator[tuple[int, int]]:
    """The ranges (begin, end) to read, from token `done` or earlier; each fills a bucket or begins at 0.

    An image whose tokens attend to each other is read in one piece.
    """
    config, length = runner.config, len(block_end)
    whole = config.image_attention == "bidirectional"
    while done < length:
        if whole:
            done = _block_begin(block_end, done)
        end = min(length, done + max(LEAST_PIECE, 2 * config.num_image_tokens))
        end = block_end[end - 1] if whole else end
        begin = max(0, end - padded(end - done, runner.buckets.prompt_tokens))
        if whole and _block_begin(block_end, begin) != begin:
            begin = 0
        yield begin, end
        done = end


def _block_begin(block_end: Sequence[int], at: int) -> int:
    """The first token of the block that contains token `at`."""
    while at and block_end[at - 1] == block_end[at]:
        at -= 1
    return at


def _features(
    runner: Runner, store: PrefixStore, request: TextRequest, index: Sequence[int], begin: int
) -> Generator[None, None, torch.Tensor | None]:
    """Features (I, N, D) of the request's images. Images before token `begin`, which are not read again, are left as
    zeros."""
    if request.pixels is None:
        return None
    per_image = runner.config.num_understanding_tokens
    needed = {(at - 1) // per_image for at in index[begin:] if at > 0}
    if not needed:
        return None
    made: dict[int, torch.Tensor] = {}
    for image in sorted(needed):
        key = ("image", request.digests[image])
        found = store.get(torch.Tensor, key, store.images)
        if found is None:
            found = encode_images(runner, request.pixels[image][None])[0]
            store.put(key, found)
            yield
        made[image] = found
    like = runner.weights["vit.begin"]
    features = torch.zeros(
        len(request.digests), per_image, like.shape[-1], dtype=runner.policy.matrix, device=like.device
    )
    for image, own in made.items():
        features[image] = own
    return features
