"""Keys and values in the hands of a program: right ways to go on with them, and the wrong ones that circulate."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from flashjanus.compat.cache import Cache
from flashjanus.compat.janusflow import MultiModalityCausalLM
from flashjanus.compat.outputs import CacheMisuseWarning
from flashjanus.errors import InputError
from official_calls import embedded, evaluated, official_loop, small_official, velocity, warned
from small_model import LATENT, normal, prompt, relative_error

NEAR = 2e-5
IDS = torch.tensor([[0, 4, 9, 30, 22, 17, 3], [0, 5, 6, 7, 8, 9, 10]])


class Foreign:
    """A cache of another library: transformers' DynamicCache, as far as its callers know it."""

    def __init__(self) -> None:
        self.key_cache: list[torch.Tensor] = []
        self.value_cache: list[torch.Tensor] = []

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.key_cache[0].shape[2] if self.key_cache else 0

    def update(self, k: torch.Tensor, v: torch.Tensor, layer_idx: int, cache_kwargs: Any = None) -> Any:
        if layer_idx == len(self.key_cache):
            self.key_cache.append(k)
            self.value_cache.append(v)
        else:
            self.key_cache[layer_idx] = torch.cat([self.key_cache[layer_idx], k], 2)
            self.value_cache[layer_idx] = torch.cat([self.value_cache[layer_idx], v], 2)
        return self.key_cache[layer_idx], self.value_cache[layer_idx]


@torch.no_grad()
def whole(model: MultiModalityCausalLM, mask: torch.Tensor | None = None) -> torch.Tensor:
    return model.language_model.model(IDS, attention_mask=mask, use_cache=False).last_hidden_state


@torch.no_grad()
@pytest.mark.parametrize("made", ["ours", "legacy", "foreign", "empty"])
def test_tokens_read_after_a_cache_are_as_read_at_once(either, slow, made):
    language = either.language_model.model
    first = language(IDS[:, :4], use_cache=True, past_key_values=Foreign() if made == "foreign" else Cache())
    past = first.past_key_values
    given = past.to_legacy_cache() if made == "legacy" else past
    second = language(IDS[:, 4:6], past_key_values=given, use_cache=True)
    third = language(IDS[:, 6:], past_key_values=second.past_key_values, use_cache=True)
    got = torch.cat([out.last_hidden_state for out in (first, second, third)], 1)
    assert relative_error(got, whole(slow)) <= NEAR
    if made in ("ours", "foreign"):
        assert third.past_key_values is past
    assert third.past_key_values.get_seq_length() == 7


@torch.no_grad()
def test_keys_and_values_are_those_of_torch(model, slow):
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 0, 0, 1, 1, 1, 0]])
    fast, exact = (m.language_model.model(IDS, attention_mask=mask).past_key_values for m in (model, slow))
    assert len(fast) == 2
    for layer in range(2):
        for got, expected in zip(fast[layer], exact[layer], strict=True):
            seen = mask[:, None, :, None].bool().expand_as(expected)
            assert relative_error(got[seen], expected[seen]) <= NEAR
    assert fast.layers[1].keys is fast.key_cache[1]


@torch.no_grad()
@pytest.mark.parametrize(
    "mask",
    [
        [[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]],
        [[1, 1, 1, 1, 1, 1, 1], [1, 0, 0, 1, 1, 1, 1]],
        [[1, 1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 0, 1]],
    ],
)
def test_hidden_tokens_may_stand_anywhere(either, slow, mask):
    mask = torch.tensor(mask)
    language, expected = either.language_model.model, whole(slow, mask)
    first = language(IDS[:, :4], attention_mask=mask[:, :4], use_cache=True)
    second = language(IDS[:, 4:], attention_mask=mask, past_key_values=first.past_key_values, use_cache=True)
    got = torch.cat([first.last_hidden_state, second.last_hidden_state], 1)
    seen = mask.bool()
    assert relative_error(got[seen], expected[seen]) <= NEAR


@torch.no_grad()
def test_a_cache_that_is_cropped_or_copied_goes_on_alone(either, slow):
    language, expected = either.language_model.model, whole(slow)
    past = language(IDS, use_cache=True).past_key_values
    other = copy.deepcopy(past)
    past.crop(-3)
    other.crop(5)
    assert (past.get_seq_length(), other.get_seq_length()) == (4, 5)
    wrong = language(IDS[:, :3], past_key_values=past, use_cache=True)  # writes where the tail was
    assert wrong.past_key_values.get_seq_length() == 7
    got = language(IDS[:, 5:], past_key_values=other, use_cache=True).last_hidden_state
    assert relative_error(got, expected[:, 5:]) <= NEAR
    assert relative_error(whole(either), expected) <= NEAR


