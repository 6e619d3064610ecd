"""How likely the tokens of a step were, by the model's own distribution: the softmax of its logits as they are, before
temperature, penalty and any other option of sampling. Logarithms are natural."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from flashjanus.engine.runtime.cuda import Staging
from flashjanus.engine.runtime.executor import Executor

MOST_LIKELIEST = 20
"""Of the likeliest tokens that are told with each token."""


@dataclass(frozen=True)
class Likelihood:
    """A token's log-probability, and ids and log-probabilities of the likeliest: by logits, equal ones by id."""

    logprob: float
    likeliest: tuple[tuple[int, float], ...]


class Likelihoods:
    """Of what a plan with `logits` (B, V) and the state `token` (B,) gave in its last run."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        gpu, (rows, self._vocabulary) = executor.gpu, executor.outputs["logits"].shape
        self._staging = None if gpu is None else Staging(gpu, rows * 2 * (1 + MOST_LIKELIEST) * torch.float64.itemsize)

    def fetch(self, asked: Sequence[tuple[int, int]]) -> Callable[[], list[Likelihood]]:
        """Of the asked (row, how many of the likeliest), when they are wanted; a GPU may be given the next step before
        that. Call it before the next but one fetch."""
        logits, token = self._executor.outputs["logits"], self._executor.states["token"]
        most = min(max(count for _, count in asked), self._vocabulary)
        with self._executor.alone():
            # a host's list of rows would have to cross to the device
            own_logits, own_token = (torch.stack([t[row] for row, _ in asked]) for t in (logits, token))
            found = measured(own_logits, own_token, most)
        fetched = None if self._staging is None else self._staging.fetch(found)

        def result() -> list[Likelihood]:
            every = zip((found if fetched is None else fetched()).tolist(), asked, strict=True)
            return [_likelihood(ids, logprobs, count) for (ids, logprobs), (_, count) in every]

        return result


def measured(logits: torch.Tensor, tokens: torch.Tensor, most: int) -> torch.Tensor:
    """Ids and log-probabilities (n, 2, 1 + most), float64, of tokens (n,) and then of the likeliest by logits (n, V).

    A row does not depend on the others.
    """
    logits, ids = logits.float(), tokens.long()[:, None]
    if most:
        # float32 in the order of its bits, then the smaller id: no two are equal, so topk has no choice; a stable sort
        # of the vocabulary takes ten times as long on a CPU
        bits = (logits + 0.0).view(torch.int32).long()  # -0 is 0
        order = bits ^ ((bits >> 63) & 0x7FFFFFFF)
        keys = (order << 32) - torch.arange(logits.shape[1], device=logits.device)
        ids = torch.cat([ids, keys.topk(most).indices], 1)
    return torch.stack([ids.double(), logits.log_softmax(-1).gather(1, ids).double()], 1)


def _likelihood(ids: list[float], logprobs: list[float], count: int) -> Likelihood:
    (_, *likeliest), (logprob, *others) = map(int, ids), logprobs
    return Likelihood(logprob, tuple(zip(likeliest[:count], others, strict=False)))
