"""The model's configs, its tokenizer, and its folder in the official layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flashjanus.evaluation import language, world
from flashjanus.pipeline.prompts import DEFAULT_SYSTEM_PROMPT
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
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
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [16, 32, 64, 64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": LATENT_CHANNELS,
    "norm_num_groups": 8,
    "sample_size": world.SIZE,
    "scaling_factor": 1.0,
}


def model_config(vocab_size: int, hidden: int = 256, layers: int = 6) -> dict[str, Any]:
    """config.json; `hidden` and `layers` are those of the language model."""
    channels = hidden // 2
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
            "num_hidden_layers": layers,
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
                "width": 192,
                "layers": 4,
                "heads": 6,
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


def train_tokenizer(lines: int = 4000) -> Tokenizer:
    """Byte-level BPE with a token for every word of the world's captions and questions, and for the system prompt."""
    rng = np.random.default_rng(0)
    corpus = ["User: Assistant:", "\n\n"] * 50
    for i in range(lines):
        scene = world.sample_scene(rng, "train", language.CAPTIONED[i % len(language.CAPTIONED)])
        asked = language.question(rng, scene, language.TOPICS[i % len(language.TOPICS)])
        corpus += [f"User: {language.caption(rng, scene).text}\n\n"]
        corpus += [f"\n{asked.text}\n\nAssistant: {asked.answer}"] if asked else []
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tags = [str(PROCESSOR[key]) for key in ("image_gen_tag", "image_tag", "image_start_tag", "image_end_tag")]
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=5,
        special_tokens=[BOS, EOS, PAD, *tags],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    # The official system prompt precedes every question: as one token it costs next to nothing.
    tokenizer.add_tokens([AddedToken(DEFAULT_SYSTEM_PROMPT, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return tokenizer


def padded_vocabulary(tokenizer: Tokenizer) -> int:
    """Rows of the embedding: the next multiple of 64."""
    return -(-tokenizer.get_vocab_size(with_added_tokens=True) // 64) * 64


def write_text_files(folder: Path, tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    """Everything but the weights."""
    (folder / "vae").mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
    for file, content in (
        ("config.json", config),
        ("tokenizer_config.json", {"add_bos_token": True, "bos_token": BOS, "eos_token": EOS}),
        ("processor_config.json", PROCESSOR),
        ("preprocessor_config.json", PREPROCESSOR),
        ("vae/config.json", VAE),
    ):
        (folder / file).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """`state` in bf16 as safetensors, whole or not at all."""
    partial = path.with_suffix(".partial")
    save_file({name: t.to(torch.bfloat16).contiguous() for name, t in state.items()}, partial, {"format": "pt"})
    partial.replace(path)
