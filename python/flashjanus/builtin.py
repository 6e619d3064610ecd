"""The built-in model "shapes": a small JanusFlow in official layout, made in the user's cache on first use.

It draws 96 x 96 pixels and is not trained: its weights are seeded random numbers, and its config.json says so under
`flashjanus.untrained`. It exists so that every part can be run and tested without a download.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from flashjanus.checkpoint import JanusFlowConfig, Layout, VaeConfig, vae_layout, weight_layout
from flashjanus.errors import CheckpointError, OutputError

Shape = tuple[int, ...]

NAMES = ("shapes",)
_FOLDER = "shapes-untrained-1"  # a new number for new contents: old folders are never changed
_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)
_PROCESSOR = {
    "image_tag": "<image_placeholder>",
    "image_start_tag": "<image_beg>",
    "image_end_tag": "<image_end>",
    "image_gen_tag": "<｜begin▁of▁generation｜>",
    "num_image_tokens": 36,
    "sft_format": "deepseek_old",
    "add_special_token": False,
}
_PREPROCESSOR = {
    "image_size": 96,
    "min_size": 14,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [16, 32, 32, 32],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 96,
    "scaling_factor": 0.13025,
}
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
# What the tokenizer learns its words from: the official system prompt, then the vocabulary of scenes.
_TEXT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user",
    " provides, and assist the user with a variety of tasks using natural language.",
    "User: Assistant:",
    "a an the one two three four on left right above below of and with to in is are there it this image picture",
    "red green blue yellow orange purple black white grey brown pink background colour color",
    "circle square triangle cross star ring shape shapes circles squares triangles crosses small large",
    "What Which Where How many Is there Describe Count color shape position yes no left right top bottom?",
    "a red circle on a white background. a blue square above a green triangle. two yellow circles and one black cross.",
)


def builtin_folder(name: str = "shapes") -> Path:
    """Folder of the built-in model `name`, made now if it is not there yet. Safe when several processes race.

    Lies in $FLASHJANUS_CACHE, else $XDG_CACHE_HOME/flashjanus, else ~/.cache/flashjanus.
    Raises `CheckpointError` for an unknown name, `OutputError` if the cache cannot be written.
    """
    if name not in NAMES:
        raise CheckpointError(f"no built-in model {name!r}; there is: {', '.join(NAMES)}")
    folder = cache_folder() / _FOLDER
    if _is_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        build = Path(tempfile.mkdtemp(prefix=".shapes-", dir=folder.parent))
        try:
            _write_model(build)
            _publish(build, folder)
        finally:
            shutil.rmtree(build, ignore_errors=True)  # gone already where it was renamed
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot make {folder}: {reason}; set FLASHJANUS_CACHE to a writable folder") from error
    return folder


def is_untrained(config: Mapping[str, Any]) -> bool:
    """True if this config.json says that its weights are random."""
    own = config.get("flashjanus")
    return isinstance(own, Mapping) and own.get("untrained") is True


def cache_folder() -> Path:
    """The user's cache folder for this package, as the environment says now. Raises `OutputError` without a home."""
    own, shared = os.environ.get("FLASHJANUS_CACHE"), os.environ.get("XDG_CACHE_HOME")
    folder = Path(own) if own else Path(shared or "~/.cache") / "flashjanus"
    try:
        return folder.expanduser()
    except RuntimeError as error:  # a user without a home, as in some containers
        raise OutputError(f"no cache folder ({error}); set FLASHJANUS_CACHE to a writable folder") from error


def _is_complete(folder: Path) -> bool:
    return all((folder / file).is_file() for file in _FILES)


def _publish(build: Path, folder: Path) -> None:
    """Moves `build` to `folder` in one step; where files of an existing folder are gone, moves those."""
    try:
        build.rename(folder)
    except OSError:
        # Another process was first, or somebody deleted files: the contents are the same in every build.
        if not folder.is_dir():
            raise
        for file in _FILES:
            if not (folder / file).is_file():
                (folder / file).parent.mkdir(exist_ok=True)
                os.replace(build / file, folder / file)


