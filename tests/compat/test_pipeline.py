"""JanusFlowPipeline: the habits of diffusers, on the same bits as JanusFlow."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.compat import JanusFlowPipeline
from flashjanus.compat.pipeline import absent
from flashjanus.errors import AbsentError, CopyError, DeviceError, FlashJanusError, InputError
from small_adapter import write_adapter

PROMPT, OTHER = "a red circle", "a blue square"
STEPS = dict(num_inference_steps=3)


@pytest.fixture(scope="module")
def pipe(untrained_folder: Path) -> JanusFlowPipeline:
    return JanusFlowPipeline.from_pretrained(untrained_folder, torch_dtype=torch.float32)


@pytest.fixture(scope="module")
def model(untrained: JanusFlow) -> JanusFlow:
    return untrained


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(pipe: JanusFlowPipeline, prompt: Any = PROMPT, **options: Any) -> torch.Tensor:
    images = pipe(prompt, output_type="pt", **{**STEPS, **options}).images
    assert isinstance(images, torch.Tensor)
    return images


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
    with pytest.raises(InputError, match="generator: expected one, or 2"):
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
    assert output.images is output[0] is output["images"] is output.to_tuple()[0]
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
    plain = drawn(pipe, num_images_per_prompt=9, generator=seeded(0))
    assert capsys.readouterr().err == ""  # no terminal
    written = io.StringIO()
    shown = JanusFlowPipeline.from_pipe(pipe)
    shown.set_progress_bar_config(file=written, disable=False, mininterval=0)
    assert torch.equal(drawn(shown, num_images_per_prompt=9, generator=seeded(0)), plain)
    assert "6/6" in written.getvalue()
    shown.set_progress_bar_config(disable=True)
    assert shown.progress_bar(total=1).disable
    assert list(pipe.progress_bar([1, 2])) == [1, 2]


def test_to_loads_the_model_anew_where_it_must(untrained_folder: Path, model: JanusFlow) -> None:
    pipe = JanusFlowPipeline.from_pretrained(untrained_folder, dtype=torch.float32, device_map="cpu")
    first = pipe.model
    for same in (("cpu",), (torch.device("cpu"),), (torch.float32,), ("cpu", torch.float32), (None,), ()):
        assert pipe.to(*same) is pipe
        assert pipe.model is first
    assert pipe.to(torch_dtype=torch.bfloat16, device="cpu").dtype == torch.bfloat16
    assert pipe.model is not first
    assert pipe.to(torch.float16).model.runner.vae_policy.matrix == torch.float32  # whose decoder overflows in float16
    second = pipe.model
    with pytest.raises(DeviceError, match="no mps runtime"):
        pipe.to("mps")
    with pytest.raises(InputError, match="to: expected a device, a dtype"):
        pipe.to(torch.float32, "cpu")
    assert pipe.model is second
    with pytest.raises(InputError, match=r"load it with JanusFlowPipeline\.from_pretrained"):
        JanusFlowPipeline(model).to(torch.bfloat16)


def test_pipelines_share_a_model(pipe: JanusFlowPipeline) -> None:
    again = [JanusFlowPipeline(**pipe.components), JanusFlowPipeline.from_pipe(pipe), copy.copy(pipe)]
    assert all(other.model is pipe.model for other in again)
    assert (pipe.device, pipe.dtype) == (torch.device("cpu"), torch.float32)
    assert pipe.vae_scale_factor == 8
    assert str(pipe) == f"JanusFlowPipeline({pipe.name_or_path!r}, cpu, torch.float32)"
    for bound in (copy.deepcopy, pickle.dumps):
        with pytest.raises(CopyError):
            bound(pipe)


@pytest.fixture(scope="module")
def adapters(model: JanusFlow, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("first", "second")):
        write_adapter(folder / name, model.config.language, rank=2, seed=seed)
    return {name: folder / name for name in ("first", "second")}


def test_adapters_are_loaded_set_and_unloaded(untrained_folder: Path, adapters: dict[str, Path]) -> None:
    pipe = JanusFlowPipeline.from_pretrained(untrained_folder, torch_dtype=torch.float32)

    def latents() -> torch.Tensor:
        return drawn(pipe, generator=seeded(0))

    plain = latents()
    pipe.load_lora_weights(adapters["first"])
    first = latents()
    pipe.load_lora_weights(str(adapters["second"]), adapter_name="other")
    other = latents()
    assert len({image.numpy().tobytes() for image in (plain, first, other)}) == 3
    assert (pipe.get_active_adapters(), pipe.get_list_adapters()) == (["other"], {"language_model": ["first", "other"]})
    pipe.disable_lora()
    assert torch.equal(latents(), plain)
    assert pipe.get_active_adapters() == []
    pipe.enable_lora()
    assert torch.equal(latents(), other)
    pipe.set_adapters(["first"], adapter_weights=[1.0])
    assert torch.equal(latents(), first)
    assert torch.equal(drawn(JanusFlowPipeline.from_pipe(pipe), generator=seeded(0)), plain)  # has set none
    pipe.to(torch.bfloat16).to(torch.float32)
    assert torch.equal(latents(), first)
    pipe.delete_adapters("other")
    pipe.unload_lora_weights()
    assert (pipe.get_list_adapters(), pipe.model.adapters) == ({}, {})
    assert torch.equal(latents(), plain)


def test_a_fused_adapter_stays_in_the_weights(untrained_folder: Path, adapters: dict[str, Path]) -> None:
    """As in the recipe that fuses, and unloads to save memory."""
    pipe = JanusFlowPipeline.from_pretrained(untrained_folder, torch_dtype=torch.float32)
    plain = drawn(pipe, generator=seeded(0))
    pipe.load_lora_weights(adapters["first"])
    named = drawn(pipe, generator=seeded(0))
    pipe.fuse_lora(adapter_names=["first"])
    pipe.unload_lora_weights()
    torch.testing.assert_close(drawn(pipe, generator=seeded(0)), named, atol=1e-4, rtol=0)
    assert not torch.equal(drawn(pipe, generator=seeded(0)), plain)
    pipe.unfuse_lora()
    assert torch.equal(drawn(pipe, generator=seeded(0)), plain)


def test_what_adapters_refuse(pipe: JanusFlowPipeline, adapters: dict[str, Path]) -> None:
    path = adapters["first"]
    for wrong, message in (
        (lambda: pipe.load_lora_weights(path, weight_name="pytorch_lora_weights.safetensors"), "weight_name: expected"),
        (lambda: pipe.load_lora_weights({"weight": torch.zeros(1)}), "expected a folder or a hub id.*got dict"),
        (lambda: pipe.set_adapters(["a", "b"]), "adapter_names: expected one, as one adapter draws an image"),
        (lambda: pipe.set_adapters("a"), r"adapter_names: expected one that is loaded \(none\), got 'a'"),
        (lambda: pipe.set_adapters("a", 0.5), "adapter_weights: expected 1"),
        (lambda: pipe.fuse_lora(), "fuse_lora: expected an adapter to be loaded"),
        (lambda: pipe.fuse_lora(lora_scale=0.7), "lora_scale: expected 1"),
        (lambda: pipe.delete_adapters(["a"]), "adapter_names: expected one that is loaded"),
    ):
        with pytest.raises(InputError, match=message):
            wrong()


@pytest.mark.parametrize("name", absent.NO_OPS)
def test_a_method_that_changes_nothing_says_so_once(model: JanusFlow, name: str) -> None:
    pipe = JanusFlowPipeline(model)
    with pytest.warns(UserWarning, match=f"{name} changes nothing: ") as said:
        getattr(pipe, name)()
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(pipe, name)("auto")


@pytest.mark.parametrize("name", [*absent.PARTS, "no_such_part"])
def test_a_part_that_is_not_there(pipe: JanusFlowPipeline, name: str) -> None:
    assert not hasattr(pipe, name)
    with pytest.raises(AbsentError, match=f"JanusFlowPipeline has no {name}"):
        getattr(pipe, name)


def test_a_part_is_not_put_in(pipe: JanusFlowPipeline) -> None:
    with pytest.raises(InputError, match="scheduler: expected it left as it is, got SimpleNamespace; the solver is"):
        pipe.scheduler = SimpleNamespace()


def test_latents_are_decoded_as_with_diffusers(pipe: JanusFlowPipeline) -> None:
    """By the last lines of diffusers' own pipelines, which many scripts have copied."""
    options = dict(latents=torch.randn(2, 4, 8, 8, generator=seeded(0)), num_images_per_prompt=2, **STEPS)
    latents = pipe(PROMPT, **options, output_type="latent").images
    vae = pipe.vae
    assert vae is not None
    images = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
    assert torch.equal(images, vae.decode(latents / vae.config.scaling_factor).sample)
    for output_type in ("pt", "np"):
        shown = pipe.image_processor.postprocess(images, output_type=output_type)
        np.testing.assert_allclose(shown, pipe(PROMPT, **options, output_type=output_type).images, atol=1e-5)
    assert [picture.size for picture in pipe.image_processor.postprocess(images)] == [(64, 64)] * 2
    assert pipe.image_processor.postprocess(images, output_type="latent") is images
    assert (vae.device, vae.dtype, 2 ** (len(vae.config.block_out_channels) - 1)) == (pipe.device, pipe.dtype, 8)
    assert vae.config["scaling_factor"] == vae.config.get("scaling_factor") == vae.config.scaling_factor
    assert not hasattr(vae.config, "sample_size")


