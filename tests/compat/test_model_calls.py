"""The official model class: its loop and its answers on the engine, and on torch where something is against it."""

from __future__ import annotations

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.builtin import builtin_folder
from flashjanus.compat import checkpoints
from flashjanus.compat.janusflow import MultiModalityCausalLM
from flashjanus.compat.outputs import ReferencePathWarning
from flashjanus.errors import CheckpointError, InputError
from flashjanus.execution.text import ImageTokens
from official_calls import conversations, evaluated, official_loop, on_the_engine, on_torch, small_official, warned
from small_model import IMAGE, LATENT, START, normal, prompt, relative_error, small_config, small_state

NEAR = 2e-5
MANIFEST = Path(__file__).parents[1] / "golden" / "thin.manifest.json"


@pytest.fixture(scope="module")
def model() -> MultiModalityCausalLM:
    return small_official()


@pytest.fixture(scope="module")
def native() -> JanusFlow:
    config = small_config()
    return JanusFlow.from_state_dict(config, small_state(config), device="cpu", dtype="float32")


def test_its_names_and_shapes_are_the_official_ones():
    config = json.loads((MANIFEST.parent / "thin.config.json").read_text(encoding="utf-8"))
    model = checkpoints.empty(MultiModalityCausalLM, config)
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == manifest


@pytest.mark.parametrize(("guidance", "images"), [(2.0, 2), (5.0, 1)])
def test_the_official_loop_draws_what_the_engine_draws(model, native, guidance, images):
    ids, noise = prompt(3, 9), normal(1, images, *LATENT)
    with on_the_engine():
        got = official_loop(model, torch.tensor(ids), noise, 4, guidance)
    expected = native.sample_latents([ids] * images, noise, guidance, 4)
    assert relative_error(got, expected) <= NEAR


def test_a_loop_finds_its_prompt_again(model):
    ids, noise = torch.tensor(prompt(5, 12)), normal(2, 1, *LATENT)
    first = official_loop(model, ids, noise, 3, 2.0)
    recall = model.core.engine.recall
    hits, reused = recall.hits, recall.reused
    assert torch.equal(official_loop(model, ids, noise, 3, 2.0), first)
    assert recall.hits - hits == 3  # and the second run's first step finds the prompt, too
    assert recall.reused - reused >= 3 * (len(ids) - 1)


def test_two_threads_draw_and_write_what_each_does_alone(model):
    def draw(seed: int) -> torch.Tensor:
        return official_loop(model, torch.tensor(prompt(seed, 9 + seed)), normal(seed, 1, *LATENT), 3, 2.0)

    def write(seed: int) -> torch.Tensor:
        return model.language_model.generate(torch.tensor([prompt(seed, 6 + seed)]), max_new_tokens=8)

    alone = [draw(1), draw(2), write(1), write(2)]
    with ThreadPoolExecutor(4) as pool:
        together = [pool.submit(run, seed) for _ in range(3) for run in (draw, write) for seed in (1, 2)]
        for place, future in enumerate(together):
            expected = alone[place % 4]
            assert relative_error(future.result().float(), expected.float()) <= NEAR


