"""A call of JanusFlowPipeline: the habits of diffusers, on the same bits as JanusFlow."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from drawn_pipeline import OTHER, PROMPT, STEPS, drawn, seeded
from flashjanus import JanusFlow
from flashjanus.compat import JanusFlowPipeline
from flashjanus.errors import InputError


def test_one_generator_draws_the_noise_of_all_images(pipe: JanusFlowPipeline, model: JanusFlow) -> None:
    """In the order of diffusers: all images of a prompt, then those of the next."""
    got = drawn(pipe, [PROMPT, OTHER], num_images_per_prompt=2, generator=seeded(0), guidance_scale=3.0)
    noise = torch.randn(4, 4, 8, 8, generator=seeded(0))
    ids = [PROMPT, PROMPT, OTHER, OTHER]
    expected = model.generate_image(ids, latents=noise, guidance_scale=3.0, output_type="pt", **STEPS).images
    assert torch.equal(got, expected)


def test_a_list_has_a_generator_for_each_image(pipe: JanusFlowPipeline) -> None:
    together = drawn(pipe, [PROMPT, OTHER], generator=[seeded(1), seeded(2)])
    alone = [drawn(pipe, PROMPT, generator=[seeded(1)]), drawn(pipe, OTHER, generator=seeded(2))]
    assert torch.equal(together, torch.cat(alone))
    with pytest.raises(InputError, match="generator: expected one generator, or a list of 2, one per image, got 1"):
        drawn(pipe, [PROMPT, OTHER], generator=[seeded(1)])


def test_without_a_generator_torchs_own_draws(pipe: JanusFlowPipeline) -> None:
    torch.manual_seed(5)
    got = drawn(pipe)
    assert not torch.equal(drawn(pipe), got)
    assert torch.equal(drawn(pipe, generator=seeded(5)), got)


def test_latents_are_the_noise(pipe: JanusFlowPipeline) -> None:
    noise = torch.randn(1, 4, 8, 8, generator=seeded(7))
    assert torch.equal(drawn(pipe, latents=noise), drawn(pipe, generator=seeded(7)))


def test_what_is_returned(pipe: JanusFlowPipeline) -> None:
    options = dict(prompt=PROMPT, latents=torch.zeros(1, 4, 8, 8), **STEPS)
    output = pipe(**options)
    assert output.images is output[0] is output["images"]
    assert output.to_tuple() == (output.images,)
    assert [image.size for image in output.images] == [(64, 64)]
    assert output.timings["total"] > 0
    (images,) = pipe(**options, return_dict=False, output_type="np")
    assert images.shape == (1, 64, 64, 3)
    assert 0 <= images.min() <= images.max() <= 1
    latents = pipe(**options, output_type="latent").images
    decoded = (pipe.model.decode_latents(latents).clamp(-1, 1) + 1) / 2
    assert np.array_equal(decoded.permute(0, 2, 3, 1).numpy(), images)


def test_a_callback_sees_the_steps_and_changes_latents(pipe: JanusFlowPipeline) -> None:
    seen: list[tuple[int, float]] = []

    def replace(of: Any, step: int, t: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert of is pipe
        assert set(tensors) == {"latents", "pred_original_sample"}
        seen.append((step, t.item()))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == of.num_timesteps - 1 else {}

    options = dict(generator=seeded(0), output_type="latent", callback_on_step_end=replace)
    got = pipe(PROMPT, **STEPS, **options, callback_on_step_end_tensor_inputs=pipe._callback_tensor_inputs).images
    assert seen == [(0, 0.0), (1, pytest.approx(1000 / 3)), (2, pytest.approx(2000 / 3))]
    assert torch.equal(got, torch.zeros(1, 4, 8, 8))


def test_a_callback_of_diffusers_names_its_tensors(pipe: JanusFlowPipeline) -> None:
    class OfDiffusers:
        tensor_inputs = ("pred_original_sample",)

        def __call__(self, *step: Any) -> dict[str, Any]:
            assert list(step[3]) == ["pred_original_sample"]
            return dict(step[3])

    drawn(pipe, callback_on_step_end=OfDiffusers())
    cutoff = OfDiffusers()
    cutoff.tensor_inputs = ("prompt_embeds",)
    with pytest.raises(InputError, match="'latents', 'pred_original_sample', got \\('prompt_embeds',\\)"):
        drawn(pipe, callback_on_step_end=cutoff)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda pipe, step, t, tensors: None, "callback_on_step_end: expected it to return a dict, got None"),
        (lambda pipe, step, t, tensors: {"latents": torch.zeros(1)}, "latents: expected shape"),
    ],
)
def test_a_callback_that_returns_something_else(pipe: JanusFlowPipeline, wrong: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        drawn(pipe, callback_on_step_end=wrong)


def test_guidance_does_not_change_in_a_callback(pipe: JanusFlowPipeline) -> None:
    def cut(of: Any, *step: Any) -> dict[str, Any]:
        of._guidance_scale = 0.0
        return {}

    with pytest.raises(InputError, match="guidance_interval"):
        drawn(pipe, callback_on_step_end=cut)
    drawn(pipe, guidance_scale=1.0)
    assert (pipe.guidance_scale, pipe.do_classifier_free_guidance) == (1.0, False)


def test_no_guidance_is_1_or_less(pipe: JanusFlowPipeline) -> None:
    """Scripts for distilled models pass 0, with which the formula would leave the prompt out."""
    plain = drawn(pipe, generator=seeded(0), guidance_scale=1.0)
    assert torch.equal(drawn(pipe, generator=seeded(0), guidance_scale=0.0), plain)
    assert (pipe.guidance_scale, pipe.do_classifier_free_guidance) == (1.0, False)
    assert not torch.equal(drawn(pipe, generator=seeded(0), guidance_scale=1.5), plain)


def test_an_error_of_a_callback_comes_through(pipe: JanusFlowPipeline) -> None:
    with pytest.raises(ZeroDivisionError):
        drawn(pipe, callback_on_step_end=lambda *step: {"latents": 1 / 0})
    drawn(pipe)


def test_an_interrupt_ends_the_steps(pipe: JanusFlowPipeline) -> None:
    """Images are made of the latents as they are; those of a batch that had not begun are not there."""
    steps, kept = itertools.count(), []

    def interrupt(of: Any, step: int, t: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        of._interrupt = next(steps) == 4  # the second step of the second batch
        kept.append(tensors["latents"].clone())
        return tensors

    options = dict(num_images_per_prompt=10, latents=torch.randn(10, 4, 8, 8, generator=seeded(0)))
    got = drawn(pipe, **options, callback_on_step_end=interrupt)
    assert (len(kept), pipe.interrupt) == (5, True)
    expected = torch.cat([kept[2], kept[4]])
    assert torch.equal(got, (pipe.model.decode_latents(expected).clamp(-1, 1) + 1) / 2)
    assert len(drawn(pipe)) == 1
    assert not pipe.interrupt


def test_another_thread_interrupts_a_call_that_has_steps(pipe: JanusFlowPipeline) -> None:
    shown = JanusFlowPipeline.from_pipe(pipe)
    shown.set_progress_bar_config(file=io.StringIO(), disable=False)
    bar = shown.progress_bar(total=1)

    class Interrupting(type(bar)):  # type: ignore[misc]
        def update(self, n: float = 1) -> None:
            super().update(n)
            shown._interrupt = self.n == 2  # as another thread might between two steps

    shown.progress_bar = lambda total: Interrupting(total=total, file=io.StringIO())  # type: ignore[method-assign]
    kept: list[torch.Tensor] = []
    options = dict(generator=seeded(0), output_type="latent", **STEPS)
    pipe(PROMPT, **options, callback_on_step_end=lambda *step: kept.append(step[3]["latents"].clone()) or {})
    got = shown(PROMPT, **{**options, "generator": seeded(0)}).images
    assert torch.equal(got, kept[1])
    pipe._interrupt = True  # nothing runs
    assert len(drawn(pipe)) == 1


def test_an_interrupt_that_could_not_work_is_refused(pipe: JanusFlowPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe.model, "stream_images", lambda *prompt, **options: setattr(pipe, "_interrupt", True))
    with pytest.raises(InputError, match="_interrupt: expected a call with callback_on_step_end"):
        drawn(pipe)


def test_a_bar_shows_the_steps_and_changes_no_bit(pipe: JanusFlowPipeline, capsys: Any) -> None:
    plain = drawn(pipe, num_images_per_prompt=9, generator=seeded(0), num_inference_steps=1)
    assert capsys.readouterr().err == ""  # no terminal
    written = io.StringIO()
    shown = JanusFlowPipeline.from_pipe(pipe)
    shown.set_progress_bar_config(file=written, disable=False, mininterval=0)
    assert torch.equal(drawn(shown, num_images_per_prompt=9, generator=seeded(0), num_inference_steps=1), plain)
    assert "2/2" in written.getvalue()
    shown.set_progress_bar_config(disable=True)
    assert shown.progress_bar(total=1).disable
    assert list(pipe.progress_bar([1, 2])) == [1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(prompt=None), "prompt: expected a string or a list of strings, got None"),
        (dict(prompt=[]), "prompt: expected a string or a list of strings"),
        (dict(prompt=[3]), "prompt: expected a string or a list of strings"),
        (dict(height=512), "height: expected 64 or None"),
        (dict(width="64"), "width: expected 64 or None"),
        (dict(negative_prompt="blurry"), "negative_prompt: not supported, got 'blurry'; the unconditional"),
        (dict(prompt_2="a cat"), "prompt_2: .*put all words into prompt"),
        (dict(seed=3), "seed: .*generator=torch.Generator"),
        (dict(eta=0.5), "eta: .*without noise"),
        (dict(cross_attention_kwargs={"scale": 0.5}), "cross_attention_kwargs: "),
        (dict(num_inference_step=3), "num_inference_step: unknown argument.*did you mean num_inference_steps?"),
        (dict(max_sequence_length=2), "expected prompts of at most 2 tokens, got 3 in 'a red circle'; prompts are not"),
        (dict(max_sequence_length=0), "max_sequence_length: expected an integer"),
        (dict(guidance_scale="7"), "guidance_scale: expected a finite number"),
        (dict(output_type="pill"), "output_type: expected one of"),
        (dict(generator=5), "generator: expected a torch.Generator"),
        (dict(generator=torch.Generator(), latents=torch.zeros(1, 4, 8, 8)), "generator, latents: "),
        (dict(callback_on_step_end_tensor_inputs="latents"), "callback_on_step_end_tensor_inputs: expected a list"),
    ],
)
def test_what_a_call_refuses(pipe: JanusFlowPipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipe(**{"prompt": PROMPT, **options})


def test_what_asks_for_nothing_is_taken(pipe: JanusFlowPipeline) -> None:
    """As scripts pass it on that know all pipelines."""
    nothing = dict(negative_prompt=[""], prompt_2=None, eta=0.0, clip_skip=None, cross_attention_kwargs={}, height=64)
    given = dict(num_images_per_prompt=None, output_type=None, callback_on_step_end_tensor_inputs=None)
    output = pipe(PROMPT, **STEPS, **nothing, **given, max_sequence_length=77, guidance_rescale=0.5)
    assert [image.size for image in output.images] == [(64, 64)]
