"""`best_of`: which of several images are returned, how they are judged, and what is refused."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.api import best_of as choosing
from flashjanus.api import drawing, shelf
from flashjanus.api.best_of import QUESTION, checks_of, judge_images, spellings
from flashjanus.api.outputs import joined
from flashjanus.api.shelf import Shelf
from flashjanus.builtin.checks import checks
from flashjanus.errors import InputError, OutputError
from flashjanus.inputs.prompts import encode_chat
from flashjanus.measure.evaluation.sets import prompt_set
from flashjanus.measure.evaluation.verdict import give_verdict
from flashjanus.measure.evaluation.world import render
from flashjanus.sampling.options import ImageOptions
from PIL import Image
from small_model import small_config, small_state

PROMPT = "a circle and a square"
STEPS = 4


@pytest.fixture(scope="module")
def shapes() -> JanusFlow:
    return JanusFlow.from_pretrained("shapes", device="cpu", dtype="float32")


def best(model: JanusFlow, prompt: Any = PROMPT, **options: Any) -> Any:
    return model.generate_image(prompt, **{"num_inference_steps": STEPS, "seed": 3, "best_of": 4, **options})


def probability(model: JanusFlow, image: Image.Image, question: str, answer: str, others: tuple[str, ...]) -> float:
    """P(answer) / (P(answer) + sum of P(others)), at the tensor level and for this image alone."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    ids = encode_chat([{"role": "user", "content": content}], model.tokenizer).ids
    pixels = model.processor.preprocess(image)[None, None]
    p = model.next_token_logits(torch.tensor([ids]), None, pixels)[0].double().softmax(0)
    own, rest = (
        sum(float(p[spellings(model.tokenizer, w)].sum()) for w in words) for words in ([answer], list(others))
    )
    return own / (own + rest)


class TestScores:
    def test_they_are_what_the_logits_say(self, shapes):
        out = best(shapes, num_images_per_prompt=4, judge="Is there {prompt}?")
        for image, score in zip(out.images, out.scores, strict=True):
            assert score == pytest.approx(probability(shapes, image, f"Is there {PROMPT}?", "yes", ("no",)), abs=1e-5)

    def test_several_checks_multiply(self, shapes):
        asked = [("How many shapes are there?", "two", ("one", "three")), ("Is there a red circle?", "no", ("yes",))]
        out = best(shapes, num_images_per_prompt=2, best_of=2, judge=lambda prompt: asked)
        for image, score in zip(out.images, out.scores, strict=True):
            assert score == pytest.approx(np.prod([probability(shapes, image, *one) for one in asked]), abs=1e-5)

    def test_the_built_in_model_tells_right_pictures_from_wrong_ones(self, shapes):
        prompts = prompt_set(5)
        others = [
            next(q for q in prompts if q.category == p.category and checks(q.text) != checks(p.text)) for p in prompts
        ]

        def found(shown) -> float:
            """The share of true pictures of `shown` that pass as pictures of `prompts`."""
            images = [Image.fromarray(render(p.scene)) for p in shown]
            scores = judge_images(shapes, shapes.tokenizer, images, [checks(p.text) for p in prompts])
            return float(np.mean([score > 0.5 for score in scores]))

        assert found(prompts) >= 0.9
        assert found(others) <= 0.1

    def test_any_spelling_counts(self, shapes):
        encode = shapes.tokenizer.encode_text
        assert spellings(shapes.tokenizer, "no") == sorted({*encode("no"), *encode(" no")})

    def test_the_default_question(self):
        assert checks_of("a cat", "some/model", None) == [("Does this image show: a cat?", "yes", ("no",))]
        assert checks_of("a {prompt}", "some/model", QUESTION)[0][0] == "Does this image show: a {prompt}?"
        assert checks_of("a cat", "shapes", None) == [("Is there a cat?", "yes", ("no",))]


