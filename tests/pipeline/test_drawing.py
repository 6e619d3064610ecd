"""What images start from, and images as they are drawn."""

from __future__ import annotations

import gc
import inspect
import weakref
from dataclasses import fields

import numpy as np
import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.api import drawing
from flashjanus.api.janusflow import ROWS_AT_ONCE
from flashjanus.api.outputs import ImageOutput, joined
from flashjanus.errors import InputError
from flashjanus.sampling.options import ImageOptions
from small_model import relative_error

ALONE = 1e-5
PROMPT = "a red circle above a blue square"
SHAPE = (4, 8, 8)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(seed: int, images: int = 1) -> torch.Tensor:
    return torch.randn((images, *SHAPE), generator=seeded(seed))


def latents(model: JanusFlow, prompt=PROMPT, **options) -> torch.Tensor:
    return model.generate_image(prompt, output_type="latent", num_inference_steps=2, **options).images


class TestStarts:
    @pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor])
    def test_a_seed_for_each_image(self, untrained, make):
        seeds = [40, 7, 7, 2**62]
        out = untrained.generate_image(
            [PROMPT, "a star"], num_images_per_prompt=2, seed=make(seeds), num_inference_steps=2, output_type="latent"
        )
        assert out.seeds == seeds
        for i, z in enumerate(out.images):
            alone = latents(untrained, [PROMPT, "a star"][i // 2], seed=seeds[i])[0]
            assert relative_error(z, alone) <= ALONE
        assert torch.equal(
            latents(untrained, seed=range(5, 7), num_images_per_prompt=2),
            latents(untrained, seed=5, num_images_per_prompt=2),
        )

    def test_latents(self, untrained):
        both = torch.cat([noise(5), noise(6)])
        out = untrained.generate_image(
            PROMPT, num_images_per_prompt=2, latents=both, num_inference_steps=2, output_type="latent"
        )
        assert torch.equal(out.images, latents(untrained, seed=5, num_images_per_prompt=2))
        assert out.seeds is None
        assert torch.equal(both, torch.cat([noise(5), noise(6)]))
        assert torch.equal(
            latents(untrained, latents=noise(5).double().half()), latents(untrained, latents=noise(5).half().float())
        )

    def test_one_generator_draws_all_at_once(self, untrained):
        generator = seeded(5)
        first = latents(untrained, generator=generator, num_images_per_prompt=3)
        assert torch.equal(first, latents(untrained, latents=noise(5, 3), num_images_per_prompt=3))
        again = torch.Generator()
        again.set_state(generator.get_state())
        second = latents(untrained, generator=generator)
        assert torch.equal(second, latents(untrained, generator=again)), "it goes on from where it stood"
        assert not torch.equal(second, latents(untrained, seed=5))
        assert torch.equal(latents(untrained, generator=seeded(5)), latents(untrained, seed=5))

    def test_a_generator_for_each_image(self, untrained):
        out = latents(untrained, generator=[seeded(9), seeded(5)], num_images_per_prompt=2)
        assert torch.equal(out, latents(untrained, seed=[9, 5], num_images_per_prompt=2))
        shared = seeded(5)
        other = seeded(5)
        twice = torch.cat([torch.randn((1, *SHAPE), generator=other) for _ in range(2)])
        assert torch.equal(
            latents(untrained, generator=[shared, shared], num_images_per_prompt=2),
            latents(untrained, latents=twice, num_images_per_prompt=2),
        )

    def test_more_than_are_drawn_at_once(self, untrained):
        count = ROWS_AT_ONCE + 2
        start = noise(3, count)
        options = dict(num_images_per_prompt=count)
        given = latents(untrained, latents=start, **options)
        assert torch.equal(given, latents(untrained, generator=seeded(3), **options))
        assert relative_error(given[-1], latents(untrained, latents=start[-1:])[0]) <= ALONE

    def test_official_numerics(self, untrained_folder):
        """One draw for all images of a prompt in bfloat16, cut into batches; a list of seeds is a draw for each."""
        model = JanusFlow.from_pretrained(untrained_folder, device="cpu", dtype="bfloat16", numerics="official")
        count = ROWS_AT_ONCE - 2
        drawn = [torch.randn((count, *SHAPE), generator=seeded(s), dtype=torch.bfloat16) for s in (5, 6)]
        options = dict(prompt=[PROMPT, "a star"], num_images_per_prompt=count)
        assert torch.equal(latents(model, seed=5, **options), latents(model, latents=torch.cat(drawn), **options))
        assert torch.equal(latents(model, generator=seeded(5)), latents(model, seed=5))
        each = torch.cat([torch.randn((1, *SHAPE), generator=seeded(5), dtype=torch.bfloat16)] * 2)
        pair = dict(num_images_per_prompt=2)
        assert torch.equal(latents(model, seed=[5, 5], **pair), latents(model, latents=each, **pair))
        assert not torch.equal(latents(model, seed=5, **pair), latents(model, seed=[5, 5], **pair))

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (dict(seed=[1, 2, 3]), "seed: expected one number, or a list of 2, one per image, got 3 of them"),
            (dict(seed=[]), "seed: expected one number, or a list of 2, one per image, got 0 of them"),
            (dict(seed=[1, -1]), "seed[1]: expected an integer from 0"),
            (dict(seed=[1, None]), "seed[1]: expected an integer"),
            (dict(seed=[1.5, 2]), "seed[0]: expected an integer"),
            (dict(seed="12"), "seed: expected an integer"),
            (dict(generator=5), "generator: expected a torch.Generator, or a list of them, got 5"),
            (dict(generator=[5, 6]), "generator: expected a torch.Generator, or a list"),
            (
                dict(generator=[torch.Generator()]),
                "generator: expected one generator, or a list of 2, one per image, got 1 of them",
            ),
            (dict(latents=noise(1)), "latents: expected shape (2, 4, 8, 8), got (1, 4, 8, 8)"),
            (dict(latents=torch.zeros(2, 4, 8, 9)), "latents: expected shape (2, 4, 8, 8)"),
            (dict(latents=torch.full((2, 4, 8, 8), torch.nan)), "latents: expected finite values"),
            (dict(latents=torch.zeros((2, 4, 8, 8), dtype=torch.int64)), "latents: expected torch.float32"),
            (dict(latents=np.zeros((2, 4, 8, 8))), "latents: expected a torch.Tensor"),
            (dict(seed=1, generator=torch.Generator()), "seed, generator: expected only one of them"),
            (dict(seed=1, latents=noise(1, 2)), "seed, latents: expected only one of them"),
        ],
    )
    def test_what_is_refused(self, untrained, options, words):
        for call in (untrained.generate_image, untrained.stream_images):
            with pytest.raises(InputError) as error:
                call(PROMPT, num_images_per_prompt=2, **options)
            assert words in str(error.value)


