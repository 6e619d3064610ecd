"""LoRA adapters of small models, with seeded factors, in the files that PEFT writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from flashjanus.checkpoint import LanguageConfig
from flashjanus.checkpoint.adapters import linears
from safetensors.torch import save_file

PREFIX = "base_model.model."
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(
    folder: Path,
    config: LanguageConfig,
    rank: int = 4,
    targets: Sequence[str] = TARGETS,
    seed: int = 0,
    of: str = "language_model.model.",
    ranks: Mapping[str, int] | None = None,
    **settings: Any,
) -> dict[str, torch.Tensor]:
    """Write an adapter as large as the weights that it changes; returns its tensors. ranks: by projection, others."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(config.num_hidden_layers):
        for linear in linears(config).values():
            for projection, rows in linear.rows.items():
                if projection not in targets:
                    continue
                own = (ranks or {}).get(projection, rank)
                block = "mlp" if projection in ("gate_proj", "up_proj", "down_proj") else "self_attn"
                at = f"{PREFIX}{of}layers.{layer}.{block}.{projection}"
                down = torch.randn(own, linear.columns, generator=generator) / linear.columns**0.5
                tensors[f"{at}.lora_A.weight"] = down
                tensors[f"{at}.lora_B.weight"] = torch.randn(rows, own, generator=generator) / (2 * own**0.5)
    given = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": list(targets), "bias": "none"}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(given | settings))
    return tensors


def merged(
    state: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], scale: float = 1.0
) -> dict[str, torch.Tensor]:
    """A state dict with an adapter added to its weights by hand: W + scale B A."""
    total = dict(state)
    for name, down in tensors.items():
        if name.endswith(".lora_A.weight"):
            weight = name.removeprefix(PREFIX).replace(".lora_A.weight", ".weight")
            up = tensors[name.replace(".lora_A.", ".lora_B.")]
            total[weight] = (total[weight].double() + scale * (up.double() @ down.double())).float()
    return total
