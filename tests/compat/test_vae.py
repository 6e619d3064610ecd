"""AutoencoderKL under diffusers' names: outputs as recorded of diffusers, whatever serves them."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from flashjanus.builtin import builtin_folder
from flashjanus.checkpoint.vae_layout import compvis_name
from flashjanus.compat.diffusers import AutoencoderKL
from flashjanus.compat.outputs import ReferencePathWarning
from flashjanus.errors import CheckpointError, ConfigError, InputError
from safetensors.torch import load_file, save_file
from seeded import seeded_state_dict
from small_model import relative_error

GOLDEN = Path(__file__).parents[1] / "golden"
MANIFEST = json.loads((GOLDEN / "vae_thin.manifest.json").read_text())
CONFIG = json.loads((GOLDEN / "vae_thin.config.json").read_text())
DECODED, ENCODED = load_file(GOLDEN / "vae.safetensors"), load_file(GOLDEN / "examples.safetensors")
IMAGES = torch.from_numpy(np.random.RandomState(11).uniform(-1, 1, (2, 3, 96, 64)).astype(np.float32))
FP32 = 2e-5


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return seeded_state_dict(MANIFEST, prefix="vae.")


@pytest.fixture(scope="module")
def folder(state, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "vae"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    save_file(state, path / "diffusion_pytorch_model.safetensors")
    return path


@pytest.fixture
def vae(folder) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(folder)


def latents(vae: AutoencoderKL) -> torch.Tensor:
    return (DECODED["latent"] / vae.config.scaling_factor).to(vae.dtype)


@torch.inference_mode()
def test_decoding_on_the_engine(vae):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = vae.decode(latents(vae))
    assert relative_error(decoded.sample, DECODED["image"]) <= FP32
    assert decoded[0] is decoded.sample
    assert torch.equal(vae.decode(latents(vae), return_dict=False)[0], decoded.sample)
    assert torch.equal(vae.decode(latents(vae)[:1]).sample, decoded.sample[:1])
    assert vae.decode(latents(vae)[:, :, :10, :7]).sample.shape == (2, 3, 40, 28)


@torch.inference_mode()
def test_decoding_on_torch_where_the_engine_would_pass_something_by(vae):
    seen = []
    vae.decoder.mid_block.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    with pytest.warns(ReferencePathWarning, match=r"decoder\.mid_block has hooks"):
        decoded = vae.decode(latents(vae)).sample
    assert seen == [(2, 64, 24, 24)]
    assert relative_error(decoded, DECODED["image"]) <= FP32


def test_encoding(vae):
    with torch.no_grad():
        found = vae.encode(IMAGES).latent_dist
        assert vae.encode(IMAGES, return_dict=False)[0].mean.equal(found.mean)
    assert relative_error(found.mean, ENCODED["vae.mean"]) <= FP32
    assert relative_error(found.logvar, ENCODED["vae.logvar"]) <= FP32
    assert found.mode() is found.mean
    torch.manual_seed(4)
    assert relative_error(found.sample(), ENCODED["vae.sample"]) <= FP32
    assert torch.equal(found.sample(torch.Generator().manual_seed(1)), found.sample(torch.Generator().manual_seed(1)))
    with torch.no_grad():
        assert relative_error(vae(IMAGES).sample[:, :, ::4, ::4], ENCODED["vae.round_trip"]) <= FP32
        assert vae(IMAGES, sample_posterior=True, return_dict=False)[0].shape == IMAGES.shape


def test_divergence(vae):
    with torch.no_grad():
        found = vae.encode(IMAGES).latent_dist
    other = torch.distributions.Normal(torch.zeros_like(found.mean), 1.0)
    own = torch.distributions.Normal(found.mean, found.std)
    expected = torch.distributions.kl_divergence(own, other).sum((1, 2, 3))
    torch.testing.assert_close(found.kl(), expected)
    torch.testing.assert_close(found.kl(found), torch.zeros(2), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.02), (torch.float16, 0.01)])
@torch.inference_mode()
def test_other_dtypes(vae, dtype, most):
    vae = vae.to(dtype)
    decoded = vae.decode(latents(vae)).sample
    assert (vae.dtype, decoded.dtype) == (dtype, dtype)
    assert relative_error(decoded.float(), DECODED["image"]) <= most
    assert relative_error(vae._decoded(latents(vae))[0].float(), DECODED["image"]) <= most


def test_gradients(vae):
    """Those of the modules, which the engine's result is as close to as its sums."""
    z = latents(vae).requires_grad_()
    decoded = vae.decode(z).sample
    decoded.square().sum().backward()
    by_engine = z.grad
    z.grad = None
    vae._decoded(z)[0].square().sum().backward()
    assert relative_error(by_engine, z.grad) <= FP32
    assert vae.decoder.conv_in.weight.grad is not None


@torch.inference_mode()
def test_weights_that_change_are_used(vae):
    before = vae.decode(latents(vae)).sample
    with torch.inference_mode(False), torch.no_grad():
        vae.decoder.conv_out.bias += 0.5
    torch.testing.assert_close(vae.decode(latents(vae)).sample, before + 0.5)


