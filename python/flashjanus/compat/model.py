"""The official model class, `MultiModalityCausalLM`: torch modules of its names and structure."""

from __future__ import annotations

from torch import nn


class MultiModalityCausalLM(nn.Module):
    """JanusFlow as the official code holds it."""
