"""h[b, n] = features[index[b, n]] where index >= 0, else table[ids[b, n]].

One gather builds the language model's input from text and image features; rows of `features` are one begin-of-image
embedding and the aligned features of each image.
"""

from __future__ import annotations

import torch

from .base import Call, Given, define, normal


def reference(
    ids: torch.Tensor,
    table: torch.Tensor,
    index: torch.Tensor | None,
    features: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    text = table.float()[ids.long()]
    if index is None or features is None:
        return text
    return torch.where(index[..., None] >= 0, features.float()[index.long().clamp(min=0)], text)


def example(generator: torch.Generator, dtype: torch.dtype, b: int, n: int, d: int, images: int) -> Call:
    ids = torch.randint(0, 50, (b, n), generator=generator, dtype=torch.int32)
    table = normal(generator, 50, d, dtype=dtype)
    if not images:
        return Call((ids, table, None, None), dict(dtype=torch.float32))
    index = torch.randint(-3, images, (b, n), generator=generator, dtype=torch.int32)
    return Call((ids, table, index, normal(generator, images, d)), dict(dtype=torch.float32))


OP = define(
    "embed",
    "ids: i32[B, N], table: T[V, D], index?: i32[B, N], features?: F[M, D] -> h: O[B, N, D]",
    reference,
    cases=[dict(b=2, n=5, d=32, images=0), dict(b=1, n=9, d=17, images=6)],
    example=example,
    rounding_steps=0.0,
    read_bytes="B*N*D*T + B*N*D*dtype",
)


@OP.implementation("torch")
def run_torch(call: Given) -> None:
    h, index = call.h, call.index
    h.copy_(call.table.index_select(0, call.ids.reshape(-1)).view(h.shape))
    if index is not None:
        images = call.features.index_select(0, index.clamp(min=0).reshape(-1)).view(h.shape)
        torch.where(index[..., None] >= 0, images.to(h.dtype), h, out=h)
