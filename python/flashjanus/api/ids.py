"""Checks of token ids from callers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flashjanus.errors import InputError
from flashjanus.execution.text import ImageTokens
from flashjanus.sampling import checks


def token_ids(name: str, ids: Sequence[int] | torch.Tensor, low: int, high: int, vocabulary: int) -> tuple[int, ...]:
    """Check a list of `low` to `high` ids below `vocabulary`. Raises InputError."""
    if not isinstance(ids, (Sequence, torch.Tensor)) or (isinstance(ids, torch.Tensor) and ids.dim() != 1):
        raise InputError(f"{name}: expected a list of token ids or a tensor of one dimension, got {ids!r:.80}")
    values = ids.tolist() if isinstance(ids, torch.Tensor) else list(ids)
    if not low <= len(values) <= high:
        raise InputError(f"{name}: expected {low} to {high} tokens, got {len(values)}")
    for value in values:
        checks.integer(f"{name}: token id", value, 0, vocabulary - 1)
    return tuple(values)


def image_tokens(given: object, vocabulary: int) -> ImageTokens:
    """Check that the two ids differ and are below `vocabulary`. Raises InputError."""
    if not isinstance(given, ImageTokens):
        raise InputError(f"image_tokens: expected ImageTokens(start, image), got {given!r:.80}")
    ids = {checks.integer("image_tokens", i, 0, vocabulary - 1) for i in (given.start, given.image)}
    if len(ids) < 2:
        raise InputError(f"image_tokens: expected two different ids, got {given.start} twice")
    return given
