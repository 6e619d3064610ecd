"""Bad input at the tensor level: one typed error that says what was expected and what came."""

from __future__ import annotations

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.errors import CheckpointError, DeviceError, InputError, NonFiniteError
from flashjanus.execution.text import ImageTokens
from small_model import (
    END,
    FEATURES,
    IMAGE,
    IMAGE_SIZE,
    LATENT,
    START,
    VOCABULARY,
    normal,
    prompt,
    small_config,
    small_state,
)

TOKENS = ImageTokens(start=START, image=IMAGE)
ROOM = 128 - 1 - 16
"""Positions of the small model without the time token and the image."""
IDS = torch.tensor([[0, 11, 12, 13, 14], [0, 21, 22, 23, 24]])
WITH_IMAGE = torch.tensor([[0, 5, START, *[IMAGE] * FEATURES, END, 6]])
PIXELS = normal(9, 1, 1, 3, IMAGE_SIZE, IMAGE_SIZE)


@pytest.fixture(scope="module")
def model() -> JanusFlow:
    config = small_config()
    return JanusFlow.from_state_dict(config, small_state(config), device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        (dict(device="cuda"), DeviceError, ["cuda", "cpu"]),
        (dict(device="toaster"), DeviceError, ["toaster", "cpu"]),
        (dict(dtype="int8"), InputError, ["dtype", "int8", "bfloat16"]),
        (dict(dtype=torch.float64), InputError, ["dtype", "float64", "float32"]),
        (dict(numerics="fast"), InputError, ["numerics", "fast", "official"]),
        (dict(dtype="float16", numerics="official"), InputError, ["numerics", "official", "float16"]),
        (dict(quantization="int3"), InputError, ["quantization", "int8", "int3"]),
        (dict(vae_config={}), InputError, ["vae_config", "vae_state_dict", "both"]),
        (dict(vae_state_dict={}), InputError, ["vae_config", "vae_state_dict", "both"]),
    ],
)
def test_options_that_cannot_be_met(options, kind, words):
    config = small_config()
    options = {"device": "cpu", **options}
    with pytest.raises(kind) as error:
        JanusFlow.from_state_dict(config, small_state(config), **options)
    assert all(word in str(error.value) for word in words)


def test_a_state_dict_that_does_not_fit_is_named():
    state = small_state(small_config())
    del state["beg_of_und_embed"]
    with pytest.raises(CheckpointError, match="beg_of_und_embed"):
        JanusFlow.from_state_dict(small_config(), state, device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(program="train"), ["program", "train", "flow_step"]),
        (dict(program="decode_latents"), ["VAE", "vae="]),
        (dict(program="prefill", rows=0), ["rows", "1", "0"]),
        (dict(program="prefill", prompt_tokens=129), ["prompt_tokens", "128", "129"]),
        (dict(program="flow_step", steps=1001), ["steps", "1000", "1001"]),
    ],
)
def test_plans_that_cannot_be(model, options, words):
    with pytest.raises(InputError) as error:
        model.plan(**options)
    assert all(word in str(error.value) for word in words)