def _write_model(folder: Path) -> None:
    tokenizer = _train_tokenizer()
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    config = _config(vocab_size=-(-tokenizer.get_vocab_size() // 64) * 64)
    (folder / "vae").mkdir()
    for file, content in (
        ("config.json", config),
        ("tokenizer_config.json", {"add_bos_token": True, "bos_token": BOS, "eos_token": EOS}),
        ("processor_config.json", _PROCESSOR),
        ("preprocessor_config.json", _PREPROCESSOR),
        ("vae/config.json", _VAE),
    ):
        (folder / file).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    model = {name: _seeded(name, shape) for name, shape in model_shapes(JanusFlowConfig.from_dict(config)).items()}
    save_file(model, folder / "model.safetensors", {"format": "pt"})
    vae = {name: _seeded(f"vae.{name}", shape) for name, shape in vae_shapes(VaeConfig.from_dict(_VAE)).items()}
    save_file(vae, folder / "vae" / "diffusion_pytorch_model.safetensors", {"format": "pt"})


def _config(vocab_size: int) -> dict[str, Any]:
    hidden = 192
    gen = {"block_out_channels": [96], "layers_in_middle": 2, "hidden_size": hidden}
    return {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        "torch_dtype": "bfloat16",
        "flashjanus": {"untrained": True},
        "latent_size": 12,
        "language_config": {
            "model_type": "llama",
            "hidden_size": hidden,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "max_position_embeddings": 512,
            "vocab_size": vocab_size,
            "rms_norm_eps": 1e-6,
        },
        "vision_und_enc_config": {
            "model_type": "vision_und_enc",
            "cls": "CLIPVisionTower",
            "params": {
                "model_name": "siglip_tiny_patch16_96",
                "image_size": 96,
                "select_layer": -1,
                "width": 128,
                "layers": 3,
                "heads": 4,
                "patch_size": 16,
                "mlp_ratio": 4,
            },
        },
        "vision_gen_enc_config": {
            "model_type": "vision_gen_enc",
            "cls": "ShallowUViTEncoder",
            "params": {"input_channels": 4, "kernel_size": 2, "stride": 2, "padding": 0, **gen},
        },
        "vision_gen_dec_config": {
            "model_type": "vision_gen_dec",
            "cls": "ShallowUViTDecoder",
            "params": {"in_channels": 96, "out_channels": 4, "upsamples": 1, **gen},
        },
    }


def _train_tokenizer() -> Tokenizer:
    """Byte-level BPE with DeepSeek's control tokens as ids 0 to 3 and the image tags after them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tags = [str(_PROCESSOR[key]) for key in ("image_gen_tag", "image_tag", "image_start_tag", "image_end_tag")]
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=[BOS, EOS, PAD, *tags],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return tokenizer


def model_shapes(config: JanusFlowConfig) -> dict[str, Shape]:
    """Name and shape of every tensor in an official checkpoint, the unused attention pool included."""
    c, pool = config.understanding, "vision_und_enc_model.vision_tower.attn_pool"
    shapes = _stored_shapes(weight_layout(config))
    shapes[f"{pool}.latent"] = (1, 1, c.width)
    for part, rows, columns in (
        ("q", c.width, c.width),
        ("kv", 2 * c.width, c.width),
        ("proj", c.width, c.width),
        ("mlp.fc1", c.mlp_width, c.width),
        ("mlp.fc2", c.width, c.mlp_width),
    ):
        shapes |= {f"{pool}.{part}.weight": (rows, columns), f"{pool}.{part}.bias": (rows,)}
    return shapes | _norm(f"{pool}.norm", c.width)


def vae_shapes(config: VaeConfig) -> dict[str, Shape]:
    """Name and shape of every tensor of diffusers' AutoencoderKL: the decoder, and the encoder that stays unused."""
    widths, latent = config.block_out_channels, config.latent_channels
    shapes = _stored_shapes(vae_layout(config)) | _conv("encoder.conv_in", widths[0], 3, 3)
    before = widths[0]
    for i, width in enumerate(widths):
        for j in range(config.layers_per_block):
            shapes |= _resnet(f"encoder.down_blocks.{i}.resnets.{j}", width, width if j else before)
        if i < len(widths) - 1:
            shapes |= _conv(f"encoder.down_blocks.{i}.downsamplers.0.conv", width, width, 3)
        before = width
    attention = "encoder.mid_block.attentions.0"
    shapes |= _norm(f"{attention}.group_norm", before)
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        shapes |= {f"{attention}.{part}.weight": (before, before), f"{attention}.{part}.bias": (before,)}
    for j in range(2):
        shapes |= _resnet(f"encoder.mid_block.resnets.{j}", before, before)
    shapes |= _norm("encoder.conv_norm_out", before) | _conv("encoder.conv_out", 2 * latent, before, 3)
    return shapes | _conv("quant_conv", 2 * latent, 2 * latent, 1)


def _stored_shapes(layout: Layout) -> dict[str, Shape]:
    return {source.names[0]: source.shapes[0] for target in layout for source in target.sources}


def _conv(name: str, out: int, into: int, kernel: int) -> dict[str, Shape]:
    return {f"{name}.weight": (out, into, kernel, kernel), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _resnet(name: str, out: int, into: int) -> dict[str, Shape]:
    shapes = _norm(f"{name}.norm1", into) | _conv(f"{name}.conv1", out, into, 3)
    shapes |= _norm(f"{name}.norm2", out) | _conv(f"{name}.conv2", out, out, 3)
    return shapes | (_conv(f"{name}.conv_shortcut", out, into, 1) if out != into else {})


def _seeded(name: str, shape: Shape) -> torch.Tensor:
    """bf16 noise drawn from the CRC-32 of `name`, sized so that unit input gives unit output."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    noise = torch.randn(math.prod(shape), generator=generator).reshape(shape)
    if "channelwise_norm" in name:
        noise *= 0.3
    elif len(shape) == 1:
        noise = 1 + 0.1 * noise if name.endswith("weight") else 0.05 * noise
    elif name.endswith(("embed_tokens.weight", "beg_of_und_embed", "latent")):
        noise *= 0.5
    elif name.endswith("pos_embed"):
        noise *= 0.1
    else:
        noise /= math.sqrt(math.prod(shape[1:]))
    return noise.to(torch.bfloat16)
