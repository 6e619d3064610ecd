"""The public class on a whole model: prompts to images, conversations to answers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.api.janusflow import ROWS_AT_ONCE
from flashjanus.builtin import builtin_folder
from flashjanus.errors import CheckpointError, DeviceError, InputError
from flashjanus.inputs.prompts import encode_generation_prompt
from PIL import Image
from small_model import relative_error

ALONE = 1e-5
PROMPT = "a red circle above a blue square"
STEPS = 3


def latents(model: JanusFlow, prompt=PROMPT, **options) -> torch.Tensor:
    options = {"num_inference_steps": STEPS, "seed": 5, **options}
    return model.generate_image(prompt, output_type="latent", **options).images


ASK = [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (40, 30), "red")}]}]


class TestGenerateImage:
    def test_output_types_show_one_image(self, untrained):
        outputs = {
            kind: untrained.generate_image(PROMPT, num_inference_steps=STEPS, seed=5, output_type=kind)
            for kind in ("pil", "np", "pt", "latent")
        }
        tensor = outputs["pt"].images
        assert tensor.shape == (1, 3, 64, 64)
        assert tensor.dtype is torch.float32
        assert 0 <= float(tensor.min()) < float(tensor.max()) <= 1
        assert outputs["np"].images.shape == (1, 64, 64, 3)
        assert np.array_equal(outputs["np"].images, tensor.permute(0, 2, 3, 1).numpy())
        decoded = untrained.decode_latents(outputs["latent"].images)
        assert torch.equal((decoded.clamp(-1, 1) + 1) / 2, tensor)
        (image,) = outputs["pil"].images
        assert (image.size, image.mode) == ((64, 64), "RGB")
        lost = outputs["np"].images[0] * 255 - np.asarray(image)  # levels are cut off, as officially
        assert -1e-3 < lost.min() < lost.max() < 1 + 1e-3

    def test_timings_add_up(self, untrained):
        timings = untrained.generate_image(PROMPT, num_inference_steps=1).timings
        assert set(timings) == {"prompt", "flow", "decode", "total"}
        assert timings["total"] == pytest.approx(sum(timings[k] for k in ("prompt", "flow", "decode")))
        assert min(timings.values()) >= 0

    def test_seeds(self, untrained):
        out = untrained.generate_image(PROMPT, num_images_per_prompt=2, num_inference_steps=1, seed=5)
        assert out.seeds == [5, 6]
        assert torch.equal(latents(untrained), latents(untrained))
        assert not torch.equal(latents(untrained), latents(untrained, seed=6))
        fresh = [untrained.generate_image(PROMPT, num_inference_steps=1, output_type="latent") for _ in range(2)]
        assert fresh[0].seeds != fresh[1].seeds
        assert torch.equal(fresh[0].images, latents(untrained, num_inference_steps=1, seed=fresh[0].seeds[0]))

    def test_image_i_is_drawn_from_seed_plus_i_as_alone(self, untrained):
        prompts = [PROMPT, "a star"]
        out = untrained.generate_image(
            prompts, num_images_per_prompt=2, num_inference_steps=STEPS, seed=5, output_type="latent"
        )
        assert out.seeds == [5, 6, 7, 8]
        for i, z in enumerate(out.images):
            assert relative_error(z, latents(untrained, prompts[i // 2], seed=5 + i)[0]) <= ALONE

    def test_more_images_than_are_drawn_at_once(self, untrained):
        count = ROWS_AT_ONCE + 1
        seen = []

        def watch(model, step, t, state):
            seen.append((step, len(state["latents"])))
            return state

        many = latents(untrained, num_images_per_prompt=count, num_inference_steps=2, callback_on_step_end=watch)
        assert seen == [(0, ROWS_AT_ONCE), (1, ROWS_AT_ONCE), (0, 1), (1, 1)]
        assert len(many) == count
        for i in (0, ROWS_AT_ONCE - 1, ROWS_AT_ONCE):
            assert relative_error(many[i], latents(untrained, num_inference_steps=2, seed=5 + i)[0]) <= ALONE

    def test_it_is_sample_latents_on_its_prompt_and_noise(self, untrained):
        ids = encode_generation_prompt(PROMPT, untrained.tokenizer)
        noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(5))
        assert torch.equal(latents(untrained), untrained.sample_latents([ids], noise, 2.0, STEPS))

    def test_guidance_one_ignores_what_guidance_would_add(self, untrained):
        assert not torch.equal(latents(untrained, guidance_scale=1.0), latents(untrained, guidance_scale=2.0))

    def test_callback(self, untrained):
        calls = []

        def watch(model, step, t, state):
            calls.append((model is untrained, step, t, tuple(state["latents"].shape)))
            return {}

        assert torch.equal(latents(untrained, callback_on_step_end=watch), latents(untrained))
        assert calls == [(True, k, pytest.approx(1000 * k / STEPS), (1, 4, 8, 8)) for k in range(STEPS)]

    @pytest.mark.parametrize("in_place", [True, False])
    def test_latents_that_a_callback_changes_are_used(self, untrained, in_place):
        def restart(model, step, t, state):
            if step:
                return {}
            if not in_place:
                return {"latents": torch.zeros_like(state["latents"])}
            state["latents"].zero_()
            return state

        changed = latents(untrained, num_inference_steps=2, callback_on_step_end=restart)
        again = latents(untrained, num_inference_steps=2, callback_on_step_end=restart, seed=99)
        assert torch.equal(changed, again)  # both went on from zeros, whatever their noise was
        assert not torch.equal(changed, latents(untrained, num_inference_steps=2))

    @pytest.mark.parametrize(
        ("returned", "words"),
        [
            (None, "expected it to return a dict, got None"),
            ({"latents": torch.zeros(1, 4, 8, 7)}, "latents: expected shape (1, 4, 8, 8), got (1, 4, 8, 7)"),
            ({"latents": torch.full((1, 4, 8, 8), torch.nan)}, "latents: expected finite values"),
            ({"latents": 0}, "latents: expected a torch.Tensor"),
        ],
    )
    def test_what_a_callback_may_not_return(self, untrained, returned, words):
        with pytest.raises(InputError) as error:
            latents(untrained, callback_on_step_end=lambda *_: returned)
        assert words in str(error.value)
        assert latents(untrained).isfinite().all()

    def test_a_callback_that_raises_stops_the_run(self, untrained):
        expected, steps = latents(untrained), []

        def stop(model, step, t, state):
            steps.append(step)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            latents(untrained, callback_on_step_end=stop)
        assert steps == [0]
        assert torch.equal(latents(untrained), expected)

    def test_tags_in_a_prompt_are_text(self, untrained):
        tag = untrained.tokenizer.image_gen_tag
        ids = encode_generation_prompt(f"a {tag} circle", untrained.tokenizer)
        assert ids.count(untrained.tokenizer.image_gen_id) == 1
        assert not torch.equal(latents(untrained, f"a {tag} circle"), latents(untrained, "a  circle"))

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (dict(prompt=""), ["prompt is empty"]),
            (dict(prompt=" \n\t"), ["prompt is empty"]),
            (dict(prompt=[PROMPT, ""]), ["prompt is empty"]),
            (dict(prompt=[]), ["prompt", "a string or a list of strings", "[]"]),
            (dict(prompt=None), ["prompt", "a string or a list of strings", "None"]),
            (dict(prompt=7), ["prompt", "a string or a list of strings", "7"]),
            (dict(prompt=[7]), ["str", "int"]),
            (dict(prompt="circle " * 15000), ["too long", "at most 496"]),
            (dict(prompt="😀" * 200), ["too long", "at most 496"]),
            (dict(prompt="a \ud800 circle"), ["surrogate", "U+D800"]),
            (dict(num_inference_steps=0), ["num_inference_steps", "1 to 1000", "got 0"]),
            (dict(num_inference_steps=-1), ["num_inference_steps", "1 to 1000", "got -1"]),
            (dict(num_inference_steps=10**6), ["num_inference_steps", "1 to 1000", "got 1000000"]),
            (dict(num_inference_steps=True), ["num_inference_steps", "integer", "True"]),
            (dict(num_inference_steps=1.5), ["num_inference_steps", "integer", "1.5"]),
            (dict(guidance_scale=float("nan")), ["guidance_scale", "finite", "nan"]),
            (dict(guidance_scale=float("inf")), ["guidance_scale", "finite", "inf"]),
            (dict(guidance_scale=-1), ["guidance_scale", "0 to 1000", "-1"]),
            (dict(guidance_scale=1e39), ["guidance_scale", "0 to 1000", "1e+39"]),
            (dict(seed=-1), ["seed", "0 to", "-1"]),
            (dict(seed=2**63), ["seed", "0 to", str(2**63)]),
            (dict(seed="7"), ["seed", "integer", "'7'"]),
            (dict(num_images_per_prompt=0), ["num_images_per_prompt", "1 to", "got 0"]),
            (dict(num_images_per_prompt=10**9), ["num_images_per_prompt", "1 to 10000", str(10**9)]),
            (dict(num_images_per_prompt=True), ["num_images_per_prompt", "integer", "True"]),
            (dict(output_type="jpeg"), ["output_type", "'pil'", "'latent'", "jpeg"]),
        ],
    )
    def test_what_it_refuses(self, untrained, change, words):
        with pytest.raises(InputError) as error:
            untrained.generate_image(**{"prompt": PROMPT, "num_inference_steps": 1, **change})
        assert all(word in str(error.value) for word in words), str(error.value)
        assert len(str(error.value)) < 300

    def test_a_prompt_up_to_the_last_position(self, untrained):
        room = untrained.config.language.max_position_embeddings - 1 - untrained.config.num_image_tokens
        words = 0
        while len(encode_generation_prompt("x" + " x" * (words + 1), untrained.tokenizer)) <= room + 1:
            words += 1
        longest = "x" + " x" * words
        assert len(encode_generation_prompt(longest, untrained.tokenizer)) > room - 3
        assert latents(untrained, longest, num_inference_steps=1).isfinite().all()
        with pytest.raises(InputError, match="too long"):
            latents(untrained, longest + " x x x", num_inference_steps=1)


def test_threads_get_what_they_would_get_alone(untrained):
    def work(n: int) -> tuple[torch.Tensor, str]:
        return latents(untrained, f"{n} circles", seed=n), untrained.chat(ASK, max_new_tokens=5 + n)

    alone = [work(n) for n in range(4)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(work, range(4)))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one[0], other[0])
        assert one[1] == other[1]


class TestFromPretrained:
    def test_a_name_stands_for_its_folder(self):
        models = [JanusFlow.from_pretrained(s, device="cpu", dtype="float32") for s in ("shapes", builtin_folder())]
        assert [model.name for model in models] == ["shapes", str(builtin_folder())]
        assert torch.equal(*map(latents, models))
        assert "cpu" in models[0].why
        assert "float32" in models[0].why

    def test_auto_says_what_it_chose(self):
        model = JanusFlow.from_pretrained("shapes")
        assert model.dtype in (torch.bfloat16, torch.float32)
        assert model.why.count("auto") == 2
        assert str(model.dtype) in model.why

    def test_bfloat16(self, untrained, untrained_folder):
        model = JanusFlow.from_pretrained(untrained_folder, device="cpu", dtype="bfloat16")
        assert 1e-4 < relative_error(latents(model), latents(untrained)) < 4 * 2**-8
        out = model.generate_image(PROMPT, num_inference_steps=1, seed=1, output_type="pt")
        assert out.images.dtype is torch.float32
        assert isinstance(model.chat(ASK, max_new_tokens=4), str)

    def test_float16_needs_another_dtype_for_the_vae(self, untrained, untrained_folder):
        with pytest.raises(InputError, match=r"VAE.*overflows in float16.*'float32'"):
            JanusFlow.from_pretrained(untrained_folder, device="cpu", dtype="float16")
        model = JanusFlow.from_pretrained(untrained_folder, device="cpu", dtype="float16", vae_dtype="float32")
        z = latents(model)
        assert relative_error(z, latents(untrained)) < 4 * 2**-11
        assert torch.equal(model.decode_latents(z), untrained.decode_latents(z))

    def test_official_numerics_draw_the_noise_of_the_official_code(self, untrained_folder):
        """One draw per prompt of all its images, in bfloat16, from torch's CPU generator."""
        model = JanusFlow.from_pretrained(untrained_folder, device="cpu", dtype="bfloat16", numerics="official")
        prompts = [PROMPT, "a star"]
        options = dict(num_images_per_prompt=3, num_inference_steps=STEPS, output_type="latent")
        both = model.generate_image(prompts, seed=5, **options)
        assert both.seeds == [5, 5, 5, 6, 6, 6]
        for i, prompt in enumerate(prompts):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(5 + i)
                noise = torch.randn((3, 4, 8, 8), dtype=torch.bfloat16)
            ids = encode_generation_prompt(prompt, model.tokenizer)
            expected = model.sample_latents([ids] * 3, noise, 2.0, STEPS)
            assert torch.equal(model.generate_image(prompt, seed=5 + i, **options).images, expected)
            # six rows are other GEMMs than three, so bfloat16 sums round differently
            assert relative_error(both.images[3 * i : 3 * i + 3], expected) <= 4 * 2**-8

    @pytest.mark.parametrize(
        ("options", "kind", "words"),
        [
            (dict(device="cuda"), DeviceError, ["cuda", "cpu"]),
            (dict(dtype="float8"), InputError, ["dtype", "float8"]),
            (dict(vae_dtype="float16"), InputError, ["vae_dtype", "overflows"]),
            (dict(numerics="exactly"), InputError, ["numerics", "exactly"]),
            (dict(quantization="int3"), InputError, ["quantization", "int3"]),
            (dict(vae="/no/such/folder"), CheckpointError, ["/no/such/folder"]),
        ],
    )
    def test_what_it_refuses(self, options, kind, words):
        with pytest.raises(kind) as error:
            JanusFlow.from_pretrained("shapes", **{"device": "cpu", **options})
        assert all(word in str(error.value) for word in words), str(error.value)

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(CheckpointError, match="nowhere"):
            JanusFlow.from_pretrained(tmp_path / "nowhere")
