"""The built-in model before its training: the same files, seeded random weights. Its noise and babble never run dry,
whereas trained weights may end an answer at once or say the same whatever is sampled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from flashjanus.builtin import FILES, builtin_folder
from flashjanus.checkpoint import JanusFlowConfig, Layout, VaeConfig, vae_layout, weight_layout
from safetensors.torch import save_file
from seeded import seeded_state_dict


def write_untrained_model(folder: Path, layers: int | None = None) -> None:
    """The built-in model's configs and tokenizer, with weights in bf16; `layers` of its language model, all if None."""
    (folder / "vae").mkdir(parents=True)
    for file in FILES:
        if file.endswith(".json"):
            shutil.copy(builtin_folder() / file, folder / file)
    if layers is not None:
        config = json.loads((folder / "config.json").read_text())
        config["language_config"]["num_hidden_layers"] = layers
        (folder / "config.json").write_text(json.dumps(config))
    model = weight_layout(JanusFlowConfig.from_file(folder / "config.json"))
    vae = vae_layout(VaeConfig.from_file(folder / "vae/config.json"))
    save_file(seeded_state(model, torch.bfloat16), folder / "model.safetensors")
    save_file(seeded_state(vae, torch.bfloat16, "vae."), folder / "vae/diffusion_pytorch_model.safetensors")


def seeded_state(layout: Layout, dtype: torch.dtype = torch.float32, prefix: str = "") -> dict[str, torch.Tensor]:
    """Every tensor that the layout reads, under its official name."""
    manifest = {source.names[0]: list(source.shapes[0]) for target in layout for source in target.sources}
    return {name: tensor.to(dtype) for name, tensor in seeded_state_dict(manifest, prefix).items()}
