"""A JanusFlow of a few thousand weights, its programs, and executors on random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from flashjanus import model
from flashjanus.checkpoint import JanusFlowConfig, VaeConfig, vae_layout, weight_layout
from flashjanus.engine.graph import Graph
from flashjanus.engine.specs import TensorSpec

CONFIG = {
    "model_type": "multi_modality",
    "latent_size": 4,
    "language_config": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 40,
        "vocab_size": 50,
    },
    "vision_und_enc_config": {
        "model_type": "vision_und_enc",
        "cls": "CLIPVisionTower",
        "params": {"image_size": 8, "width": 16, "layers": 2, "heads": 2, "patch_size": 4, "mlp_ratio": 2},
    },
    "vision_gen_enc_config": {
        "model_type": "vision_gen_enc",
        "cls": "ShallowUViTEncoder",
        "params": {
            "input_channels": 4,
            "kernel_size": 2,
            "stride": 2,
            "padding": 0,
            "block_out_channels": [8],
            "layers_in_middle": 1,
            "hidden_size": 32,
        },
    },
    "vision_gen_dec_config": {
        "model_type": "vision_gen_dec",
        "cls": "ShallowUViTDecoder",
        "params": {
            "in_channels": 8,
            "out_channels": 4,
            "upsamples": 1,
            "block_out_channels": [8],
            "layers_in_middle": 1,
            "hidden_size": 32,
        },
    },
}
VAE = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "scaling_factor": 0.13025,
}


def build_programs(dtype: torch.dtype, numerics: str = "exact") -> dict[str, Graph]:
    """The graphs by name."""
    config, vae, policy = JanusFlowConfig.from_dict(CONFIG), VaeConfig.from_dict(VAE), model.Policy.of(dtype, numerics)
    specs = model.weight_specs(weight_layout(config), policy, config.language)
    names = ("encode_images", "prefill", "decode_step", "flow_prepare")
    graphs: dict[str, Graph] = {name: getattr(model, name)(config, policy, specs) for name in names}
    graphs |= {name: model.flow_step(config, policy, specs, form) for name, form in model.FLOW_FORMS.items()}
    vae_policy = model.Policy.of(dtype)
    graphs["decode_latents"] = model.decode_latents(vae, vae_policy, model.weight_specs(vae_layout(vae), vae_policy))
    return graphs


def draw(spec: TensorSpec, seed: int) -> torch.Tensor:
    """Small normal numbers, or ones where the spec counts something."""
    shape = [int(s) for s in spec.shape]
    if not spec.dtype.is_floating_point:
        return torch.ones(shape, dtype=spec.dtype)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (0.3 * noise).to(spec.dtype)


def draw_all(specs: Mapping[str, TensorSpec]) -> dict[str, torch.Tensor]:
    return {name: draw(spec, seed) for seed, (name, spec) in enumerate(specs.items())}


@pytest.fixture(scope="session")
def programs() -> Callable[..., dict[str, Graph]]:
    """build_programs(dtype, numerics): a module of its own would not be importable from here."""
    return build_programs


@pytest.fixture(scope="session")
def draws() -> Callable[[Mapping[str, Any]], dict[str, torch.Tensor]]:
    """draw_all(specs)."""
    return draw_all