@torch.inference_mode()
def test_copies_are_on_their_own(vae):
    for twin in (copy.deepcopy(vae), pickle.loads(pickle.dumps(vae))):
        twin.decoder.conv_out.bias.data.zero_()
        assert relative_error(vae.decode(latents(vae)).sample, DECODED["image"]) <= FP32
        assert relative_error(twin.decode(latents(vae)).sample, DECODED["image"]) > 1e-3


@pytest.mark.parametrize("trained", [False, True])
@torch.inference_mode()
def test_a_single_file(state, folder, tmp_path, trained):
    """Under diffusers' names and under those of the code that trained it, in a folder that has other files too."""
    path = tmp_path / "sdxl_vae.safetensors"
    (tmp_path / "config.json").write_text("{}")
    count = len(CONFIG["block_out_channels"])
    named = {compvis_name(name, count): tensor for name, tensor in state.items()} if trained else state
    if trained:
        projections = [name for name in named if ".attn_1." in name and named[name].ndim == 2]
        assert len(projections) == 8
        named |= {name: named[name][:, :, None, None].contiguous() for name in projections}
    save_file(named, path)
    vae = AutoencoderKL.from_single_file(path, norm_num_groups=16, torch_dtype=torch.float32)
    assert vae.config.scaling_factor == 0.13025
    assert relative_error(vae.decode(latents(vae)).sample, DECODED["image"]) <= FP32
    assert relative_error(vae.encode(IMAGES).latent_dist.mean, ENCODED["vae.mean"]) <= FP32
    by_config = AutoencoderKL.from_single_file(path, config=folder)
    assert by_config.parsed == vae.parsed
    assert AutoencoderKL.from_pretrained(path, norm_num_groups=16).parsed == vae.parsed


def test_what_is_saved_is_what_is_loaded(vae, tmp_path):
    vae.to(torch.bfloat16).save_pretrained(tmp_path / "saved")
    again = AutoencoderKL.from_pretrained(tmp_path / "saved", torch_dtype=torch.bfloat16)
    assert again.parsed == vae.parsed
    state = again.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in vae.state_dict().items())


def test_a_folder_below_another_and_the_built_in_one(folder):
    assert AutoencoderKL.from_pretrained(folder.parent, subfolder="vae").parsed.latent_channels == 4
    shapes = AutoencoderKL.from_pretrained("shapes")
    assert shapes.config.scaling_factor == 1.0
    assert AutoencoderKL.from_pretrained(builtin_folder(), subfolder="vae").parsed == shapes.parsed


def test_a_model_stands_for_its_vae(folder, tmp_path, monkeypatch):
    shapes = AutoencoderKL.from_pretrained("shapes")
    assert AutoencoderKL.from_pretrained(builtin_folder()).parsed == shapes.parsed  # the folder of its weights

    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(
        "flashjanus.checkpoint.files.fetch_repository", lambda name, *rest: asked.append((name, rest[0])) or folder
    )
    AutoencoderKL.from_pretrained("deepseek-ai/JanusFlow-1.3B", revision="main")
    assert asked == [("stabilityai/sdxl-vae", None)]


def test_without_an_encoder(state, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    half = {name: tensor for name, tensor in state.items() if not name.startswith(("encoder.", "quant_conv."))}
    save_file(half, tmp_path / "diffusion_pytorch_model.safetensors")
    vae = AutoencoderKL.from_pretrained(tmp_path)
    with torch.inference_mode():
        assert relative_error(vae.decode(latents(vae)).sample, DECODED["image"]) <= FP32
    with pytest.raises(InputError, match="without an encoder"):
        vae.encode(IMAGES)
    del half["decoder.conv_out.bias"]
    save_file(half, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match=r"decoder\.conv_out\.bias"):
        AutoencoderKL.from_pretrained(tmp_path)


def test_calls_that_change_nothing(vae):
    vae.enable_slicing()
    vae.disable_slicing()
    vae.disable_tiling()
    with pytest.warns(UserWarning, match="decoded whole"):
        vae.enable_tiling()
    assert vae.device.type == "cpu"
    assert not vae.training
    assert set(vae.state_dict()) == set(MANIFEST)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vae: vae.decode(torch.zeros(1, 3, 8, 8)), r"\(B, 4, H, W\)"),
        (lambda vae: vae.decode(torch.zeros(4, 8, 8)), r"\(4, 8, 8\)"),
        (lambda vae: vae.encode(torch.zeros(1, 3, 30, 32)), "multiples of 4"),
        (lambda vae: AutoencoderKL.from_pretrained("shapes", scaling=1.0), "scaling_factor"),
        (lambda vae: AutoencoderKL.from_pretrained("shapes", torch_dtype="bf16"), "torch_dtype"),
    ],
)
def test_misuse_is_refused(vae, call, message):
    with pytest.raises(InputError, match=message):
        call(vae)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"down_block_types": ["CrossAttnDownBlock2D"]}, ConfigError),
        ({"shift_factor": 0.1}, ConfigError),
        ({"block_out_channels": [32, 32], "norm_num_groups": 5}, ConfigError),
    ],
)
def test_other_vaes_are_refused(config, error):
    with pytest.raises(error):
        AutoencoderKL(**config)
