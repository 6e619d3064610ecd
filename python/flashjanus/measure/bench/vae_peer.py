"""Times diffusers' AutoencoderKL in turns with our decoder: same weights, dtype and latents, and the same image."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from flashjanus.api.tensor_model import TensorModel
from flashjanus.checkpoint import VaeConfig, vae_layout
from flashjanus.errors import InputError, PeerError
from flashjanus.measure.timing import Case

from .process import answer, check_python
from .stages import Stages

SCRIPT = Path(__file__).with_name("diffusers_script.py")
HAS_DIFFUSERS = "import importlib.util as i, json; print(json.dumps(i.find_spec('diffusers') is not None))"
MOST = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""The largest relative difference (of norms) between two images of the same decoder, even with random weights."""


class Diffusers:
    """diffusers in a new process each round. `facts`: the largest difference between its images and ours."""

    name = "diffusers"

    def __init__(self, stages: Stages, python: str) -> None:
        """Raises InputError if there is no VAE, PeerError if `python` has no diffusers."""
        self.stages, self.python = stages, check_python(python)
        if stages.model.runner.vae_config is None:
            raise InputError(
                f"--peer diffusers: expected a model with a VAE, got {stages.model.name}, which has no VAE; pass --vae"
            )
        self.config: VaeConfig = stages.model.runner.vae_config
        if not answer(self.name, [python, "-c", HAS_DIFFUSERS]):
            raise PeerError(
                f"diffusers: not installed for {python}; run {python} -m pip install diffusers, or name another Python "
                "with --official-python"
            )
        self.facts = {"largest_difference": 0.0, "relative_difference": 0.0}

    def __str__(self) -> str:
        largest, relative = self.facts.values()
        return f"its image differs from ours by at most {largest:.3g}, by {100 * relative:.3g} % of the norm"

    def round(self, cases: Sequence[Case], repeats: int) -> Iterator[tuple[Case, list[float]]]:
        for case in cases:
            if case.stage == "VAE":
                yield case, self._decode(repeats)

    def _decode(self, repeats: int) -> list[float]:
        """Seconds of each decode. Raises PeerError, also if the two images differ too much."""
        model, latents = self.stages.model, self.stages.noise(1)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "config.json").write_text(json.dumps(config_of(self.config)), encoding="utf-8")
            save_file({**vae_state(model, self.config), "latents": latents}, folder / "weights.safetensors")
            command = [self.python, str(SCRIPT), name, str(self.stages.device), str(repeats)]
            seconds: list[float] = answer(self.name, command)
            theirs = load_file(folder / "image.safetensors")["image"]
        self._compare(theirs, model.decode_latents(latents).float().cpu(), MOST[model.runner.vae_policy.matrix])
        return seconds

    def _compare(self, theirs: torch.Tensor, ours: torch.Tensor, most: float) -> None:
        largest, relative = float((theirs - ours).abs().max()), float((theirs - ours).norm() / ours.norm())
        if not relative <= most:
            raise PeerError(
                f"diffusers: from the same weights and latents, its image and ours differ by {relative:.3g} of the "
                f"norm, expected at most {most:g}; check config.json and the versions of torch and diffusers"
            )
        found = {"largest_difference": largest, "relative_difference": relative}
        self.facts = {name: max(value, self.facts[name]) for name, value in found.items()}


def config_of(config: VaeConfig) -> dict[str, object]:
    """Arguments for diffusers' AutoencoderKL."""
    levels = len(config.block_out_channels)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    return {**asdict(config), **blocks}


def vae_state(model: TensorModel, config: VaeConfig) -> dict[str, torch.Tensor]:
    """Our decoder's weights under diffusers' names, in the dtype of its convolutions."""
    runner, state = model.runner, {}
    for target in vae_layout(config):
        rows = [source.shapes[0][0] for source in target.sources]
        pieces = torch.split(runner.vae_weights[target.name], rows)
        for source, piece in zip(target.sources, pieces, strict=True):
            state[source.names[0]] = piece.to("cpu", runner.vae_policy.matrix).contiguous()
    return state
