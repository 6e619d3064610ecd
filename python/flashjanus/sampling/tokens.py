"""How the next token of an answer is chosen."""

from __future__ import annotations

from dataclasses import dataclass

from flashjanus.sampling import checks
from flashjanus.sampling.options import TokenOptions

LEAST_TEMPERATURE = 1e-4
"""A lower temperature is treated as greedy, because logits divided by it would overflow float32."""
LEAST_SHARE = 1e-6
"""Smallest effective top_p. With any smaller value, the likeliest token alone is kept, too."""


@dataclass(frozen=True)
class Sampling:
    """How one row chooses its next token. Temperature 0 is greedy."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0


def samplings(options: TokenOptions, rows: int) -> list[Sampling]:
    """The `Sampling` of each row, from checked options. Row i samples from seed + i. Raises InputError for the seed.

    Without do_sample, or with a temperature below LEAST_TEMPERATURE, the row is greedy and only the repetition penalty
    matters. A top_k of -1 or 0 keeps all tokens.
    """
    first, penalty = checks.first_seed(options.seed, rows), options.repetition_penalty
    heat, share, most = options.given("temperature"), options.given("top_p"), options.given("top_k")
    if not options.do_sample or heat < LEAST_TEMPERATURE:
        return [Sampling(repetition_penalty=penalty)] * rows
    return [Sampling(heat, max(most, 0), max(share, LEAST_SHARE), penalty, first + row) for row in range(rows)]
