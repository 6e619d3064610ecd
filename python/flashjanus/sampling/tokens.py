"""How the next token is chosen."""

from __future__ import annotations

from dataclasses import dataclass

from flashjanus.sampling import checks

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

    @staticmethod
    def of(
        do_sample: bool,
        temperature: float | None,
        top_p: float | None,
        top_k: int | None,
        repetition_penalty: float,
        seed: int | None,
    ) -> Sampling:
        """Checked options; with `do_sample` False or temperature 0 only the penalty matters.

        temperature below LEAST_TEMPERATURE is greedy; top_k -1 and 0 are all tokens; None is an option's default.
        """
        penalty = checks.number("repetition_penalty", repetition_penalty, 1e-3, 1e3)
        if not do_sample:
            return Sampling(repetition_penalty=penalty)
        heat = checks.number("temperature", 1.0 if temperature is None else temperature, 0.0, 1e4)
        most = checks.integer("top_k", 0 if top_k is None else top_k, -1, 2**31 - 1)
        share = checks.number("top_p", 1.0 if top_p is None else top_p, 0.0, 1.0)
        first = checks.first_seed(seed, 1)
        if heat < LEAST_TEMPERATURE:
            return Sampling(repetition_penalty=penalty)
        return Sampling(heat, max(most, 0), max(share, LEAST_SHARE), penalty, first)
