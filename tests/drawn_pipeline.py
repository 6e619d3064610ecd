"""What tests of JanusFlowPipeline draw."""

from __future__ import annotations

from typing import Any

import torch
from flashjanus.compat import JanusFlowPipeline

PROMPT, OTHER = "a red circle", "a blue square"
STEPS = dict(num_inference_steps=3)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(pipe: JanusFlowPipeline, prompt: Any = PROMPT, **options: Any) -> torch.Tensor:
    images = pipe(prompt, output_type="pt", **{**STEPS, **options}).images
    assert isinstance(images, torch.Tensor)
    return images