class TestStream:
    COUNT = ROWS_AT_ONCE + 3

    @pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
    def test_batches_join_to_the_whole(self, untrained, output_type):
        options = dict(num_images_per_prompt=self.COUNT, num_inference_steps=1, seed=5, output_type=output_type)
        whole = untrained.generate_image([PROMPT, "a star"], **options)
        parts = list(untrained.stream_images([PROMPT, "a star"], **options))
        assert [len(part.images) for part in parts] == [ROWS_AT_ONCE, ROWS_AT_ONCE, 2 * self.COUNT - 2 * ROWS_AT_ONCE]
        assert [seed for part in parts for seed in part.seeds] == whole.seeds == list(range(5, 5 + 2 * self.COUNT))
        together = joined(parts)
        assert type(together.images) is type(whole.images)
        if output_type == "pil":
            assert [i.tobytes() for i in together.images] == [i.tobytes() for i in whole.images]
        else:
            assert np.array_equal(together.images, whole.images)

    def test_nothing_is_drawn_before_it_is_asked_for(self, untrained):
        seen = []
        stream = untrained.stream_images(
            PROMPT,
            num_images_per_prompt=self.COUNT,
            num_inference_steps=1,
            callback_on_step_end=lambda m, k, t, z: (seen.append(len(z["latents"])), z)[1],
        )
        assert seen == []
        next(stream)
        assert seen == [ROWS_AT_ONCE]
        stream.close()
        assert seen == [ROWS_AT_ONCE]
        assert latents(untrained, seed=1).isfinite().all()

    @pytest.mark.parametrize("options", [{}, dict(best_of=ROWS_AT_ONCE)])
    def test_what_was_taken_is_not_kept(self, untrained, options):
        taken = []
        stream = untrained.stream_images(
            [PROMPT] * 3, num_images_per_prompt=ROWS_AT_ONCE, num_inference_steps=1, output_type="pt", **options
        )
        for part in stream:
            taken.append(weakref.ref(part.images))
            del part
            gc.collect()
            assert sum(ref() is not None for ref in taken) <= 1

    def test_what_is_wrong_is_said_at_once(self, untrained):
        for options in (dict(num_inference_steps=0), dict(output_type="jpeg"), dict(best_of=0), dict(seed=-1)):
            with pytest.raises(InputError):
                untrained.stream_images(PROMPT, **options)
        with pytest.raises(InputError, match="prompt is empty"):
            untrained.stream_images([PROMPT, " "])
        with pytest.raises(TypeError, match="steps"):
            untrained.stream_images(PROMPT, steps=3)


def test_the_options_are_those_of_generate_image(untrained, monkeypatch):
    """With the same defaults, and each handed on."""
    parameters = {n: p.default for n, p in inspect.signature(untrained.generate_image).parameters.items()}
    assert parameters.pop("prompt") is inspect.Parameter.empty
    assert parameters == {field.name: field.default for field in fields(ImageOptions)}
    given = {name: f"of {name}" for name in parameters}
    seen = []

    def stream(model, tokenizer, room, prompt, request):
        seen.append((prompt, request))
        return iter([ImageOutput([1], [2])])

    monkeypatch.setattr(drawing, "stream", stream)
    assert untrained.generate_image(PROMPT, **given).images == [1]
    assert next(untrained.stream_images(PROMPT, **given)).images == [1]
    assert seen == [(PROMPT, ImageOptions(**given))] * 2
