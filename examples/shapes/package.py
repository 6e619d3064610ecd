"""The model's tokenizer, and its folder in the official layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from autoencoder import AutoencoderKL
from configs import PREPROCESSOR, PROCESSOR
from flashjanus.disk.writing import whole, write_text
from flashjanus.inputs.prompts import DEFAULT_SYSTEM_PROMPT
from flashjanus.measure.evaluation import language, world
from flashjanus.measure.evaluation.sets import ceiling_scenes
from janusflow import JanusFlow
from pictures import rendered
from safetensors.torch import load_file, save
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
MODEL, VAE = "config.json", "vae/config.json"
MODEL_WEIGHTS, VAE_WEIGHTS = "model.safetensors", "vae/diffusion_pytorch_model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "processor_config.json")


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


def write_text_files(folder: Path, tokenizer: Tokenizer, config: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Everything but the weights; `config` and `vae`: of the model and its VAE."""
    (folder / "vae").mkdir(parents=True, exist_ok=True)
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=False), durable=True)
    for name, content in (
        (MODEL, config),
        ("tokenizer_config.json", {"add_bos_token": True, "bos_token": BOS, "eos_token": EOS}),
        ("processor_config.json", PROCESSOR),
        ("preprocessor_config.json", PREPROCESSOR),
        (VAE, vae),
    ):
        write_text(folder / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n", durable=True)


@torch.no_grad()
def write_model(folder: Path, state: Mapping[str, Tensor], vae: AutoencoderKL, ceiling: int) -> None:
    """The weights, and the latents of `ceiling` true scenes, from which the evaluation tells the VAE's ceiling."""
    write_weights(folder / VAE_WEIGHTS, vae.state_dict())
    images = rendered(ceiling_scenes(ceiling))
    latents = vae.encode(images.to(next(vae.parameters()).device))[0]
    write_weights(folder / "evaluation.safetensors", {"latents": latents})
    write_weights(folder / MODEL_WEIGHTS, state)


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """`state` in bf16 as safetensors, whole or not at all."""
    tensors = {name: t.to("cpu", torch.bfloat16).contiguous() for name, t in state.items()}
    with whole(path, durable=True) as file:
        file.write(save(tensors, {"format": "pt"}))


@torch.no_grad()
def read_model(folder: Path) -> tuple[JanusFlow, AutoencoderKL]:
    """A written model as training modules: fp32, with the values that bf16 left."""
    config, vae_config = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (MODEL, VAE))
    model, vae = JanusFlow(config, torch.Generator()), AutoencoderKL(vae_config)
    for name, tensor in load_file(folder / MODEL_WEIGHTS).items():
        model[name].copy_(tensor)
    vae.load_state_dict(load_file(folder / VAE_WEIGHTS))
    return model.eval(), vae.eval()
