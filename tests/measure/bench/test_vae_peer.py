"""The peer of the VAE's decoder: our weights under diffusers' names, and an image that has to be ours.

The stand-in for diffusers decodes with a model of ours, made from what the script was given.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.checkpoint import vae_layout
from flashjanus.errors import InputError, PeerError
from flashjanus.measure.bench.stages import Stages, cases
from flashjanus.measure.bench.vae_peer import Diffusers, vae_state
from untrained_model import seeded_state

STAND_IN = """
import os
from types import SimpleNamespace
from flashjanus import JanusFlow
from small_model import small_config, small_state

class AutoencoderKL:
    def __init__(self, **config):
        assert config["down_block_types"] == ["DownEncoderBlock2D"] * 3
        self.config = config

    def load_state_dict(self, state, strict, assign):
        self.state = state
        self.decoder = SimpleNamespace(conv_in=SimpleNamespace(weight=state["decoder.conv_in.weight"]))
        missing = ["encoder.conv_in.weight", *os.environ.get("MISSING", "").split()]
        return SimpleNamespace(missing_keys=missing, unexpected_keys=[])

    def to(self, device):
        config, choices = small_config(), {"device": device, "dtype": "float32"}
        self.model = JanusFlow.from_state_dict(
            config, small_state(config), vae_config=self.config, vae_state_dict=self.state, **choices
        )
        return self

    def eval(self):
        return self

    def decode(self, z):
        image = self.model.decode_latents(z * self.config["scaling_factor"])
        return SimpleNamespace(sample=image + float(os.environ.get("OFF", "0")))
"""
SIZES = {"rows": [1], "prompt_tokens": [6], "chat_tokens": [20], "steps": [3]}


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "diffusers.py").write_text(STAND_IN)
    path = [tmp_path, Path(__file__).parents[2], os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, path)))


def test_our_weights_under_diffusers_names(small: JanusFlow) -> None:
    config = small.runner.vae_config
    assert config is not None
    given, found = seeded_state(vae_layout(config), torch.float32, "vae."), vae_state(small, config)
    assert {name: tensor.shape for name, tensor in found.items()} == {n: tensor.shape for n, tensor in given.items()}
    for name, tensor in found.items():
        assert torch.equal(tensor, given[name]), name


def test_only_the_vae_is_timed_and_its_image_is_ours(
    small: JanusFlow, stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFF", "1e-5")
    peer = Diffusers(Stages(small), sys.executable)
    ((case, samples),) = peer.round(cases(["step", "VAE", "token"], SIZES), 3)
    assert (case.stage, len(samples)) == ("VAE", 3)
    assert all(sample > 0 for sample in samples)
    assert peer.facts["largest_difference"] == pytest.approx(1e-5, rel=0.1)
    assert 0 < peer.facts["relative_difference"] < 1e-4
    assert "its image differs from ours by at most" in str(peer)


@pytest.mark.skipif(find_spec("diffusers") is None, reason="diffusers is not installed")
def test_diffusers_itself(small: JanusFlow) -> None:
    peer = Diffusers(Stages(small), sys.executable)
    assert len(list(peer.round(cases(["VAE"], SIZES), 1))) == 1
    assert 0 < peer.facts["relative_difference"] < 1e-4


@pytest.mark.parametrize("off", ["0.1", "nan"])
def test_another_image_is_an_error(small: JanusFlow, stand_in: None, monkeypatch: pytest.MonkeyPatch, off: str) -> None:
    monkeypatch.setenv("OFF", off)
    with pytest.raises(PeerError, match=r"its image and ours differ by .* expected at most 0.0001"):
        list(Diffusers(Stages(small), sys.executable).round(cases(["VAE"], SIZES), 1))


def test_weights_of_another_decoder(small: JanusFlow, stand_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISSING", "decoder.conv_out.bias")
    with pytest.raises(PeerError, match=r"missing \['decoder.conv_out.bias'\]"):
        list(Diffusers(Stages(small), sys.executable).round(cases(["VAE"], SIZES), 1))


def test_what_diffusers_needs(small: JanusFlow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--official-python none: expected an existing file"):
        Diffusers(Stages(small), "none")
    empty = tmp_path / "python"  # answers as a Python without diffusers does
    empty.write_text("#!/bin/sh\necho false\n")
    empty.chmod(0o755)
    with pytest.raises(PeerError, match=r"not installed for .*python -m pip install diffusers"):
        Diffusers(Stages(small), str(empty))
    monkeypatch.setattr(small.runner, "vae_config", None)
    with pytest.raises(InputError, match="has no VAE"):
        Diffusers(Stages(small), sys.executable)