def test_torch_draws_the_same(model):
    ids, noise = torch.tensor(prompt(3, 9)), normal(1, 1, *LATENT)
    with warned(ReferencePathWarning) as texts:
        got = official_loop(on_torch(model), ids, noise, 3, 2.0)
    assert relative_error(got, official_loop(model, ids, noise, 3, 2.0)) <= NEAR
    assert texts
    assert all("has hooks, and the engine would not call them" in text for text in texts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_it_is_nearer_than_torch_is(model, dtype):
    ids, noise = torch.tensor(prompt(3, 9)), normal(1, 1, *LATENT)
    exact = official_loop(model, ids, noise, 3, 2.0)
    small = small_official(dtype)
    errors = [
        relative_error(official_loop(which, ids, noise.to(dtype), 3, 2.0).float(), exact)
        for which in (small, on_torch(small))
    ]
    assert errors[0] <= 1.5 * errors[1]
    assert errors[0] <= 0.1


@pytest.mark.parametrize("side", ["left", "right"])
def test_conversations_of_mixed_lengths_are_answered_as_alone(model, native, side):
    inputs = conversations(model, side)
    with on_the_engine():
        embeds = model.prepare_inputs_embeds(**inputs)
        ids = model.language_model.generate(
            inputs_embeds=embeds,
            attention_mask=inputs["attention_mask"],
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=1,
            max_new_tokens=9,
            do_sample=False,
            use_cache=True,
        )
    expected = native.generate_ids(
        *(inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")),
        max_new_tokens=9,
        eos_token_id=1,
        image_tokens=ImageTokens(START, IMAGE),
    )
    assert torch.equal(ids, expected)
    other = on_torch(model)
    slow = dict(attention_mask=inputs["attention_mask"], pad_token_id=1, eos_token_id=1, max_new_tokens=9)
    assert torch.equal(other.language_model.generate(inputs_embeds=embeds, **slow), ids)


def test_logits_are_those_of_torch(model):
    ids = torch.tensor([[0, 4, 9, 30, 22], [0, 5, 6, 7, 8]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    fast, slow = (m.language_model(ids, attention_mask=mask, labels=ids) for m in (model, on_torch(model)))
    assert relative_error(fast.logits[mask.bool()], slow.logits[mask.bool()]) <= NEAR
    assert fast["logits"] is fast[1]
    last = model.language_model(ids, attention_mask=mask, num_logits_to_keep=1).logits
    assert relative_error(last, fast.logits[:, -1:]) <= NEAR


def test_hidden_states_and_attentions_come_from_torch(model):
    ids = torch.tensor([[0, 4, 9, 30, 22]])
    with torch.no_grad(), warned(ReferencePathWarning) as texts:
        other = small_official()
        out = other.language_model.model(ids, output_hidden_states=True, output_attentions=True)
    assert texts == ["LlamaModel runs on torch, not on the engine: the hidden states of every layer are requested."]
    assert [h.shape for h in out.hidden_states] == [(1, 5, 64)] * 3
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    assert torch.allclose(out.attentions[0].sum(-1), torch.ones(1, 4, 5))
    assert relative_error(model.language_model.model(ids).last_hidden_state, out.last_hidden_state) <= NEAR


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: model.train(), "training mode"),
        (lambda model: model.language_model.model.layers[1].mlp.register_forward_pre_hook(lambda *a: None), "hooks"),
        (
            lambda model: setattr(
                model.language_model.model.layers[0], "mlp", torch.nn.Sequential(torch.nn.Identity())
            ),
            "language_model.model.layers.0.mlp is a Sequential",
        ),
        (lambda model: model.language_model.lm_head.double(), "expected one dtype on one device"),
    ],
)
def test_what_is_not_eligible_runs_on_torch_and_says_why_once(change, words):
    model = small_official()
    ids = torch.tensor([[0, 4, 9]])
    with torch.no_grad():
        change(model)
        with warned(ReferencePathWarning) as texts:
            model.language_model.model(ids)
            model.language_model.model(ids)
    assert len(texts) == 1
    assert words in texts[0]


def test_a_part_without_its_model_runs_on_torch():
    part = small_official().language_model
    with torch.no_grad(), warned(ReferencePathWarning) as texts:
        part(torch.tensor([[0, 4, 9]]))
    assert "the model that it belongs to was deleted" in texts[0]


def test_a_warning_points_at_the_callers_line():
    model = small_official().train()
    with pytest.warns(ReferencePathWarning) as caught:
        model.language_model.model(torch.tensor([[0, 4]]))
    assert caught[0].filename == __file__


def test_other_latent_sizes_run_on_torch(model):
    with torch.no_grad(), warned(ReferencePathWarning) as texts:
        other = small_official()
        hs, _, tokens = evaluated(other, normal(1, 1, 4, 12, 10), 100.0)
    assert tokens.shape == (1, 30, 64)
    assert hs[0].shape == (1, 16, 6, 5)
    assert "the engine takes 8 x 8, got 12 x 10" in texts[0]


def test_a_decoder_wants_the_skip_of_its_own_step(model):
    hs, t_emb, _ = evaluated(model, normal(1, 1, *LATENT), 100.0)
    h = normal(2, 1, 24, 4, 4)
    first = model.vision_gen_dec_model(h, list(hs), t_emb)
    assert torch.equal(model.vision_gen_dec_model(h, hs, t_emb), first)
    assert hs == []
    with pytest.raises(InputError, match="removes it from the list"):
        model.vision_gen_dec_model(h, hs, t_emb)


def test_weights_that_change_are_those_that_run():
    model, ids = small_official(), torch.tensor([[0, 4, 9, 30]])
    with torch.no_grad():
        before = model.language_model.model(ids).last_hidden_state
        model.language_model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
        model.vision_gen_enc_model.in_conv.weight.data.mul_(1.5)
        after = model.language_model.model(ids).last_hidden_state
        expected = on_torch(model).language_model.model(ids).last_hidden_state
    assert relative_error(after, before) > 1e-3
    assert relative_error(after, expected) <= NEAR


@pytest.mark.parametrize(
    "name", ["language_model.model.layers.1.input_layernorm", "vision_gen_dec_model.mid_block.res_blocks.0.depthwise"]
)
def test_weights_that_change_past_torchs_count_are_those_that_run(name):
    """Of those that the engine has a copy of: in bfloat16 of norms, and of depthwise weights."""
    model, ids = small_official(torch.bfloat16), torch.tensor(prompt(3, 9))
    noise = normal(1, 1, *LATENT).bfloat16()
    before = official_loop(model, ids, noise, 1, 2.0)
    model.get_submodule(name).weight.data *= 2
    after = official_loop(model, ids, noise, 1, 2.0)
    assert relative_error(after, before) > 1e-2
    assert relative_error(after, official_loop(on_torch(model), ids, noise, 1, 2.0)) <= 0.1


def test_copies_and_moves_have_an_engine_of_their_own():
    model, ids = small_official(), torch.tensor([[0, 4, 9, 30]])
    with torch.no_grad():
        exact = model.language_model.model(ids).last_hidden_state
        other = copy.deepcopy(model)
        assert other.core is not model.core
        assert other.language_model.model.core is other.core
        other.language_model.model.norm.weight.mul_(2)
        assert relative_error(other.language_model.model(ids).last_hidden_state, 2 * exact) <= NEAR
        assert relative_error(model.language_model.model(ids).last_hidden_state, exact) <= NEAR
        half = model.to(torch.bfloat16).language_model.model(ids).last_hidden_state
    assert half.dtype is torch.bfloat16
    assert model.dtype is torch.bfloat16
    assert relative_error(half.float(), exact) <= 0.02


def test_a_folder_is_read_and_written_whole(tmp_path, model):
    loaded = MultiModalityCausalLM.from_pretrained(
        builtin_folder("shapes"), trust_remote_code=True, torch_dtype=torch.float32, attn_implementation="eager"
    )
    assert not loaded.training
    assert loaded.dtype is torch.float32
    ids = torch.tensor([[0, 4, 9, 30]])
    with on_the_engine(), torch.no_grad():
        exact = loaded.language_model.model(ids).last_hidden_state
    loaded.save_pretrained(tmp_path / "saved")
    again = MultiModalityCausalLM.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again.language_model.model(ids).last_hidden_state, exact)
    with pytest.raises(InputError, match="load_in_8bit"):
        MultiModalityCausalLM.from_pretrained("shapes", load_in_8bit=True)
    with pytest.raises(CheckpointError, match="no such folder"):
        MultiModalityCausalLM.from_pretrained(tmp_path / "absent")
