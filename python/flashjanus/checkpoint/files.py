"""Find the parts of a checkpoint: config.json, weights, tokenizer and processor files, and the VAE.

Weights are model.safetensors, model.safetensors.index.json with shards, any *.safetensors, or pytorch_model.bin (one or
sharded), in this order. Nothing in a folder is trusted: names in an index must be plain names of files in that folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from flashjanus.checkpoint.config import JanusFlowConfig
from flashjanus.checkpoint.fields import read_json
from flashjanus.checkpoint.hub import fetch_repository, is_hub_id
from flashjanus.checkpoint.sources import FileSource
from flashjanus.checkpoint.vae_config import VaeConfig
from flashjanus.errors import CheckpointError, ConfigError

TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "special_tokens_map.json",
)
# Published without its VAE; the official code names this one.
DEFAULT_VAE = {"deepseek-ai/JanusFlow-1.3B": "stabilityai/sdxl-vae"}

_MODEL, _TORCH_MODEL = "model", "pytorch_model"
_VAE = "diffusion_pytorch_model"


@dataclass
class VaeFiles:
    """A diffusers AutoencoderKL: folder, config and weights, the last two read on first use."""

    folder: Path

    @cached_property
    def config(self) -> VaeConfig:
        return VaeConfig.from_file(self.folder / "config.json")

    @cached_property
    def weights(self) -> FileSource:
        return _weights(self.folder, _VAE, _VAE)


@dataclass
class Checkpoint:
    """A JanusFlow checkpoint on disk: what it is called, where it lies, and its parts, each read on first use.

    text_files: name -> path, of those in TEXT_FILES that exist.
    """

    source: str
    folder: Path
    vae_source: str | Path | None = None
    revision: str | None = None
    text_files: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def locate(
        cls, source: str | os.PathLike[str], *, vae: str | os.PathLike[str] | None = None, revision: str | None = None
    ) -> Checkpoint:
        """Find (or fetch) the folder, and look at nothing in it. CheckpointError when it is missing or empty."""
        for what, given in (("checkpoint", source), ("vae", "" if vae is None else vae)):
            if not isinstance(given, (str, os.PathLike)):
                raise CheckpointError(f"{what}: expected a folder or a hub id, got {given!r:.80}")
        name = os.fspath(source)
        folder = _folder(name, revision, _MODEL, _TORCH_MODEL, [*TEXT_FILES, "vae/config.json"])
        vae_source: str | Path | None = os.fspath(vae) if vae is not None else None
        if vae_source is None and (folder / "vae").is_dir():
            vae_source = folder / "vae"
        if vae_source is None and not Path(name).exists():
            vae_source = DEFAULT_VAE.get(name)
        text_files = {file: folder / file for file in TEXT_FILES if (folder / file).is_file()}
        return cls(name, folder, vae_source, revision, text_files)

    @classmethod
    def open(
        cls, source: str | os.PathLike[str], *, vae: str | os.PathLike[str] | None = None, revision: str | None = None
    ) -> Checkpoint:
        """Locate a checkpoint and read its config and its weights' headers; weights stay on disk.

        source: a folder, or a hub id "organisation/name" at `revision`. vae: the same for the VAE; without it, the
        `vae` subfolder, else what DEFAULT_VAE names for a published model (fetched when first used), else none.
        ConfigError or CheckpointError when a part is missing, damaged, or does not describe a JanusFlow model.
        """
        found = cls.locate(source, vae=vae, revision=revision)
        _ = found.config, found.weights
        if vae is not None or isinstance(found.vae_source, Path):
            found.check_vae()
        return found

    @cached_property
    def config_dict(self) -> dict[str, Any]:
        return read_json(self.folder / "config.json")

    @cached_property
    def config(self) -> JanusFlowConfig:
        try:
            return JanusFlowConfig.from_dict(self.config_dict)
        except ConfigError as error:
            if str(self.folder) in str(error):
                raise
            raise ConfigError(f"{self.folder}: {error}") from None

    @cached_property
    def weights(self) -> FileSource:
        return _weights(self.folder, _MODEL, _TORCH_MODEL)

    @cached_property
    def vae(self) -> VaeFiles | None:
        """The VAE, or None when the checkpoint has none and none was named."""
        if self.vae_source is None:
            return None
        return VaeFiles(_folder(os.fspath(self.vae_source), None, _VAE, _VAE, []))

    def check_vae(self) -> None:
        """Read the VAE's config and headers, if there is a VAE. ConfigError when it belongs to another model."""
        if self.vae is not None:
            self.vae.config.check_fits(self.config)
            _ = self.vae.weights


