"""Other habits of programs around the official classes, each in a few lines: right everywhere, fast where eligible."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.compat.diffusers import AutoencoderKL
from flashjanus.compat.janusflow import MultiModalityCausalLM, VLChatProcessor, load_pil_images
from flashjanus.compat.outputs import ReferencePathWarning
from official_calls import evaluated, on_the_engine, small_official, velocity, warned
from PIL import Image
from small_model import LATENT, normal
from transformers import TextIteratorStreamer

PICTURE = Image.fromarray(np.random.RandomState(0).randint(0, 256, (48, 64, 3), dtype=np.uint8))
QUESTIONS = ["What is it?", "Which color does the larger of the two shapes on the left have?"]
NEW = 12
NOISE = normal(2, 2, *LATENT)


@pytest.fixture(scope="module")
def processor(untrained_folder: Path) -> VLChatProcessor:
    return VLChatProcessor.from_pretrained(untrained_folder)


@pytest.fixture(scope="module")
def vl_gpt(untrained_folder: Path) -> MultiModalityCausalLM:
    return MultiModalityCausalLM.from_pretrained(untrained_folder, trust_remote_code=True).float()


def conversation(question: str) -> list[dict]:
    return [
        {"role": "User", "content": f"<image_placeholder>\n{question}", "images": [PICTURE]},
        {"role": "Assistant", "content": ""},
    ]


def prepared(processor: VLChatProcessor, question: str = QUESTIONS[0]):
    asked = conversation(question)
    return processor(conversations=asked, images=load_pil_images(asked)).to("cpu", dtype=torch.float32)


def options(processor: VLChatProcessor, **more) -> dict:
    eos = processor.tokenizer.eos_token_id
    return dict(pad_token_id=eos, bos_token_id=processor.tokenizer.bos_token_id, eos_token_id=eos, **more)


@torch.inference_mode()
def answered(vl_gpt, processor, inputs, **more) -> list[str]:
    embeds = vl_gpt.prepare_inputs_embeds(**inputs)
    chosen = options(processor, **{"max_new_tokens": NEW, "do_sample": False, "use_cache": True} | more)
    ids = vl_gpt.language_model.generate(inputs_embeds=embeds, attention_mask=inputs.attention_mask, **chosen)
    return processor.tokenizer.batch_decode(ids.tolist(), skip_special_tokens=True)


def test_an_answer_is_that_of_the_engines_own_interface(vl_gpt, processor, untrained: JanusFlow):
    content = [{"type": "image", "image": PICTURE}, {"type": "text", "text": QUESTIONS[0]}]
    expected = untrained.chat([{"role": "user", "content": content}], max_new_tokens=NEW)
    with on_the_engine():
        assert answered(vl_gpt, processor, prepared(processor)) == [expected]


def test_a_streamer_in_a_thread(vl_gpt, processor):
    inputs = prepared(processor)
    [expected] = answered(vl_gpt, processor, inputs, max_new_tokens=NEW)
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    more = options(processor, max_new_tokens=NEW, do_sample=False, streamer=streamer)
    with torch.inference_mode():
        embeds = vl_gpt.prepare_inputs_embeds(**inputs)
    asked = dict(inputs_embeds=embeds, attention_mask=inputs.attention_mask, **more)
    thread = threading.Thread(target=vl_gpt.language_model.generate, kwargs=asked)
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == expected
    assert len(pieces) > 2


def test_a_streamer_ends_where_the_call_fails(vl_gpt, processor):
    streamer = TextIteratorStreamer(processor.tokenizer, timeout=60)

    def broken(ids, scores):
        raise RuntimeError("a criterion of the caller's")

    inputs = prepared(processor)
    with pytest.raises(RuntimeError, match="of the caller's"):
        answered(vl_gpt, processor, inputs, streamer=streamer, stopping_criteria=[broken])
    assert len("".join(streamer)) < 100


def test_without_a_cache_and_beyond_the_context(vl_gpt, processor):
    """`use_cache=False` changes nothing, and an answer that is to be longer than the context ends with it."""
    inputs = prepared(processor)
    limit = vl_gpt.config.language_config.max_position_embeddings
    room = limit + 1 - inputs.input_ids.shape[1]
    with torch.inference_mode():
        embeds = vl_gpt.prepare_inputs_embeds(**inputs)
    ask = dict(inputs_embeds=embeds, attention_mask=inputs.attention_mask, eos_token_id=None, pad_token_id=0)
    with pytest.warns(UserWarning, match=rf"context of {limit} tokens has room for only {room}"):
        ids = vl_gpt.language_model.generate(**ask, use_cache=False, max_new_tokens=10 * limit)
    assert ids.shape == (1, room)
    short = vl_gpt.language_model.generate(**ask, use_cache=True, max_new_tokens=NEW)
    assert torch.equal(short, ids[:, :NEW])


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_of_mixed_lengths_padded_on_either_side(vl_gpt, processor, side):
    """A processor pads on the left; code that pads on the right gives the same answers."""
    alone = [answered(vl_gpt, processor, prepared(processor, question))[0] for question in QUESTIONS]
    asked = [conversation(question) for question in QUESTIONS]
    ones = [processor.process_one(conversations=one, images=load_pil_images(one)) for one in asked]
    batch = processor.batchify(ones).to("cpu", dtype=torch.float32)
    if side == "right":
        for row, one in enumerate(ones):
            shift = batch.input_ids.shape[1] - len(one)
            for name in ("input_ids", "attention_mask", "images_seq_mask"):
                batch[name][row] = batch[name][row].roll(-shift)
    with on_the_engine():
        assert answered(vl_gpt, processor, batch) == alone


def test_skips_that_are_listed_and_skips_that_are_used_up():
    """`list(hs)` for the decoder keeps hs for another call; without it, the decoder pops what it takes."""
    model, z = small_official(), normal(3, 2, *LATENT)
    with torch.inference_mode():
        hs, t_emb, image = evaluated(model, z, 100.0)
        assert isinstance(hs, list)
        count = len(hs)
        first, second = (velocity(model, image, hs, t_emb) for _ in range(2))
        assert torch.equal(first, second)
        assert len(hs) == count
        h = model.vision_gen_dec_aligner(model.vision_gen_dec_aligner_norm(image))
        h = h.view(2, model._parsed.grid, -1, h.shape[-1]).permute(0, 3, 1, 2)
        assert torch.equal(model.vision_gen_dec_model(h, hs, t_emb), first)
        assert len(hs) < count


def test_latents_of_another_size_are_drawn_on_torch():
    model = small_official()
    z = normal(3, 1, LATENT[0], 12, 16)
    with torch.inference_mode(), warned(ReferencePathWarning) as texts:
        encoded, t_emb, hs = model.vision_gen_enc_model(z, torch.full((1,), 100.0))
        assert encoded.shape[2:] == (6, 8)
        tokens = model.vision_gen_enc_aligner(encoded.flatten(2).transpose(1, 2))
        outputs = model.language_model.model(inputs_embeds=torch.cat([t_emb[:, None], tokens], 1))
        h = model.vision_gen_dec_aligner(model.vision_gen_dec_aligner_norm(outputs.last_hidden_state[:, 1:]))
        v = model.vision_gen_dec_model(h.transpose(1, 2).unflatten(2, (6, 8)), hs, t_emb)
    assert v.shape == z.shape
    assert bool(v.isfinite().all())
    assert [text.split(":")[1] for text in texts] == [
        " the engine takes 8 x 8, got 12 x 16.",
        " the engine takes 4 x 4, got 6 x 8.",
    ]


def everything() -> list[torch.Tensor]:
    """What loading and each call give, on the engine and on torch, of inputs that lie on the CPU."""
    cpu = dict(device="cpu", dtype=torch.float32)
    vl_gpt = MultiModalityCausalLM.from_pretrained("shapes", torch_dtype=torch.float32)
    vae, own = AutoencoderKL.from_pretrained("shapes"), VLChatProcessor.from_pretrained("shapes")
    inputs, t = prepared(own), torch.full((2,), 100.0, **cpu)
    mask = torch.ones(2, 17, device="cpu", dtype=torch.long)
    found = []
    for _ in range(2):
        with torch.inference_mode():
            embeds = vl_gpt.prepare_inputs_embeds(**inputs)
            ask = dict(inputs_embeds=embeds, attention_mask=inputs.attention_mask, **options(own, max_new_tokens=4))
            torch.manual_seed(1)
            found += [
                vl_gpt.language_model.generate(**ask, do_sample=drawn, temperature=2.0) for drawn in (False, True)
            ]
            hs, t_emb, image = evaluated_at(vl_gpt, NOISE, t)
            new = torch.cat([t_emb[:, None], image], 1)
            outputs = vl_gpt.language_model.model(inputs_embeds=new, attention_mask=mask, use_cache=True)
            cache = outputs.past_key_values
            more = vl_gpt.language_model.model(inputs_embeds=new, past_key_values=cache).last_hidden_state
            found += [more, velocity(vl_gpt, outputs.last_hidden_state, hs, t_emb), vae.decode(NOISE).sample]
            found.append(vae.encode(found[-1]).latent_dist.sample(torch.Generator("cpu").manual_seed(0)))
        for module in (*vl_gpt.modules(), *vae.modules()):  # the second time on torch
            module.register_forward_hook(lambda *args: None)
    return found


def evaluated_at(model, z: torch.Tensor, t: torch.Tensor):
    encoded, t_emb, hs = model.vision_gen_enc_model(z, t)
    return hs, t_emb, model.vision_gen_enc_aligner(encoded.flatten(2).transpose(1, 2))


@pytest.mark.filterwarnings("ignore::flashjanus.compat.outputs.ReferencePathWarning")
def test_a_default_device_and_dtype_that_are_set_globally():
    """ "meta" stands for any device but the one that the model and its inputs lie on: nothing must be made there."""
    expected = everything()
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    try:
        found = everything()
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert [torch.equal(got, due) for got, due in zip(found, expected, strict=True)] == [True] * 12


def test_a_picture_is_encoded_to_latents_and_back():
    """`vae.encode(...).latent_dist.sample()`, as scripts that edit or measure do."""
    vae = AutoencoderKL.from_pretrained("shapes")
    pixels = torch.full((1, 3, 64, 64), -1.0)
    pixels[:, 0, 16:48, 16:48] = 1.0
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("error")
        z = vae.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(0)) * vae.config.scaling_factor
        image = vae.decode(z / vae.config.scaling_factor)[0]
    assert z.shape == (1, 4, 8, 8)
    assert float(torch.corrcoef(torch.stack([image.flatten(), pixels.flatten()]))[0, 1]) > 0.95
