"""Allocates memory and captures graphs before the first request needs them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack

from flashjanus.execution import flow, pictures, text
from flashjanus.execution.buckets import padded
from flashjanus.execution.runner import Runner, Session
from flashjanus.execution.session import ProgramSession
from flashjanus.execution.text_rows import DecodeSession
from flashjanus.sampling import checks, presets


def warm_up(
    runner: Runner,
    images: Sequence[int],
    conversations: Sequence[int],
    prompt_tokens: Sequence[int],
    steps: int,
    new_tokens: int,
    preset: str,
) -> None:
    """Implements `TensorModel.warm_up`: makes sessions of the buckets, the largest first, and keeps them idle."""
    config, buckets = runner.config, runner.buckets
    limit = config.language.max_position_embeddings
    lengths = [checks.integer("prompt_tokens", n, 1, limit) for n in prompt_tokens]
    capacities = sorted({padded(n, buckets.prompt_tokens) for n in lengths}, reverse=True)
    steps = min(padded(checks.integer("steps", steps, 1, checks.MAX_STEPS), buckets.steps), checks.MAX_STEPS)
    new = padded(min(checks.integer("new_tokens", new_tokens, 1, 2**31 - 1), limit), buckets.new_tokens)

    one = padded(1, buckets.rows)

    def sizes(name: str, counts: Sequence[int]) -> list[int]:
        asked = {padded(checks.integer(name, n, 1, 1024), buckets.rows) for n in counts}
        fewer = {
            n for n in buckets.rows if buckets.padded and asked and n < max(asked)
        }  # rows move to these as others end
        return sorted(asked | fewer, reverse=True)

    schedule = presets.sampler(preset).schedule
    pictured, talked = sizes("images", images), sizes("conversations", conversations)
    with ExitStack() as leases:
        made: dict[Hashable, int] = {}

        def make(kind: Callable[..., Session], *bucket: Hashable) -> None:
            session = leases.enter_context(runner.lease(kind, *bucket))
            made.update({(kind, *bucket): session.nbytes})

        for rows in pictured:
            for capacity in capacities:
                make(flow.FlowSession, rows, rows, capacity, steps, schedule.skips, schedule.caches)
        for capacity in capacities if pictured else []:
            make(flow.Prepared, one, one, capacity, steps)
        for rows in talked:
            for capacity in capacities:
                make(DecodeSession, rows, capacity + new, new)
        for capacity in capacities if talked else []:
            for count in (0, 1):
                features = 1 + buckets.images(count, one) * config.num_understanding_tokens
                make(text.TextSession, one, capacity, capacity + 1, features, 1, False)
        if talked:
            make(ProgramSession, *text.images_encoder(one))
        if pictured and runner.vae_config is not None:
            make(pictures.Decoder, config.latent_size, config.latent_size)
        runner.reserve(made)
