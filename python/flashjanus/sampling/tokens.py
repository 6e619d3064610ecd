"""How the next token is chosen."""

from __future__ import annotations

from dataclasses import dataclass

from flashjanus.sampling import checks
from flashjanus.sampling.options import TokenOptions

LEAST_TEMPERATURE = 1e-4
"""What is colder takes the likeliest token: logits divided by less leave float32."""
LEAST_SHARE = 1e-6
"""Of top_p: a smaller one keeps the likeliest token as well."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 is greedy."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0


def samplings(options: TokenOptions, rows: int) -> list[Sampling]:
    """Of each row, which samples from seed + its number; of checked options. Raises InputError for a seed.

    Without do_sample or with temperature 0 only the penalty matters. A temperature below LEAST_TEMPERATURE is greedy;
    top_k -1 and 0 are all tokens.
    """
    first, penalty = checks.first_seed(options.seed, rows), options.repetition_penalty
    heat, share, most = options.given("temperature"), options.given("top_p"), options.given("top_k")
    if not options.do_sample or heat < LEAST_TEMPERATURE:
        return [Sampling(repetition_penalty=penalty)] * rows
    return [Sampling(heat, max(most, 0), max(share, LEAST_SHARE), penalty, first + row) for row in range(rows)]
