"""A JanusFlow that runs in milliseconds: a config and seeded weights in the official layout."""

from __future__ import annotations

from typing import Any

import torch
from flashjanus.checkpoint import JanusFlowConfig, weight_layout
from untrained_model import seeded_state

VOCABULARY, START, IMAGE, END = 80, 77, 78, 79
"""Ids 77 to 79 stand for the start of an image, a feature of it, and its end."""
IMAGE_SIZE, FEATURES = 32, 16
LATENT = (4, 8, 8)


def small_config(kv_heads: int = 4, image_attention: str | None = None) -> dict[str, Any]:
    """Width 64, 2 layers, 4 heads; 16 image tokens to draw, 16 features a picture to read."""
    gen = {"block_out_channels": [16], "layers_in_middle": 2, "hidden_size": 64}
    config = {
        "model_type": "multi_modality",
        "latent_size": 8,
        "language_config": {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": kv_heads,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 128,
            "rms_norm_eps": 1e-6,
        },
        "vision_und_enc_config": {
            "cls": "CLIPVisionTower",
            "params": {
                "model_name": "small",
                "image_size": IMAGE_SIZE,
                "patch_size": 8,
                "width": 32,
                "layers": 2,
                "heads": 2,
                "mlp_ratio": 2,
                "select_layer": -1,
            },
        },
        "vision_gen_enc_config": {
            "cls": "ShallowUViTEncoder",
            "params": {"input_channels": 4, "kernel_size": 2, "stride": 2, "padding": 0, **gen},
        },
        "vision_gen_dec_config": {
            "cls": "ShallowUViTDecoder",
            "params": {"in_channels": 24, "out_channels": 4, "upsamples": 1, **gen},
        },
    }
    return config if image_attention is None else {**config, "image_attention": image_attention}


def small_state(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint of that config; it never answers with the ids of images."""
    state = seeded_state(weight_layout(JanusFlowConfig.from_dict(config)))
    state["language_model.lm_head.weight"][START:] = 0
    return state


def normal(seed: int, *shape: int) -> torch.Tensor:
    """Standard normal float32 samples."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def prompt(seed: int, length: int) -> list[int]:
    """Text ids, the first of them 0, with a trailing tag."""
    generator = torch.Generator().manual_seed(seed)
    return [0, *torch.randint(3, START, (length - 1,), generator=generator).tolist(), START - 1]


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """||got - expected|| / ||expected||, in float64; infinite where the shapes differ or something is not finite."""
    if got.shape != expected.shape or not bool(got.isfinite().all()):
        return float("inf")
    got, expected = got.double(), expected.double()
    return float((got - expected).norm() / expected.norm())
