"""Checks jobs on submission, because a bad job would otherwise fail in a step that it shares with others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flashjanus.errors import InputError
from flashjanus.execution.adapters import Adapter
from flashjanus.execution.flow import FlowRequest
from flashjanus.execution.likelihood import MOST_LIKELIEST
from flashjanus.execution.runner import Runner
from flashjanus.execution.text import TextRequest
from flashjanus.sampling import checks
from flashjanus.scheduling.requests import ImageJob, TextJob


def check(job: Any, runner: Runner) -> None:
    """Check a job. Raises InputError."""
    if isinstance(job, ImageJob) and isinstance(job.rows, Sequence) and job.rows:
        _check_images(job, runner)
    elif isinstance(job, TextJob):
        _check_text(job, runner)
    else:
        raise InputError(f"job: expected an ImageJob with at least 1 row or a TextJob, got {job!r:.80}")


def _check_images(job: ImageJob, runner: Runner) -> None:
    config = runner.config
    if job.decode and runner.vae_config is None:
        raise InputError("job: expected decode=False, because this model has no VAE, got decode=True")
    checks.integer("job.preview_every", job.preview_every, 0, checks.MAX_STEPS)
    shape = config.gen_encoder.input_channels, config.latent_size, config.latent_size
    most = config.language.max_position_embeddings - 1 - config.num_image_tokens
    for n, row in enumerate(job.rows):
        if not isinstance(row, FlowRequest):
            raise InputError(f"job.rows[{n}]: expected a FlowRequest, got {row!r:.80}")
        checks.tensor(f"job.rows[{n}].noise", row.noise, shape, checks.FLOATS)
        _check_ids(f"job.rows[{n}].prompt", row.prompt, most, config.language.vocab_size)
        _check_adapter(f"job.rows[{n}].adapter", row.adapter)


def _check_text(job: TextJob, runner: Runner) -> None:
    language, size, request = runner.config.language, runner.config.understanding.image_size, job.request
    if not isinstance(request, TextRequest):
        raise InputError(f"job.request: expected a TextRequest, got {request!r:.80}")
    _check_ids("job.request.ids", request.ids, language.max_position_embeddings, language.vocab_size)
    _check_adapter("job.request.adapter", request.adapter)
    if request.pixels is not None:
        checks.tensor("job.request.pixels", request.pixels, (None, 3, size, size), checks.FLOATS)
    # the last token is not fed back to the model
    checks.integer("job.room", job.room, 0, language.max_position_embeddings + 1 - len(request.ids))
    if job.logprobs is not None:
        checks.integer("job.logprobs", job.logprobs, 0, MOST_LIKELIEST)
    if job.eos is not None:
        checks.integer("job.eos", job.eos, 0, language.vocab_size - 1)


def _check_adapter(name: str, adapter: Any) -> None:
    """Check the type of an adapter. Its model checks whether it is loaded."""
    if adapter is not None and not isinstance(adapter, Adapter):
        raise InputError(f"{name}: expected an Adapter that the model has loaded, got {adapter!r:.80}")


def _check_ids(name: str, ids: Sequence[int], most: int, vocabulary: int) -> None:
    if not isinstance(ids, tuple) or not 1 <= len(ids) <= most:
        raise InputError(f"{name}: expected a tuple of 1 to {most} token ids, got {ids!r:.80}")
    for token in ids:
        checks.integer(f"{name}: token id", token, 0, vocabulary - 1)
