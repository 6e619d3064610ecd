"""How likely the tokens of a step were by the model's own distribution: the softmax of its raw logits, before
temperature, penalty and any other sampling option. Logarithms are natural."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from flashjanus.engine.runtime.cuda import Staging
from flashjanus.engine.runtime.executor import Executor

MOST_LIKELIEST = 20
"""The most likeliest tokens that can be reported with each token."""


@dataclass(frozen=True)
class Likelihood:
    """A token's log-probability, and ids and log-probabilities of the likeliest tokens, ordered by logit and then by
    id."""

    logprob: float
    likeliest: tuple[tuple[int, float], ...]


class Likelihoods:
    """Likelihoods from the last run of a plan that has `logits` (B, V) and the state `token` (B,)."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        gpu, (rows, self._vocabulary) = executor.gpu, executor.outputs["logits"].shape
        self._staging = None if gpu is None else Staging(gpu, rows * 2 * (1 + MOST_LIKELIEST) * torch.float64.itemsize)

    def fetch(self, asked: Sequence[tuple[int, int]]) -> Callable[[], list[Likelihood]]:
        """Request the likelihoods for (row, number of likeliest tokens) pairs, and return a function that waits for
        them, so that a GPU may start the next step meanwhile. Call the function before the next fetch but one."""
        logits, token = self._executor.outputs["logits"], self._executor.states["token"]
        most = min(max(count for _, count in asked), self._vocabulary)
        with self._executor.alone():
            # a list of rows on the host would have to be copied to the device
            own_logits, own_token = (torch.stack([t[row] for row, _ in asked]) for t in (logits, token))
            found = measured(own_logits, own_token, most)
        fetched = None if self._staging is None else self._staging.fetch(found)

        def result() -> list[Likelihood]:
            every = zip((found if fetched is None else fetched()).tolist(), asked, strict=True)
            return [_likelihood(ids, logprobs, count) for (ids, logprobs), (_, count) in every]

        return result


def measured(logits: torch.Tensor, tokens: torch.Tensor, most: int) -> torch.Tensor:
    """Ids and log-probabilities (n, 2, 1 + most), float64, of the tokens (n,) followed by the likeliest ones by logits
    (n, V).

    A row does not depend on the others.
    """
    logits, ids = logits.float(), tokens.long()[:, None]
    if most:
        # Combine float32 in the order of its bits with the smaller id: no two keys are equal, so topk has no choice. A
        # stable sort of the vocabulary takes ten times as long on a CPU.
        bits = (logits + 0.0).view(torch.int32).long()  # maps -0 to 0
        order = bits ^ ((bits >> 63) & 0x7FFFFFFF)
        keys = (order << 32) - torch.arange(logits.shape[1], device=logits.device)
        ids = torch.cat([ids, keys.topk(most).indices], 1)
    return torch.stack([ids.double(), logits.log_softmax(-1).gather(1, ids).double()], 1)


def _likelihood(ids: list[float], logprobs: list[float], count: int) -> Likelihood:
    (_, *likeliest), (logprob, *others) = map(int, ids), logprobs
    return Likelihood(logprob, tuple(zip(likeliest[:count], others, strict=False)))