NOISE = normal(1, 1, *LATENT)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(noise=NOISE[0]), ["noise", "(1, 4, 8, 8)", "(4, 8, 8)"]),
        (dict(noise=NOISE[:, :, :7]), ["noise", "(1, 4, 8, 8)", "(1, 4, 7, 8)"]),
        (dict(noise=normal(1, 2, *LATENT)), ["noise", "(1, 4, 8, 8)", "(2, 4, 8, 8)"]),
        (dict(noise=NOISE.long()), ["noise", "float32", "int64"]),
        (dict(noise=NOISE.double()), ["noise", "float32", "float64"]),
        (dict(noise=NOISE.numpy()), ["noise", "torch.Tensor", "ndarray"]),
        (dict(noise=NOISE.index_fill(3, torch.tensor([2]), float("nan"))), ["noise", "finite", "NaN"]),
        (dict(noise=NOISE / 0), ["noise", "finite", "inf"]),
        (dict(num_inference_steps=0), ["num_inference_steps", "1 to 1000", "got 0"]),
        (dict(num_inference_steps=-1), ["num_inference_steps", "1 to 1000", "got -1"]),
        (dict(num_inference_steps=10**6), ["num_inference_steps", "1 to 1000", "got 1000000"]),
        (dict(num_inference_steps=True), ["num_inference_steps", "integer", "True"]),
        (dict(num_inference_steps=1.5), ["num_inference_steps", "integer", "1.5"]),
        (dict(num_inference_steps="4"), ["num_inference_steps", "integer", "'4'"]),
        (dict(num_inference_steps=[2, 2]), ["num_inference_steps", "one per row", "got 2"]),
        (dict(guidance_scale=float("nan")), ["guidance_scale", "finite", "nan"]),
        (dict(guidance_scale=float("inf")), ["guidance_scale", "finite", "inf"]),
        (dict(guidance_scale=-0.1), ["guidance_scale", "0", "-0.1"]),
        (dict(guidance_scale=1e30), ["guidance_scale", "1e+30"]),
        (dict(guidance_scale=10**400), ["guidance_scale", "1000"]),
        (dict(guidance_scale="2"), ["guidance_scale", "number", "'2'"]),
        (dict(guidance_scale=[1.0, 2.0]), ["guidance_scale", "one per row", "got 2"]),
        (dict(input_ids=[]), ["input_ids", "at least 1", "got []"]),
        (dict(input_ids=None), ["input_ids", "at least 1", "got None"]),
        (dict(input_ids=7), ["input_ids", "at least 1", "got 7"]),
        (dict(input_ids=torch.tensor(7)), ["input_ids", "(any, any)", "got ()"]),
        (dict(input_ids=torch.tensor([0, 7])), ["input_ids", "(any, any)", "got (2,)"]),
        (dict(input_ids=[7]), ["input_ids[0]", "token ids", "got 7"]),
        (dict(input_ids=["abc"]), ["input_ids[0]", "'a'"]),
        (dict(input_ids=[[]]), ["input_ids[0]", "2 to", "got 0"]),
        (dict(input_ids=[[0]]), ["input_ids[0]", "2 to", "got 1"]),
        (dict(input_ids=[prompt(1, ROOM + 1)]), ["input_ids[0]", f"to {ROOM + 1}", f"got {ROOM + 2}"]),
        (dict(input_ids=[[0, -1, 5]]), ["token id", f"0 to {VOCABULARY - 1}", "-1"]),
        (dict(input_ids=[[0, VOCABULARY, 5]]), ["token id", f"0 to {VOCABULARY - 1}", str(VOCABULARY)]),
        (dict(input_ids=[[0, 1.5, 5]]), ["token id", "integer", "1.5"]),
        (dict(input_ids=[[0, True, 5]]), ["token id", "integer", "True"]),
    ],
)
def test_what_sample_latents_refuses(model, change, words):
    with pytest.raises(InputError) as error:
        model.sample_latents(**{"input_ids": [prompt(1, 4)], "noise": NOISE, "num_inference_steps": 2, **change})
    assert all(word in str(error.value) for word in words), str(error.value)


def test_the_longest_prompt_runs(model):
    assert model.sample_latents([prompt(1, ROOM)], NOISE, num_inference_steps=1).isfinite().all()


