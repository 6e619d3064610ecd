"""A tiny JanusFlow in official layout: config dicts, random tensors, folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from flashjanus.checkpoint import JanusFlowConfig, Layout, VaeConfig, vae_layout, weight_layout
from safetensors.torch import save_file


def tiny_config_dict() -> dict[str, Any]:
    """Every size differs from the published model; grouped key/value heads, explicit ViT sizes."""
    return {
        "model_type": "multi_modality",
        "language_config": {
            "model_type": "llama",
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "vocab_size": 50,
            "max_position_embeddings": 128,
        },
        "vision_und_enc_config": {
            "cls": "CLIPVisionTower",
            "params": {
                "image_size": 32,
                "model_name": "tiny",
                "width": 24,
                "layers": 3,
                "heads": 3,
                "patch_size": 8,
                "mlp_ratio": 2.5,
                "select_layer": -1,
            },
        },
        "vision_gen_enc_config": {
            "cls": "ShallowUViTEncoder",
            "params": {
                "input_channels": 4,
                "stride": 2,
                "kernel_size": 2,
                "padding": 0,
                "layers_in_middle": 1,
                "block_out_channels": [16],
                "hidden_size": 48,
            },
        },
        "vision_gen_dec_config": {
            "cls": "ShallowUViTDecoder",
            "params": {
                "in_channels": 20,
                "out_channels": 4,
                "block_out_channels": [16],
                "upsamples": 1,
                "layers_in_middle": 2,
                "hidden_size": 48,
            },
        },
        "latent_size": 8,
    }


def tiny_vae_dict() -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKL",
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "scaling_factor": 0.5,
    }


def random_state(layout: Layout) -> dict[str, torch.Tensor]:
    """A tensor for every source of the layout, under its usual name and shape."""
    generator = torch.Generator().manual_seed(0)
    sources = [source for target in layout for source in target.sources]
    return {source.names[0]: torch.randn(source.shapes[0], generator=generator) for source in sources}


@pytest.fixture
def config_dict() -> dict[str, Any]:
    return tiny_config_dict()


@pytest.fixture
def config(config_dict: dict[str, Any]) -> JanusFlowConfig:
    return JanusFlowConfig.from_dict(config_dict)


@pytest.fixture
def vae_config() -> VaeConfig:
    return VaeConfig.from_dict(tiny_vae_dict())


@pytest.fixture
def state(config: JanusFlowConfig) -> dict[str, torch.Tensor]:
    return random_state(weight_layout(config))


@pytest.fixture
def vae_state(vae_config: VaeConfig) -> dict[str, torch.Tensor]:
    return random_state(vae_layout(vae_config))


@pytest.fixture
def folder(tmp_path: Path, config_dict: dict[str, Any], state: dict[str, torch.Tensor]) -> Path:
    """A folder with config.json and model.safetensors."""
    path = tmp_path / "tiny"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config_dict))
    save_file(state, path / "model.safetensors")
    return path


@pytest.fixture
def folder_with_vae(folder: Path, vae_state: dict[str, torch.Tensor]) -> Path:
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text(json.dumps(tiny_vae_dict()))
    save_file(vae_state, folder / "vae" / "diffusion_pytorch_model.safetensors")
    return folder
