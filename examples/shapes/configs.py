"""The configs of the model and its VAE, in the official and diffusers' format."""

from __future__ import annotations

from typing import Any

from flashjanus.measure.evaluation import world
from recipe import Sizes

LATENT_CHANNELS, LATENT_SIZE = 4, world.SIZE // 8
PROCESSOR = {
    "image_tag": "<image_placeholder>",
    "image_start_tag": "<image_beg>",
    "image_end_tag": "<image_end>",
    "image_gen_tag": "<｜begin▁of▁generation｜>",
    "num_image_tokens": (world.SIZE // 16) ** 2,
    "sft_format": "deepseek_old",
    "add_special_token": False,
}
PREPROCESSOR = {
    "image_size": world.SIZE,
    "min_size": 14,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}


def vae_config(sizes: Sizes) -> dict[str, Any]:
    """vae/config.json, as diffusers writes it."""
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": list(sizes.vae_widths),
        "layers_per_block": 1,
        "act_fn": "silu",
        "latent_channels": LATENT_CHANNELS,
        "norm_num_groups": sizes.vae_groups,
        "sample_size": world.SIZE,
        "scaling_factor": 1.0,
    }


def model_config(vocab_size: int, sizes: Sizes) -> dict[str, Any]:
    """config.json"""
    hidden, channels = sizes.hidden, sizes.hidden // 2
    gen = {"block_out_channels": [channels], "layers_in_middle": 2, "hidden_size": hidden}
    return {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        "torch_dtype": "bfloat16",
        "latent_size": LATENT_SIZE,
        "language_config": {
            "model_type": "llama",
            "hidden_size": hidden,
            "intermediate_size": 11 * hidden // 4,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": hidden // 32,
            "num_key_value_heads": hidden // 32,
            "max_position_embeddings": 512,
            "vocab_size": vocab_size,
            "rms_norm_eps": 1e-6,
        },
        "vision_und_enc_config": {
            "model_type": "vision_und_enc",
            "cls": "CLIPVisionTower",
            "params": {
                "model_name": "siglip_shapes_patch16_64",
                "image_size": world.SIZE,
                "select_layer": -1,
                "width": sizes.vit_width,
                "layers": sizes.vit_layers,
                "heads": sizes.vit_heads,
                "patch_size": 16,
                "mlp_ratio": 4,
            },
        },
        "vision_gen_enc_config": {
            "model_type": "vision_gen_enc",
            "cls": "ShallowUViTEncoder",
            "params": {"input_channels": LATENT_CHANNELS, "kernel_size": 2, "stride": 2, "padding": 0, **gen},
        },
        "vision_gen_dec_config": {
            "model_type": "vision_gen_dec",
            "cls": "ShallowUViTDecoder",
            "params": {"in_channels": channels, "out_channels": LATENT_CHANNELS, "upsamples": 1, **gen},
        },
    }
