"""What programs do with the official model class, in as many lines as they do it in; and small models to do it with."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from flashjanus.compat.janusflow import MultiModalityCausalLM
from flashjanus.compat.outputs import ReferencePathWarning
from small_model import END, FEATURES, IMAGE, IMAGE_SIZE, START, normal, small_config, small_state

PAD = 2


def small_official(dtype: torch.dtype = torch.float32, **changes: Any) -> MultiModalityCausalLM:
    """The small model as the official code holds it, in eval mode."""
    config = small_config() | changes
    model = MultiModalityCausalLM(config)
    found = model.load_state_dict(small_state(config), strict=False)
    assert all(".attn_pool." in name for name in found.missing_keys)
    assert not found.unexpected_keys
    return model.to(dtype).eval()


def on_torch(model: MultiModalityCausalLM) -> MultiModalityCausalLM:
    """A copy of the model that stays on its modules: each has a hook that does nothing."""
    other = MultiModalityCausalLM(model.config)
    other.load_state_dict(model.state_dict())
    for module in other.modules():
        module.register_forward_hook(lambda *args: None)
    return other.to(model.dtype).eval()


@contextmanager
def warned(category: type[Warning]) -> Iterator[list[str]]:
    """The texts of the warnings of a category."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [str(one.message) for one in caught if issubclass(one.category, category)]


@contextmanager
def on_the_engine() -> Iterator[None]:
    """Fails where something runs on torch instead."""
    with warned(ReferencePathWarning) as texts:
        yield
    assert texts == []


def embedded(model: MultiModalityCausalLM, ids: torch.Tensor, images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (2 images, P, D) of a prompt without its last token, and the mask (2 images, P + 1 + image tokens)."""
    tokens = torch.stack([ids] * (2 * images))
    tokens[images:, 1:] = PAD
    embeds = model.language_model.get_input_embeddings()(tokens)[:, :-1]
    latent = model._parsed.num_image_tokens
    mask = torch.ones(2 * images, embeds.shape[1] + 1 + latent)
    mask[images:, 1 : embeds.shape[1]] = 0
    return embeds, mask.int()


def evaluated(model: MultiModalityCausalLM, z: torch.Tensor, t: float) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """(hs, t_emb (B, D), image tokens (B, N, D)) of latents at a time."""
    encoded, t_emb, hs = model.vision_gen_enc_model(z, torch.full((len(z),), t, dtype=z.dtype))
    flat = encoded.view(*encoded.shape[:2], -1).permute(0, 2, 1)
    return hs, t_emb, model.vision_gen_enc_aligner(flat)


def velocity(model: MultiModalityCausalLM, hidden: torch.Tensor, hs: Any, t_emb: torch.Tensor) -> torch.Tensor:
    """(B, c, H, W) of the language model's hidden states of the image tokens."""
    side = model._parsed.grid
    h = model.vision_gen_dec_aligner(model.vision_gen_dec_aligner_norm(hidden[:, -(side**2) :]))
    out: torch.Tensor = model.vision_gen_dec_model(
        h.reshape(len(h), side, side, -1).permute(0, 3, 1, 2), list(hs), t_emb
    )
    return out


@torch.inference_mode()
def official_loop(
    model: MultiModalityCausalLM, ids: torch.Tensor, z: torch.Tensor, steps: int, guidance: float
) -> torch.Tensor:
    """Latents (B, c, H, W) at t = 1, as the official README draws them: the whole sequence in each step."""
    embeds, mask = embedded(model, ids, len(z))
    for step in range(steps):
        hs, t_emb, image = evaluated(model, torch.cat([z, z]), step / steps * 1000.0)
        outputs = model.language_model.model(
            inputs_embeds=torch.cat([embeds, t_emb.unsqueeze(1), image], 1),
            attention_mask=mask,
            use_cache=True,
            past_key_values=None if step == 0 else (),
        )
        cond, uncond = velocity(model, outputs.last_hidden_state, hs, t_emb).chunk(2)
        z = z + (guidance * cond - (guidance - 1) * uncond) / steps
    return z


def conversations(model: MultiModalityCausalLM, side: str = "left") -> dict[str, torch.Tensor]:
    """What a processor makes of two conversations of different length about an image each."""
    texts = [[5, 9, 11], [7, 8, 21, 33, 17, 40, 3]]
    rows = [[0, START, *[IMAGE] * FEATURES, END, *text] for text in texts]
    longest = max(map(len, rows))
    ids = torch.full((2, longest), PAD)
    mask = torch.zeros(2, longest, dtype=torch.long)
    for row, found in enumerate(rows):
        place = slice(longest - len(found), longest) if side == "left" else slice(0, len(found))
        ids[row, place] = torch.tensor(found)
        mask[row, place] = 1
    return dict(
        input_ids=ids,
        attention_mask=mask,
        pixel_values=normal(4, 2, 1, 3, IMAGE_SIZE, IMAGE_SIZE).to(model.dtype),
        images_seq_mask=(ids == START) | (ids == IMAGE),
        images_emb_mask=torch.ones(2, 1, FEATURES + 1, dtype=torch.bool),
    )
