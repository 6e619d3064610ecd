"""LoRA trained on the official model class and loaded into the engine gives what the trained modules give."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from flashjanus import JanusFlow
from flashjanus.compat.janusflow import MultiModalityCausalLM
from safetensors.torch import save_file
from small_model import LATENT, normal, prompt, relative_error, small_config, small_state
from torch import nn

CONFIG = small_config()
STATE = small_state(CONFIG)
IDS = torch.tensor([prompt(n, 12) for n in range(4)])
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ALPHA = 4, 6


class LoraLinear(nn.Module):
    """A frozen linear and factors beside it, under PEFT's names."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.Linear(base.in_features, RANK, bias=False)
        self.lora_B = nn.Linear(RANK, base.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.base_layer(x) + ALPHA / RANK * self.lora_B(self.lora_A(x))
        return y


def by_hand(model: nn.Module) -> tuple[nn.Module, Callable[[Path], None]]:
    """A model with LoRA in its projections, and what saves them as PEFT does."""
    model.requires_grad_(False)
    for name, module in list(model.language_model.named_modules()):
        if name.rpartition(".")[2] in TARGETS:
            parent, _, own = name.rpartition(".")
            setattr(model.language_model.get_submodule(parent), own, LoraLinear(module))

    def save(folder: Path) -> None:
        folder.mkdir()
        factors = {f"base_model.model.{name}": t for name, t in model.state_dict().items() if ".lora_" in name}
        save_file(factors, folder / "adapter_model.safetensors")
        settings = dict(peft_type="LORA", r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, bias="none")
        (folder / "adapter_config.json").write_text(json.dumps(settings))

    return model, save


def by_peft(model: nn.Module) -> tuple[nn.Module, Callable[[Path], None]]:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=r"language_model\..*_proj", lora_dropout=0.0)
    wrapped = peft.get_peft_model(model, settings)
    return wrapped.base_model.model, lambda folder: wrapped.save_pretrained(folder)


def train(model: Any) -> list[float]:
    """Losses of some steps on the next token, and on a velocity."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 2e-2)
    losses = []
    for _ in range(6):
        logits = model.language_model(input_ids=IDS).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
        loss = loss + velocity(model, normal(7, 4, *LATENT)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def velocity(model: Any, z: torch.Tensor) -> torch.Tensor:
    """At t = 0, of each latent after its prompt, as the official loop computes it."""
    x, t_emb, hs = model.vision_gen_enc_model(z, torch.zeros(len(z)))
    b, _, side, _ = x.shape
    image = model.vision_gen_enc_aligner(x.flatten(2).transpose(1, 2))
    prompt_embeds = model.language_model.get_input_embeddings()(IDS[:, :-1])
    embeds = torch.cat([prompt_embeds, t_emb[:, None], image], 1)
    hidden = model.language_model.model(inputs_embeds=embeds).last_hidden_state[:, -side * side :]
    h = model.vision_gen_dec_aligner(model.vision_gen_dec_aligner_norm(hidden))
    v: torch.Tensor = model.vision_gen_dec_model(h.transpose(1, 2).reshape(b, -1, side, side), hs, t_emb)
    return v


@pytest.mark.parametrize("adapt", [by_hand, pytest.param(by_peft, marks=pytest.mark.long)])
def test_what_was_trained_is_what_is_served(tmp_path: Path, adapt: Callable[..., Any]) -> None:
    model = MultiModalityCausalLM(CONFIG)
    model.load_state_dict(STATE, strict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the modules run on torch
        trained, save = adapt(model)
        trained.train()
        losses = train(trained)
        assert losses[-1] < 0.8 * losses[0]
        save(tmp_path / "adapter")
        trained.eval()
        with torch.no_grad():
            logits = trained.language_model(input_ids=IDS).logits[:, -1]
            v = velocity(trained, normal(1, 4, *LATENT))
    engine = JanusFlow.from_state_dict(CONFIG, STATE, device="cpu", dtype="float32")
    engine.load_adapter(tmp_path / "adapter", "trained")
    assert engine.adapters["trained"].rank == RANK
    served = engine.next_token_logits(IDS, adapter="trained")
    z = normal(1, 4, *LATENT)
    z1 = engine.sample_latents(IDS, z, guidance_scale=1.0, num_inference_steps=1, adapter="trained")
    assert relative_error(served, logits) < 1e-4
    assert relative_error(z1 - z, v) < 1e-4
    assert relative_error(engine.next_token_logits(IDS), logits) > 0.01
