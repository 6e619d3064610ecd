"""Programs that circulate and keep keys and values from step to step: the right ones draw what the plain loop draws,
and the wrong ones are told what they do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flashjanus.compat.outputs import CacheMisuseWarning, ReferencePathWarning
from official_calls import embedded, evaluated, official_loop, on_the_engine, on_torch, small_official, velocity, warned
from small_model import LATENT, normal, prompt, relative_error
from transformers import DynamicCache

STEPS, GUIDANCE = 3, 2.0
IDS, NOISE = torch.tensor(prompt(1, 6)), normal(2, 2, *LATENT)
SAME = 1e-5


@pytest.fixture(scope="module")
def model():
    return small_official()


@pytest.fixture(scope="module")
def expected(model):
    return official_loop(model, IDS, NOISE, STEPS, GUIDANCE)


@torch.inference_mode()
def loop(model, read) -> torch.Tensor:
    """The Euler loop around `read(step, embeds, [t, z] embeddings, mask) -> hidden states`."""
    embeds, mask = embedded(model, IDS, len(NOISE))
    z = NOISE
    for step in range(STEPS):
        hs, t_emb, image = evaluated(model, torch.cat([z, z]), step / STEPS * 1000.0)
        hidden = read(step, embeds, torch.cat([t_emb[:, None], image], 1), mask)
        cond, uncond = velocity(model, hidden, hs, t_emb).chunk(2)
        z = z + (GUIDANCE * cond - (GUIDANCE - 1) * uncond) / STEPS
    return z


def new_positions(past: int, new: int) -> torch.Tensor:
    return torch.arange(past, past + new)[None]


def cropping(model, cache: Any):
    """Later steps feed [t, z] alone on the cache, which is cropped to the prompt after each."""

    def read(step: int, embeds: torch.Tensor, new: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        nonlocal cache
        given = torch.cat([embeds, new], 1) if step == 0 else new
        past = 0 if step == 0 else embeds.shape[1]
        outputs = model.language_model.model(
            inputs_embeds=given,
            attention_mask=mask,
            position_ids=new_positions(past, given.shape[1]),
            past_key_values=cache,
            use_cache=True,
        )
        cache = outputs.past_key_values
        cache.crop(-new.shape[1])  # by how many: transformers 5 takes no length to keep
        return outputs.last_hidden_state

    return read


@pytest.mark.parametrize("cache", [lambda: None, DynamicCache], ids=["ours", "transformers"])
def test_a_cropped_cache_serves_every_step(model, expected, cache):
    with on_the_engine():
        assert relative_error(loop(model, cropping(model, cache())), expected) <= SAME
    hooked = on_torch(model)
    with warned(ReferencePathWarning) as texts:
        assert relative_error(loop(hooked, cropping(hooked, cache())), expected) <= SAME
    assert any("has hooks" in text for text in texts)


def test_slices_of_a_legacy_cache_serve_every_step(model, expected):
    """`to_legacy_cache` says that tuples are meant: nothing is warned about."""
    kept: Any = None

    def read(step: int, embeds: torch.Tensor, new: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        past = 0 if step == 0 else embeds.shape[1]
        given = torch.cat([embeds, new], 1) if step == 0 else new
        outputs = model.language_model.model(
            inputs_embeds=given,
            attention_mask=mask,
            position_ids=new_positions(past, given.shape[1]),
            past_key_values=kept,
            use_cache=True,
        )
        if step == 0:
            length = embeds.shape[1]
            layers = outputs.past_key_values.to_legacy_cache()
            kept = tuple((k[:, :, :length], v[:, :, :length]) for k, v in layers)
        return outputs.last_hidden_state

    with warned(CacheMisuseWarning) as texts:
        assert relative_error(loop(model, read), expected) <= SAME
    assert texts == []


def test_a_prompt_that_is_read_beforehand(model, expected):
    """The prefix alone in a call of its own, and then every step on a copy of its cache."""
    prefix: Any = None

    def read(step: int, embeds: torch.Tensor, new: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        nonlocal prefix
        length = embeds.shape[1]
        if step == 0:
            first = model.language_model.model(inputs_embeds=embeds, attention_mask=mask[:, :length], use_cache=True)
            prefix = first.past_key_values
        outputs = model.language_model.model(
            inputs_embeds=new,
            attention_mask=mask,
            position_ids=new_positions(length, new.shape[1]),
            past_key_values=prefix,
            use_cache=True,
        )
        prefix.crop(length)
        return outputs.last_hidden_state

    with on_the_engine(), warned(CacheMisuseWarning) as texts:
        assert relative_error(loop(model, read), expected) <= SAME
    assert texts == []


def test_full_inputs_on_a_cached_prefix_are_told(model, expected):
    """The first wrong program: the prompt is fed again on top of its own keys and values, with the mask of one
    sequence. The cache is left aside, and what is drawn is right."""
    kept: Any = None

    def read(step: int, embeds: torch.Tensor, new: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        outputs = model.language_model.model(
            inputs_embeds=torch.cat([embeds, new], 1), attention_mask=mask, past_key_values=kept, use_cache=True
        )
        if step == 0:
            kept = outputs.past_key_values
            kept.crop(embeds.shape[1])
        return outputs.last_hidden_state

    with warned(CacheMisuseWarning) as texts:
        drawn = loop(model, read)
    assert len(set(texts)) == 1
    length = len(IDS) - 1
    assert f"follow {length} cached tokens" in texts[0]
    assert "would see the prompt twice" in texts[0]
    assert "[t, z]" in texts[0]
    assert relative_error(drawn, expected) <= SAME


def test_full_inputs_whose_mask_was_stretched_are_told(model, expected):
    """The same with a mask that was made to fit: it is computed as it was asked for, which is something else."""
    kept: Any = None

    def read(step: int, embeds: torch.Tensor, new: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        stretched = mask if step == 0 else torch.cat([torch.ones_like(mask[:, : embeds.shape[1]]), mask], 1)
        outputs = model.language_model.model(
            inputs_embeds=torch.cat([embeds, new], 1), attention_mask=stretched, past_key_values=kept, use_cache=True
        )
        kept = outputs.past_key_values
        kept.crop(embeds.shape[1])
        return outputs.last_hidden_state

    with warned(CacheMisuseWarning) as texts:
        drawn = loop(model, read)
    assert len(set(texts)) == 1
    assert "would see the prompt twice" in texts[0]
    assert "computed as it stands" in texts[0]
    assert relative_error(drawn, expected) > 1e-3


def test_a_cache_that_is_iterated_as_a_tuple_is_told(model, expected):
    """The second wrong program: `for k, v in outputs.past_key_values`, slices of which are fed with full inputs."""
    kept: Any = None

    def read(step: int, embeds: torch.Tensor, new: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        outputs = model.language_model.model(
            inputs_embeds=torch.cat([embeds, new], 1), attention_mask=mask, past_key_values=kept, use_cache=True
        )
        if step == 0:
            length = embeds.shape[1]
            kept = tuple((k[:, :, :length], v[:, :, :length]) for k, v in outputs.past_key_values)
        return outputs.last_hidden_state

    with warned(CacheMisuseWarning) as texts:
        drawn = loop(model, read)
    assert ["iterated as if it were a tuple" in text for text in dict.fromkeys(texts)] == [True, False]
    assert "would see the prompt twice" in list(dict.fromkeys(texts))[1]
    assert relative_error(drawn, expected) <= SAME