MASK = torch.ones(2, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(input_ids=IDS.tolist()), ["input_ids", "torch.Tensor", "list"]),
        (dict(input_ids=torch.tensor(7)), ["input_ids", "(any, any)", "()"]),
        (dict(input_ids=IDS[0]), ["input_ids", "(any, any)", "(5,)"]),
        (dict(input_ids=IDS.float()), ["input_ids", "int64", "float32"]),
        (dict(input_ids=IDS[:, :0]), ["input_ids", "(2, 0)"]),
        (dict(input_ids=IDS - 1), ["token id", f"0 to {VOCABULARY - 1}", "-1"]),
        (dict(input_ids=IDS + VOCABULARY), ["token id", f"0 to {VOCABULARY - 1}", str(VOCABULARY)]),
        (dict(input_ids=torch.full((1, 129), 3)), ["input_ids[0]", "1 to 128", "129"]),
        (dict(attention_mask=MASK[:, :4]), ["attention_mask", "(2, 5)", "(2, 4)"]),
        (dict(attention_mask=MASK[0]), ["attention_mask", "(2, 5)", "(5,)"]),
        (dict(attention_mask=MASK.float()), ["attention_mask", "int64", "float32"]),
        (dict(attention_mask=MASK.tolist()), ["attention_mask", "torch.Tensor", "list"]),
        (dict(attention_mask=MASK * torch.tensor([[0], [1]])), ["input_ids[0]", "1 to", "got 0", "attention_mask"]),
        (dict(pixel_values=PIXELS), ["pixel_values", "(2, any, 3, 32, 32)", "(1, 1, 3, 32, 32)"]),
        (dict(pixel_values=PIXELS[0].expand(2, 3, 32, 32)), ["pixel_values", "(2, any, 3, 32, 32)", "(2, 3, 32, 32)"]),
        (dict(input_ids=WITH_IMAGE, pixel_values=PIXELS[..., :31]), ["pixel_values", "(1, any, 3, 32, 32)"]),
        (dict(input_ids=WITH_IMAGE, pixel_values=PIXELS * float("nan")), ["pixel_values", "finite", "NaN"]),
        (dict(input_ids=WITH_IMAGE, pixel_values=(PIXELS * 9).byte()), ["pixel_values", "float32", "uint8"]),
        (dict(input_ids=WITH_IMAGE, pixel_values=PIXELS, image_tokens=None), ["image_tokens", "None"]),
        (
            dict(input_ids=WITH_IMAGE, pixel_values=PIXELS, image_tokens=(1, 2)),
            ["image_tokens", "ImageTokens", "(1, 2)"],
        ),
        (dict(input_ids=WITH_IMAGE), ["pixel_values", "1 image", "got 0"]),
        (dict(input_ids=WITH_IMAGE[:, :-3], pixel_values=PIXELS), ["image", f"{FEATURES}", f"{FEATURES - 1}"]),
        (dict(input_ids=WITH_IMAGE[:, [0, 2, 1, *range(3, 21)]], pixel_values=PIXELS), ["image tags", "other tokens"]),
    ],
)
def test_what_reading_refuses(model, change, words):
    arguments = {"input_ids": IDS, "image_tokens": TOKENS, **change}
    for call in (model.next_token_logits, model.generate_ids):
        with pytest.raises(InputError) as error:
            call(**arguments)
        assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(max_new_tokens=0), ["max_new_tokens", "1", "got 0"]),
        (dict(max_new_tokens=True), ["max_new_tokens", "integer", "True"]),
        (dict(max_new_tokens=2.0), ["max_new_tokens", "integer", "2.0"]),
        (dict(eos_token_id=VOCABULARY), ["eos_token_id", str(VOCABULARY - 1), str(VOCABULARY)]),
        (dict(eos_token_id="</s>"), ["eos_token_id", "integer", "</s>"]),
        (dict(do_sample=True, temperature=-1e-9), ["temperature", "from 0", "-1e-09"]),
        (dict(do_sample=True, temperature=float("nan")), ["temperature", "finite", "nan"]),
        (dict(do_sample=True, top_p=-0.1), ["top_p", "0 to 1", "-0.1"]),
        (dict(do_sample=True, top_p=1.5), ["top_p", "1", "1.5"]),
        (dict(do_sample=True, top_k=-2), ["top_k", "-1", "-2"]),
        (dict(repetition_penalty=0.0), ["repetition_penalty", "0.001", "0.0"]),
        (dict(seed=-1), ["seed", "0", "-1"]),
        (dict(seed=2**63), ["seed", "0", str(2**63)]),
        (dict(seed=1.0), ["seed", "integer", "1.0"]),
    ],
)
def test_what_decoding_refuses(model, options, words):
    with pytest.raises(InputError) as error:
        model.generate_ids(IDS, **options)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_without_a_tokenizer_or_vae(model):
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        model.generate_image("a red circle", output_type="latent")
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        model.chat([{"role": "user", "content": "Hello"}])
    with pytest.raises(InputError, match=r"VAE.*vae="):
        model.generate_image("a red circle")
    with pytest.raises(InputError, match=r"VAE.*vae="):
        model.decode_latents(NOISE)


@pytest.mark.parametrize(
    ("latents", "words"),
    [
        (torch.zeros(4, 8, 8), ["latents", "(any, 4, any, any)", "(4, 8, 8)"]),
        (torch.zeros(1, 3, 8, 8), ["latents", "(any, 4, any, any)", "(1, 3, 8, 8)"]),
        (torch.zeros(0, 4, 8, 8), ["latents", "(0, 4, 8, 8)"]),
        (torch.full((1, 4, 8, 8), float("nan")), ["latents", "finite", "NaN"]),
        (torch.zeros(1, 4, 12, 12, dtype=torch.int64), ["latents", "float32", "int64"]),
    ],
)
def test_what_decode_latents_refuses(untrained, latents, words):
    with pytest.raises(InputError) as error:
        untrained.decode_latents(latents)
    assert all(word in str(error.value) for word in words)


def test_pictures_that_leave_the_range_of_their_dtype_are_no_fault_of_the_request(untrained):
    with pytest.raises(NonFiniteError, match="expected finite pixels"):
        untrained.decode_latents(torch.full((1, 4, 8, 8), 1e38))


@pytest.mark.parametrize("pixels", [torch.zeros(3, 32, 32), torch.zeros(1, 1, 32, 32), torch.zeros(1, 3, 64, 64)])
def test_what_encode_images_refuses(model, pixels):
    with pytest.raises(InputError, match=r"pixel_values: expected shape \(any, 3, 32, 32\)"):
        model.encode_images(pixels)