def test_the_tokenizer_counts_and_changes_nothing(pipe: JanusFlowPipeline) -> None:
    tokenizer = pipe.tokenizer
    assert tokenizer is not None
    assert tokenizer is pipe.tokenizer
    ids = tokenizer(PROMPT).input_ids
    assert ids == [tokenizer.bos_token_id, *tokenizer.encode(PROMPT, add_special_tokens=False)]
    assert tokenizer.decode(ids, skip_special_tokens=True) == PROMPT
    assert tokenizer.model_max_length == pipe.model.config.language.max_position_embeddings
    before = drawn(pipe, "a <image_placeholder>", generator=seeded(0))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<mine>"]})
    assert torch.equal(drawn(pipe, "a <image_placeholder>", generator=seeded(0)), before)


def test_the_vae_is_a_decoder_alone(pipe: JanusFlowPipeline, untrained_folder: Path) -> None:
    again = JanusFlowPipeline.from_pipe(pipe)
    with pytest.warns(UserWarning, match="enable_tiling changes nothing: the VAE decodes one image at a time") as said:
        again.vae.enable_tiling()
    assert said[0].filename == __file__
    for absent_one in (lambda: pipe.vae.encode, lambda: pipe.image_processor.preprocess):
        with pytest.raises(AbsentError, match=r"JanusFlowPipeline\.(vae|image_processor) has no \w+: "):
            absent_one()
    with pytest.raises(InputError, match="z: expected shape"):
        pipe.vae.decode(torch.zeros(4, 8, 8))
    with pytest.raises(InputError, match="vae: expected it left as it is, got PipelineVae; from_pretrained"):
        pipe.vae = pipe.vae


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(prompt=None), "prompt: expected a string or a list of strings, got None"),
        (dict(prompt=[]), "prompt: expected a string or a list of strings"),
        (dict(prompt=[3]), "prompt: expected a string or a list of strings"),
        (dict(height=512), "height: expected 64, or left out"),
        (dict(width="64"), "width: expected 64, or left out"),
        (dict(negative_prompt="blurry"), "negative_prompt: expected it left out, got 'blurry'; the unconditional"),
        (dict(prompt_2="a cat"), "prompt_2: .*put all words into prompt"),
        (dict(seed=3), "seed: .*generator=torch.Generator"),
        (dict(eta=0.5), "eta: .*without noise"),
        (dict(cross_attention_kwargs={"scale": 0.5}), "cross_attention_kwargs: "),
        (dict(num_inference_step=3), "num_inference_step: there is no such.*did you mean num_inference_steps?"),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(variant="fp16"), "variant: .*torch_dtype"),
        (dict(quantization_config=SimpleNamespace()), "quantization_config: .*quantization='int8'"),
        (dict(scheduler=SimpleNamespace()), "scheduler: .*solver"),
        (dict(vae=SimpleNamespace()), "vae: expected a folder or a hub id, got SimpleNamespace"),
        (dict(torch_dtyp=torch.float32), "torch_dtyp: there is no such argument.*did you mean torch_dtype?"),
        (dict(torch_dtype=torch.float32, dtype=torch.float16), "torch_dtype, dtype: two names of one"),
        (dict(torch_dtype="float8"), "dtype: expected 'auto'"),
        (dict(device_map="balanced"), "device_map: expected one device"),
        (dict(quantization="int3"), "quantization: expected"),
    ],
)
def test_what_loading_refuses(untrained_folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FlashJanusError, match=message):
        JanusFlowPipeline.from_pretrained(untrained_folder, **options)


def test_loading_takes_what_is_so_anyway_and_presets(untrained_folder: Path) -> None:
    harmless = dict(use_safetensors=True, low_cpu_mem_usage=True, safety_checker=None, variant=None, cache_dir=None)
    pipe = JanusFlowPipeline.from_pretrained(untrained_folder, quantization="int8", **harmless)
    assert pipe.model.quantization == "int8"
    with pytest.raises(InputError, match="model: expected a JanusFlow, got str"):
        JanusFlowPipeline("shapes")  # type: ignore[arg-type]