class TestChoice:
    def test_the_best_come_first_and_a_prompt_s_own(self, shapes):
        prompts = [PROMPT, "three triangles"]
        every = best(shapes, prompts, num_images_per_prompt=4)
        assert [sorted(every.seeds[:4]), sorted(every.seeds[4:])] == [[3, 4, 5, 6], [7, 8, 9, 10]]
        for scores in (every.scores[:4], every.scores[4:]):
            assert scores == sorted(scores, reverse=True)
            assert len(set(scores)) > 1
        two = best(shapes, prompts, num_images_per_prompt=2)
        assert two.seeds == [*every.seeds[:2], *every.seeds[4:6]]
        assert two.scores == [*every.scores[:2], *every.scores[4:6]]

    @pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
    def test_its_seed_draws_an_image_alone(self, shapes, output_type):
        out = best(shapes, output_type=output_type)
        (alone,) = shapes.generate_image(
            PROMPT, num_inference_steps=STEPS, seed=out.seeds[0], output_type=output_type
        ).images
        difference = np.abs(np.asarray(out.images[0], np.float64) - np.asarray(alone, np.float64)).max()
        assert difference <= (1 if output_type == "pil" else 1e-4)
        assert set(out.timings) == {"prompt", "flow", "decode", "judge", "total"}
        assert out.timings["total"] >= out.timings["judge"] > 0

    def test_more_pictures_are_right(self, shapes):
        """Of prompts that the model often gets wrong."""
        prompts = [p for p in prompt_set(8) if p.category == "two_objects"]

        def right(**options: Any) -> int:
            drawn = best(shapes, [p.text for p in prompts], num_inference_steps=6, **options).images
            return sum(give_verdict(p, np.asarray(i)).correct for p, i in zip(prompts, drawn, strict=True))

        assert right(best_of=4) > right(best_of=None)

    def test_it_stops_at_the_first_that_passes(self, shapes):
        batches = []

        def watch(model, step, t, state):
            batches.extend([len(state["latents"])] * (step == 0))
            return state

        scores = {s: best(shapes, best_of=1, seed=s).scores[0] for s in range(3, 7)}
        first = next(s for s in scores if scores[s] >= 0.5)
        out = best(shapes, accept_above=scores[first], callback_on_step_end=watch)  # at least that
        assert out.seeds == [first]
        assert batches == [1] * (first - 2)
        batches.clear()
        assert best(shapes, accept_above=0.0, best_of=100, num_images_per_prompt=2, callback_on_step_end=watch).seeds
        assert batches == [2]

    def test_each_prompt_has_seeds_of_its_own(self, shapes):
        out = best(shapes, [PROMPT, PROMPT], accept_above=0.0, best_of=5, num_images_per_prompt=2)
        assert [sorted(out.seeds[:2]), sorted(out.seeds[2:])] == [[3, 4], [8, 9]]

    def test_where_none_passes_the_best_is_returned(self, shapes):
        impossible = lambda prompt: [("How many shapes are there?", "zero", ("one", "two", "three"))]  # noqa: E731
        out = best(shapes, accept_above=1.0, best_of=3, judge=impossible)
        assert out.seeds == best(shapes, best_of=3, judge=impossible).seeds
        assert out.scores[0] < 0.5

    def test_every_option_reaches_the_candidates(self, untrained, monkeypatch):
        """An option of `generate_image` that were not handed on would be ignored where the best are chosen."""
        seen = []

        def drawn(model, ids, images, sampler, noise, request, *_):
            seen.append(request)
            raise InputError("seen")

        monkeypatch.setattr(drawing, "_drawn", drawn)
        options = dict(num_inference_steps=7, guidance_scale=3.0, solver="ab2", timestep_shift=0.5, preset="fast")
        options |= dict(guidance_interval=(0.1, 0.9), guidance_rescale=0.2, uncond_every=2, step_cache=3)
        options |= dict(callback_on_step_end=lambda *_: {})
        with pytest.raises(InputError, match="seen"):
            best(untrained, **options)
        own = {
            "adapter",
            "num_images_per_prompt",
            "seed",
            "generator",
            "latents",
            "output_type",
            "best_of",
            "accept_above",
            "judge",
        }
        assert set(options) == {field.name for field in fields(ImageOptions)} - own
        assert {name: getattr(seen[0], name) for name in options} == options
        assert (seen[0].seed, seen[0].best_of) == ([3, 4, 5, 6], None)

    def test_prompts_are_done_one_by_one(self, shapes):
        """Each with its candidates, though a batch may hold those of two."""
        drawn, prompts = [], [PROMPT, "three triangles", "a star"]
        options = dict(num_inference_steps=2, seed=3, best_of=3, num_images_per_prompt=2)
        whole = shapes.generate_image(prompts, **options)
        stream = shapes.stream_images(
            prompts, callback_on_step_end=lambda m, k, t, z: (drawn.append(len(z["latents"])), z)[1], **options
        )
        assert drawn == []
        parts = [next(stream)]
        assert drawn == [8, 8]
        parts += stream
        assert drawn == [8, 8, 1, 1]
        assert [len(part.images) for part in parts] == [2, 2, 2]
        assert [seed for part in parts for seed in part.seeds] == whole.seeds
        assert [score for part in parts for score in part.scores] == whole.scores
        assert [image.tobytes() for part in parts for image in part.images] == [i.tobytes() for i in whole.images]
        options |= dict(num_images_per_prompt=3, judge="Is there {prompt}?")
        every = shapes.generate_image(prompts, **options).scores
        for p, prompt in enumerate(prompts):
            alone = shapes.generate_image(prompt, **{**options, "seed": 3 + 3 * p}).scores
            assert every[3 * p : 3 * p + 3] == pytest.approx(alone, abs=1e-4), "each is asked what its own prompt says"
        assert all(set(part.timings) == {"prompt", "flow", "decode", "judge", "total"} for part in parts)

    @pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
    def test_no_more_is_kept_than_will_be_returned_and_many_in_a_file(self, shapes, monkeypatch, output_type):
        options = dict(num_inference_steps=1, output_type=output_type, best_of=11, num_images_per_prompt=10)
        expected = best(shapes, [PROMPT, "a star"], **options)
        shelves = []
        monkeypatch.setattr(choosing, "Shelf", lambda: (shelves.append(Shelf()), shelves[-1])[1])
        monkeypatch.setattr(shelf, "MEMORY", 10_000)
        parts = list(shapes.stream_images([PROMPT, "a star"], seed=3, **options))
        assert [len(part.images) for part in parts] == [8, 2, 8, 2]
        assert shelves[0]._file._rolled
        assert shelves[0]._places == 10 + 1
        out = joined(parts)
        assert (out.seeds, out.scores) == (expected.seeds, expected.scores)
        assert all(np.array_equal(a, b) for a, b in zip(out.images, expected.images, strict=True))

    def test_a_shelf_that_is_full(self, shapes, monkeypatch, tmp_path):
        def full(self, data):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("tempfile.SpooledTemporaryFile.write", full)
        with pytest.raises(OutputError, match=r"cannot be kept in .*: No space left on device; make room there"):
            best(shapes, num_inference_steps=1)

    def test_a_seed_for_each_candidate(self, shapes):
        seeds = [50, 3, 9, 4]
        out = best(shapes, seed=seeds, num_images_per_prompt=4)
        single = {s: shapes.generate_image(PROMPT, num_inference_steps=STEPS, seed=s).images[0] for s in seeds}
        assert sorted(out.seeds) == sorted(seeds)
        for seed, image in zip(out.seeds, out.images, strict=True):
            assert np.abs(np.asarray(image, int) - np.asarray(single[seed], int)).max() <= 1


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"best_of": 0}, "best_of: expected an integer from 1"),
            ({"best_of": 2, "num_images_per_prompt": 3}, "at least num_images_per_prompt = 3 candidates, got 2"),
            ({"best_of": None, "accept_above": 0.5}, "which accept_above requires"),
            ({"accept_above": 1.5}, "accept_above: expected a finite number from 0 to 1"),
            ({"accept_above": float("nan")}, "accept_above"),
            ({"output_type": "latent"}, "best_of judges pictures"),
            (
                {"seed": None, "generator": torch.Generator()},
                "generator: best_of draws the chosen image again from its seed",
            ),
            (
                {"seed": None, "latents": torch.zeros(1, 4, 8, 8)},
                "latents: best_of draws the chosen image again from its seed",
            ),
            ({"seed": [1, 2, 3]}, "seed: expected one number, or a list of 4, one per image, got 3 of them"),
            ({"judge": "Is it good?"}, "judge: expected a question with {prompt} in it"),
            ({"judge": 3}, "judge: expected a question or a function"),
            ({"judge": lambda prompt: []}, "judge: expected checks"),
            ({"judge": lambda prompt: [("Is it?", "yes")]}, "judge: expected checks"),
            ({"judge": lambda prompt: [("Is it?", "yes", ())]}, "judge: expected checks"),
            ({"judge": lambda prompt: [("Is it?", "yes", "no")]}, "judge: expected checks"),
            (
                {"judge": lambda prompt: [("Is it?", "unlikely", ("no",))]},
                "one token of this tokenizer, got 'unlikely'",
            ),
        ],
    )
    def test_what_is_refused(self, untrained, options, words):
        with pytest.raises(InputError) as error:
            best(untrained, num_inference_steps=1, **options)
        assert words in str(error.value)

    def test_what_cannot_be_asked_is_said_before_anything_is_drawn(self, untrained):
        def never(*_):
            raise AssertionError("drawn")

        long = lambda prompt: [("Is it " + "very " * 300 + "good?", "yes", ("no",))]  # noqa: E731
        for judge, words in (
            (long, "too long"),
            (lambda p: [(p, "yes", ("unlikely",))], "one token of this tokenizer"),
        ):
            with pytest.raises(InputError, match=words):
                best(untrained, judge=judge, callback_on_step_end=never)
            with pytest.raises(InputError, match=words):
                untrained.stream_images(PROMPT, best_of=2, judge=judge)
        with pytest.raises(InputError, match="prompt is empty"):
            best(untrained, [PROMPT, ""], accept_above=0.0, callback_on_step_end=never)

    def test_official_numerics(self, untrained_folder):
        model = JanusFlow.from_pretrained(untrained_folder, device="cpu", dtype="float32", numerics="official")
        with pytest.raises(InputError, match="cannot draw the chosen one again"):
            best(model)

    def test_a_model_without_vae_or_tokenizer(self, untrained, monkeypatch):
        config = small_config()
        model = JanusFlow.from_state_dict(config, small_state(config), device="cpu", dtype="float32")
        with pytest.raises(InputError, match="has no VAE"):
            best(model)
        monkeypatch.setattr(untrained, "tokenizer", None)
        with pytest.raises(InputError, match="has no tokenizer"):
            best(untrained)


class TestChecks:
    @pytest.mark.parametrize(
        ("prompt", "expected"),
        [
            (
                "a photo of two red circles on a black background",
                {
                    "What color is the background?": "black",
                    "How many shapes are there?": "two",
                    "How many circles are there?": "two",
                    "Is there a red circle?": "yes",
                },
            ),
            (
                "one Circle  under a blue square",
                {
                    "What color is the background?": "white",
                    "How many shapes are there?": "two",
                    "How many circles are there?": "one",
                    "How many squares are there?": "one",
                    "Is there a blue square?": "yes",
                    "Which is at the bottom, the circle or the square?": "circle",
                },
            ),
            ("a dog", {"Is there a dog?": "yes"}),
        ],
    )
    def test_what_a_caption_promises(self, prompt, expected):
        asked = checks(prompt)
        assert {question: answer for question, answer, _ in asked} == expected
        assert all(answer not in others and others for _, answer, others in asked)

    def test_every_caption_is_understood(self):
        for prompt in prompt_set(100):
            asked = {question: answer for question, answer, _ in checks(prompt.text)}
            assert asked["What color is the background?"] == prompt.background
            relation = [q for q in asked if q.startswith("Which")]
            assert bool(relation) == (prompt.category == "position")