def _folder(source: str, revision: str | None, stem: str, torch_stem: str, more: list[str]) -> Path:
    """The local folder called `source`, else the snapshot of the hub repository of that name."""
    if not source:
        raise CheckpointError("checkpoint: expected a folder or a hub id, got an empty name")
    try:
        path = Path(source).expanduser()
        path.is_dir() and next(path.iterdir(), None)
    except (OSError, RuntimeError) as error:  # a name too long, a home that nobody has, a folder that cannot be read
        raise CheckpointError(f"{source:.200}: cannot be read as a folder ({error}); expected a checkpoint") from error
    if path.is_dir():
        if not any(path.iterdir()):
            raise CheckpointError(f"{path}: the folder is empty; expected config.json and weights")
        return path
    if path.exists():
        raise CheckpointError(f"{path}: expected a folder with config.json and weights, got a file")
    if not is_hub_id(source):
        raise CheckpointError(
            f"{path}: no such folder; expected a checkpoint folder or a hub id such as organisation/name"
        )
    vae_weights = [f"vae/{_VAE}*.safetensors*"] if stem == _MODEL else []
    groups = [
        [f"{stem}.safetensors", f"{stem}-*.safetensors", f"{stem}.safetensors.index.json"],
        ["*.safetensors"],
        [f"{torch_stem}.bin", f"{torch_stem}-*.bin", f"{torch_stem}.bin.index.json"],
    ]
    return fetch_repository(source, revision, ["config.json", *more, *vae_weights], groups)


def _weights(folder: Path, stem: str, torch_stem: str) -> FileSource:
    """The weights in `folder`. CheckpointError when there are none, or an index names what is not there."""
    for name, index in (
        (f"{stem}.safetensors", False),
        (f"{stem}.safetensors.index.json", True),
        ("*.safetensors", False),
        (f"{torch_stem}.bin", False),
        (f"{torch_stem}.bin.index.json", True),
    ):
        paths = sorted(path for path in folder.glob(name) if path.is_file())
        if paths and index:
            return _indexed(paths[0])
        if paths:
            return FileSource(paths, str(folder))
    raise CheckpointError(
        f"{folder}: no weights; expected {stem}.safetensors, {stem}.safetensors.index.json with its shards, "
        f"another *.safetensors, or {torch_stem}.bin"
    )


def _indexed(index: Path) -> FileSource:
    """The shards that an index names; each must be the plain name of a file beside the index."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: expected an object weight_map from tensor names to file names")
    names = set()
    for tensor, name in weight_map.items():
        plain = isinstance(name, str) and name == Path(name).name and "\\" not in name and "\0" not in name
        if not plain or Path(name).suffix not in (".safetensors", ".bin"):
            raise CheckpointError(
                f"{index}: tensor {tensor}: expected the plain name of a .safetensors or .bin file beside the index, "
                f"got {name!r}"
            )
        names.add(name)
    absent = sorted(name for name in names if not (index.parent / name).is_file())
    if absent:
        raise CheckpointError(
            f"{index}: names {len(absent)} of {len(names)} files that are absent, fetch them: {', '.join(absent[:5])}"
        )
    return FileSource([index.parent / name for name in sorted(names)], str(index.parent), weight_map)
