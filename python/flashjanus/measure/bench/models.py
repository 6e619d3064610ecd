"""Models that need no checkpoint: published, thin or built-in sizes, with seeded random weights.

Random weights draw only noise, but shapes, layouts and sizes in bytes are those of a checkpoint, and so are the times.
"""

from __future__ import annotations

import copy
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from flashjanus.api.janusflow import JanusFlow
from flashjanus.api.tensor_model import TensorModel
from flashjanus.builtin import builtin_folder
from flashjanus.checkpoint import JanusFlowConfig, Layout, VaeConfig, vae_layout, weight_layout
from flashjanus.engine.formats import Weight
from flashjanus.errors import InputError
from flashjanus.execution.runner import Runner

SIZES = ("full", "thin", "shapes")
_UVIT = {"layers_in_middle": 2, "block_out_channels": [768], "hidden_size": 2048}
_FULL: dict[str, Any] = {
    "architectures": ["MultiModalityCausalLM"],
    "model_type": "multi_modality",
    "torch_dtype": "bfloat16",
    "language_config": {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_hidden_layers": 24,
        "vocab_size": 102400,
        "max_position_embeddings": 16384,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    },
    "vision_und_enc_config": {
        "model_type": "vision_und_enc",
        "cls": "CLIPVisionTower",
        "params": {
            "image_size": 384,
            "model_name": "siglip_large_patch16_384",
            "select_feature": "same",
            "select_layer": -1,
        },
    },
    "vision_gen_enc_config": {
        "model_type": "vision_gen_enc",
        "cls": "ShallowUViTEncoder",
        "params": {"input_channels": 4, "stride": 2, "kernel_size": 2, "padding": 0, **_UVIT},
    },
    "vision_gen_dec_config": {
        "model_type": "vision_gen_dec",
        "cls": "ShallowUViTDecoder",
        "params": {"in_channels": 768, "out_channels": 4, "upsamples": 1, **_UVIT},
    },
}
_FULL_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "act_fn": "silu",
    "sample_size": 1024,
    "block_out_channels": [128, 256, 512, 512],
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.13025,
}


def configs(size: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(config.json, the VAE's config.json) of a model size: the published one, one with the same widths and two layers
    ("thin", whose VAE is narrow), or the built-in one. Raises InputError."""
    if size not in SIZES:
        raise InputError(f"random weights: expected one of {', '.join(SIZES)}, got {size!r}")
    if size == "shapes":
        folder = builtin_folder("shapes")
        return (
            json.loads((folder / "config.json").read_text(encoding="utf-8")),
            json.loads((folder / "vae/config.json").read_text(encoding="utf-8")),
        )
    config, vae = copy.deepcopy((_FULL, _FULL_VAE))
    if size == "thin":
        config["language_config"].update(intermediate_size=1024, num_hidden_layers=2, vocab_size=1024)
        config["vision_und_enc_config"]["params"]["select_layer"] = 2
        vae.update(block_out_channels=[32, 64, 64, 64], layers_per_block=1, norm_num_groups=16)
    return config, vae


def seeded_tensor(name: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Draw values that keep activations finite: matrices scaled by their width, norms about 1, small biases."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    matrix = len(shape) > 1 and math.prod(shape[1:]) > 1
    bound = math.sqrt(3 / math.prod(shape[1:])) if matrix else 0.1
    tensor = torch.empty(shape, dtype=dtype).uniform_(-bound, bound, generator=generator)
    return tensor.add_(1) if not matrix and name.endswith("weight") else tensor


class SeededState(Mapping[str, torch.Tensor]):
    """The tensors that a layout reads. Each is drawn when asked for and not kept; `items()` gives them without data."""

    def __init__(self, layout: Layout, dtype: torch.dtype) -> None:
        self.shapes = {s.names[0]: s.shapes[0] for target in layout for s in target.sources}
        self.dtype = dtype

    def __getitem__(self, name: str) -> torch.Tensor:
        return seeded_tensor(name, self.shapes[name], self.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def items(self) -> Any:
        return {n: torch.empty(shape, dtype=self.dtype, device="meta") for n, shape in self.shapes.items()}.items()


def random_model(size: str, **choices: Any) -> JanusFlow:
    """A model of `size` with random weights, made one tensor at a time; choices as in `JanusFlow.from_state_dict`.

    Raises InputError, DeviceError, OutOfMemoryError, PlanError.
    """
    config, vae = configs(size)
    parts = weight_layout(JanusFlowConfig.from_dict(config)), vae_layout(VaeConfig.from_dict(vae))
    state, vae_state = (SeededState(layout, torch.bfloat16) for layout in parts)
    model = JanusFlow.from_state_dict(config, state, vae_config=vae, vae_state_dict=vae_state, **choices)
    model.name = f"random {size}"
    return model


def sibling(model: TensorModel, implementations: Mapping[str, str | Sequence[str]] | None = None) -> TensorModel:
    """The same weights with no plans made yet. With `implementations`, it uses those instead, on row-major weights."""
    of = model.runner
    policy, weights = of.policy, of.weights
    if implementations is not None and policy.tiled:
        policy = replace(policy, tiled=False)
        for target in weight_layout(of.config):
            kept, other = of.policy.kept(target), policy.kept(target)
            if isinstance(kept, Weight) and kept != other:
                weights = {**weights, **kept.by_rows(weights)}
    runner = Runner(
        of.config,
        policy,
        weights,
        of.device,
        vae_config=of.vae_config,
        vae_policy=of.vae_policy,
        vae_weights=of.vae_weights,
        implementations=of.implementations if implementations is None else implementations,
        buckets=of.buckets,
        gpu=of.gpu,
    )
    return TensorModel(runner, model.tokenizer, model.processor, model.name, model.why)
