"""The parts of a pipeline: those that are there, those that change nothing, those that are absent."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawn_pipeline import PROMPT, STEPS, drawn, seeded
from flashjanus import JanusFlow
from flashjanus.compat import JanusFlowPipeline
from flashjanus.compat.pipeline import absent
from flashjanus.errors import AbsentError, CopyError, InputError


def test_pipelines_share_a_model(pipe: JanusFlowPipeline) -> None:
    again = [JanusFlowPipeline(**pipe.components), JanusFlowPipeline.from_pipe(pipe), copy.copy(pipe)]
    assert all(other.model is pipe.model for other in again)
    assert (pipe.device, pipe.dtype) == (torch.device("cpu"), torch.float32)
    assert pipe.vae_scale_factor == 8
    assert str(pipe) == f"JanusFlowPipeline({pipe.name_or_path!r}, cpu, torch.float32)"
    for bound in (copy.deepcopy, pickle.dumps):
        with pytest.raises(CopyError):
            bound(pipe)


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
    with pytest.raises(InputError, match="scheduler: cannot be replaced, got SimpleNamespace; the solver is"):
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
    with pytest.raises(
        InputError, match="vae: cannot be replaced, got PipelineVae; pass another one to from_pretrained"
    ):
        pipe.vae = pipe.vae