@torch.no_grad()
def test_what_a_program_holds_is_not_written_by_later_calls(model):
    language = model.language_model.model
    held = language(IDS, use_cache=True).past_key_values
    before = [k.clone() for k in copy.deepcopy(held).key_cache]
    other = IDS.clone()
    other[:, 3:] += 1
    language(other, use_cache=True)
    assert all(torch.equal(a, b) for a, b in zip(held.key_cache, before, strict=True))


@torch.inference_mode()
@pytest.mark.parametrize("legacy", [False, True])
def test_a_loop_that_crops_its_prefix_draws_the_same(either, model, legacy):
    """Later steps feed [t, z] alone, with positions that go on after the prompt."""
    ids, z = torch.tensor(prompt(3, 9)), normal(1, 1, *LATENT)
    expected = official_loop(model, ids, z, 3, 2.0)
    embeds, mask = embedded(either, ids, 1)
    length, past = embeds.shape[1], None
    with warned(CacheMisuseWarning) as texts:
        for step in range(3):
            hs, t_emb, image = evaluated(either, torch.cat([z, z]), step / 3 * 1000.0)
            fed = [t_emb.unsqueeze(1), image] if past is not None else [embeds, t_emb.unsqueeze(1), image]
            fed = torch.cat(fed, 1)
            first = 0 if past is None else length
            out = either.language_model.model(
                inputs_embeds=fed,
                attention_mask=mask,
                position_ids=torch.arange(first, first + fed.shape[1])[None],
                past_key_values=past,
                use_cache=True,
            )
            past = out.past_key_values
            past.crop(length)
            past = past.to_legacy_cache() if legacy else past
            cond, uncond = velocity(either, out.last_hidden_state, hs, t_emb).chunk(2)
            z = z + (2.0 * cond - uncond) / 3
    assert relative_error(z, expected) <= NEAR
    assert texts == []


@torch.no_grad()
def test_the_whole_input_on_top_of_its_cached_prefix_is_named(model):
    language = model.language_model.model
    embeds = model.language_model.get_input_embeddings()(IDS)
    past = language(inputs_embeds=embeds, use_cache=True).past_key_values
    past.crop(4)
    with warned(CacheMisuseWarning) as texts:
        out = language(inputs_embeds=embeds, attention_mask=torch.ones(2, 7), past_key_values=past, use_cache=True)
    assert "7 embeddings follow 4 cached tokens" in texts[0]
    assert "The cache is ignored" in texts[0]
    assert relative_error(out.last_hidden_state, whole(model)) <= NEAR
    with warned(CacheMisuseWarning) as texts:
        language(inputs_embeds=embeds, attention_mask=torch.ones(2, 11), past_key_values=past, use_cache=True)
    assert "The call is computed as it stands" in texts[0]


@torch.no_grad()
def test_a_cache_that_is_iterated_is_named(model):
    past = model.language_model.model(IDS, use_cache=True).past_key_values
    with pytest.warns(CacheMisuseWarning, match="iterated as if it were a tuple"):
        pairs = [(k, v) for k, v in past]
    assert len(pairs) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            dict(attention_mask=torch.ones(2, 5)),
            r"attention_mask: expected \(2, 7\) over past and new tokens, got \[2, 5\]",
        ),
        (dict(position_ids=torch.arange(5)[None]), r"position_ids: expected \(2, 7\) or \(1, 7\), got \[1, 5\]"),
        (dict(past_key_values=3), "past_key_values: expected None, a cache"),
        (dict(inputs_embeds=torch.zeros(2, 7, 64)), "expected either input_ids or inputs_embeds, got both"),
    ],
)
def test_what_it_refuses(model, options, words):
    with pytest.raises(InputError, match=words):
        model.language_model.model(IDS, **options)


@torch.no_grad()
def test_positions_beyond_the_context_run_on_torch(slow):
    model = small_official()
    far = torch.arange(200, 207)[None]
    got = model.language_model.model(IDS, position_ids=far).last_hidden_state
    assert relative_error(got, slow.language_model.model(IDS, position_ids=far).last_hidden_state) <= NEAR
    assert relative_error(got, whole(slow)) <= 1e-4  # rotary positions are relative
