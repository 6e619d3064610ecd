"""A VAE that is one file of weights, as people keep it for other programs: names and shapes tell its config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from flashjanus.checkpoint import TensorInfo, VaeConfig, VaeFiles
from flashjanus.checkpoint.vae_file import config_of
from flashjanus.checkpoint.vae_layout import compvis_name
from flashjanus.errors import CheckpointError
from safetensors.torch import save_file
from seeded import seeded_state_dict

GOLDEN = Path(__file__).parents[1] / "golden"
MANIFEST = json.loads((GOLDEN / "vae_thin.manifest.json").read_text())
CONFIG = json.loads((GOLDEN / "vae_thin.config.json").read_text())
RESOLUTIONS = len(CONFIG["block_out_channels"])


def infos() -> dict[str, TensorInfo]:
    return {name: TensorInfo(tuple(shape), "float32", 4) for name, shape in MANIFEST.items()}


def trained(values: dict[str, Any]) -> dict[str, Any]:
    return {compvis_name(name, RESOLUTIONS): value for name, value in values.items()}


@pytest.mark.parametrize("rename", [dict, trained])
def test_names_and_shapes_tell_the_config(rename):
    found = config_of(rename(infos()), "a.safetensors")
    assert (found.pop("scaling_factor"), found.pop("norm_num_groups")) == (0.13025, 32)
    assert {name: CONFIG[name] for name in found if name in CONFIG} == {n: v for n, v in found.items() if n in CONFIG}
    assert (found["use_quant_conv"], found["use_post_quant_conv"], found["mid_block_add_attention"]) == (True,) * 3


def test_the_names_of_the_code_that_trained_it():
    names = {
        "encoder.down_blocks.1.resnets.0.conv_shortcut.weight": "encoder.down.1.block.0.nin_shortcut.weight",
        "encoder.down_blocks.0.downsamplers.0.conv.bias": "encoder.down.0.downsample.conv.bias",
        "encoder.mid_block.attentions.0.to_q.weight": "encoder.mid.attn_1.q.weight",
        "encoder.conv_norm_out.bias": "encoder.norm_out.bias",
        "decoder.up_blocks.0.upsamplers.0.conv.weight": "decoder.up.2.upsample.conv.weight",
        "decoder.mid_block.resnets.1.norm1.weight": "decoder.mid.block_2.norm1.weight",
        "quant_conv.weight": "quant_conv.weight",
    }
    assert set(names) <= set(MANIFEST)
    assert {name: compvis_name(name, RESOLUTIONS) for name in names} == names


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".ckpt"])
def test_a_file_is_a_vae(tmp_path, suffix):
    state = trained(seeded_state_dict(MANIFEST, prefix="vae."))
    path = tmp_path / f"sdxl_vae{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state}, path)
    files = VaeFiles.locate(path)
    assert files.config_dict["block_out_channels"] == CONFIG["block_out_channels"]
    assert torch.equal(files.weights.read("decoder.conv_in.weight"), state["decoder.conv_in.weight"])


def test_sdxls_own_shapes_make_its_config():
    """The numbers that matter of stabilityai/sdxl-vae, by its shapes."""
    widths = (128, 256, 512, 512)
    shapes = {"decoder.conv_in.weight": (512, 4, 3, 3), "decoder.conv_out.weight": (3, 128, 3, 3)}
    for i, width in enumerate(widths):
        shapes |= {f"decoder.up.{i}.block.{j}.conv2.weight": (width, width, 3, 3) for j in range(3)}
    shapes |= {"encoder.conv_in.weight": (128, 3, 3, 3), "decoder.mid.attn_1.q.weight": (512, 512, 1, 1)}
    shapes |= {"post_quant_conv.weight": (4, 4, 1, 1)}
    found = config_of({name: TensorInfo(shape, "float16", 2) for name, shape in shapes.items()}, "sdxl_vae.safetensors")
    assert VaeConfig.from_dict(found) == VaeConfig(4, 3, widths, 2, 32, 0.13025)


def test_what_is_no_vae_is_refused(tmp_path):
    save_file({"model.layers.0.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other\.safetensors.*AutoencoderKL"):
        _ = VaeFiles.locate(tmp_path / "other.safetensors").config
    partial = {name: info for name, info in infos().items() if name != "decoder.conv_out.weight"}
    with pytest.raises(CheckpointError, match=r"decoder\.conv_out\.weight"):
        config_of(partial, "partial.safetensors")
    with pytest.raises(CheckpointError, match="no such folder"):
        VaeFiles.locate(tmp_path / "absent.safetensors")
