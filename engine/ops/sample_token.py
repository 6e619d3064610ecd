"""token ~ softmax(logits / temperature) after repetition penalty, top-k and top-p; temperature 0 is the argmax.

Every row has its own settings and its own uniform numbers, drawn in advance: uniforms[b, step[b]] picks the token by
inverse transform over the probabilities in descending order, so a row's tokens depend only on its seed. `seen` marks
the tokens generated so far, to which the penalty applies; top_k 0 and top_p 1 keep everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from . import dims
from .base import Call, Given, define, normal


def reference(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    penalty: torch.Tensor,
    uniforms: torch.Tensor,
    seen: torch.Tensor,
    token: torch.Tensor,
    step: torch.Tensor,
) -> None:
    for b, row in enumerate(logits.float()):
        row = torch.where(seen[b].bool(), torch.where(row > 0, row / penalty[b], row * penalty[b]), row)
        if temperature[b] == 0:
            choice = int(row.argmax())
        else:
            values, order = (row / temperature[b]).sort(descending=True, stable=True)
            if top_k[b] > 0:
                values[int(top_k[b]) :] = -torch.inf
            p = values.softmax(0)
            p = torch.where(p.cumsum(0) - p < top_p[b], p, 0.0)
            u = uniforms[b, min(int(step[b]), uniforms.shape[1] - 1)]  # past the table: its last number again
            reached = p.cumsum(0) > u * p.sum()
            choice = int(order[int(reached.int().argmax())])
        token[b] = choice
        seen[b, choice] = 1
        step[b] += 1


NEAR = 1e-4
"""The largest error of float32 sums over a vocabulary, relative to a row's total probability."""


def as_good(before: Sequence[torch.Tensor | None], got: Mapping[str, torch.Tensor]) -> str | None:
    """What is wrong with tokens, `seen` and steps, or None. The uniform number must fall into a drawn token's share of
    the probability, or as close as float32 can tell; a greedy token must have the largest logit."""
    logits, temperature, top_k, top_p, penalty, uniforms, seen, _, step = (t for t in before if t is not None)
    token, x = got["token"].long(), logits.double()
    p = penalty.double()[:, None]
    x = torch.where(seen.bool(), torch.where(x > 0, x / p, x * p), x)
    due = seen.clone()
    due.scatter_(1, token.clamp(0, x.shape[1] - 1)[:, None], 1)
    if not torch.equal(got["seen"], due) or not torch.equal(got["step"], step + 1):
        return "it marks another token than it gives, or counts another step"
    ranked, order = (x / temperature.double().clamp(min=1e-6)[:, None]).sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(x.shape[1], device=x.device)
    ranked = ranked.masked_fill((top_k[:, None] > 0) & (rank >= top_k[:, None]), -torch.inf)
    probability = ranked.softmax(-1)
    kept = torch.where(probability.cumsum(-1) - probability < top_p.double()[:, None], probability, 0.0)
    u = uniforms.double().gather(1, step.clamp(max=uniforms.shape[1] - 1).long()[:, None])[:, 0] * kept.sum(-1)
    place = (order == token[:, None]).int().argmax(-1, keepdim=True)
    end = kept.cumsum(-1).gather(1, place)[:, 0]
    begin = end - kept.gather(1, place)[:, 0]
    drawn = (begin - NEAR <= u) & (u <= end + NEAR) & (probability.gather(1, place)[:, 0] > 0)
    greedy = x.gather(1, token.clamp(0, x.shape[1] - 1)[:, None])[:, 0] == x.amax(-1)
    good = torch.where(temperature > 0, drawn, greedy) & (token >= 0) & (token < x.shape[1])
    return None if bool(good.all()) else f"{int((~good).sum())} of {len(good)} tokens are not those of their numbers"


def example(
    generator: torch.Generator,
    dtype: torch.dtype,
    rows: int,
    vocab: int,
    whole: bool = False,
    masked: bool = False,
    steps: int = 0,
) -> Call:
    """`whole`: logits are integers, so many are equal; `masked`: a third are -inf; `steps` were made before."""
    logits = 3 * normal(generator, rows, vocab)
    temperature = torch.tensor([0.0, 1.0, 0.7, 1.3, 2.5, 1.0, 1.0])[:rows]
    top_k = torch.tensor([0, 0, 5, 1, 20, 0, 0], dtype=torch.int32)[:rows]
    top_p = torch.tensor([1.0, 0.8, 1.0, 0.5, 0.9, 0.01, 1.0])[:rows]
    penalty = torch.tensor([1.3, 1.0, 1.2, 1.0, 1.1, 1.0, 1.0])[:rows]
    uniforms = torch.rand(rows, 3, generator=generator)
    seen = (torch.rand(rows, vocab, generator=generator) < 0.3).to(torch.uint8)
    token, step = (torch.full((rows,), n, dtype=torch.int32) for n in (0, steps))
    if whole:
        logits = logits.round()
    if masked:
        logits[torch.rand(rows, vocab, generator=generator) < 1 / 3] = -torch.inf
    return Call((logits.to(dtype), temperature, top_k, top_p, penalty, uniforms, seen, token, step))


OP = define(
    "sample_token",
    "logits: T[B, V], temperature: f32[B], top_k: i32[B], top_p: f32[B], penalty: f32[B], "
    "uniforms: f32[B, K], seen!: u8[B, V], token!: i32[B], step!: i32[B] ->",
    reference,
    cases=[
        dict(rows=4, vocab=50),
        dict(rows=1, vocab=7),
        dict(rows=7, vocab=3, masked=True),
        dict(rows=7, vocab=311, whole=True, masked=True, steps=3),
        dict(rows=7, vocab=5000, whole=True, steps=2),
        dict(rows=2, vocab=9001),
    ],
    example=example,
    rounding_steps=0.0,
    as_good=as_good,
    flops="10*B*V",
)


def members(call: Given) -> dict[str, Any]:
    rows, vocab = call.logits.shape
    return dict(rows=rows, vocab=vocab, steps=call.uniforms.shape[1])


OP.kernel("native", members)
OP.kernel("cuda", members)


@OP.implementation("torch")
def run_torch(call: Given) -> None:
    x, seen, step = call.logits.float(), call.seen, call.step
    p, temperature = call.penalty[:, None], call.temperature
    x = torch.where(seen.bool(), torch.where(x > 0, x / p, x * p), x)
    choice = x.argmax(-1)
    if not dims.readable(x) or bool((temperature > 0).any()):  # on a CPU the sort takes long
        ranked, order = (x / temperature.clamp(min=1e-6)[:, None]).sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(x.shape[-1], device=x.device)
        ranked = ranked.masked_fill((call.top_k[:, None] > 0) & (rank >= call.top_k[:, None]), -torch.inf)
        probability = ranked.softmax(-1)
        kept = torch.where(probability.cumsum(-1) - probability < call.top_p[:, None], probability, 0.0)
        # a row that goes on after its budget reuses the last number
        u = call.uniforms.gather(1, step.clamp(max=call.uniforms.shape[1] - 1).long()[:, None])
        reached = kept.cumsum(-1) > u * kept.sum(-1, keepdim=True)
        sampled = order.gather(1, reached.int().argmax(-1, keepdim=True))[:, 0]
        choice = torch.where(temperature > 0, sampled, choice)
    call.token.copy_(choice)
    seen.scatter_(1, choice[:, None], 1)
    step.add_(1)
