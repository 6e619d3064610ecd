"""Find the parts of a checkpoint: config.json, weights, tokenizer and processor files, and the VAE.

Weights are looked for in this order: model.safetensors, model.safetensors.index.json with shards, pytorch_model.bin
(single or sharded), any other *.safetensors. A folder is not trusted: an index may name only files inside the folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from flashjanus.checkpoint import hints
from flashjanus.checkpoint.config import JanusFlowConfig
from flashjanus.checkpoint.hub import fetch_repository, is_hub_id
from flashjanus.checkpoint.names import with_tied_head
from flashjanus.checkpoint.sources import TORCH_SUFFIXES, FileSource
from flashjanus.checkpoint.vae_config import VaeConfig
from flashjanus.checkpoint.vae_file import config_of
from flashjanus.disk.paths import is_file, is_folder, names_in, unfinished
from flashjanus.disk.reading import read_json
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
_SHARD = re.compile(r"(.+-)\d{5}-of-(\d{5})(\.safetensors|\.bin)")


@dataclass
class VaeFiles:
    """A diffusers AutoencoderKL, as a folder or a single file of weights. Config and weights are read on first use."""

    folder: Path

    @classmethod
    def locate(
        cls, source: str | os.PathLike[str], revision: str | None = None, options: Mapping[str, Any] | None = None
    ) -> VaeFiles:
        """Find it by folder, hub id or weights file; options are for a download. CheckpointError if there is none."""
        path = Path(source)
        if path.suffix in (".safetensors", *TORCH_SUFFIXES) and path.is_file():
            return cls(path)
        return cls(_folder(os.fspath(source), revision, _VAE, _VAE, [], options))

    @property
    def files(self) -> dict[str, Path]:
        """Path of each of its files, by its name in a folder. A single file of weights has no config.json."""
        if is_folder(self.folder):
            return {path.name: path for path in (*self.folder.glob("*.json"), *self.weights.paths)}
        return {f"{_VAE}{'.bin' if self.folder.suffix in TORCH_SUFFIXES else '.safetensors'}": self.folder}

    @cached_property
    def config_dict(self) -> dict[str, Any]:
        if is_folder(self.folder):
            return read_json(self.folder / "config.json", ConfigError)
        return config_of(self.weights.names(), self.weights.label)

    @cached_property
    def config(self) -> VaeConfig:
        return VaeConfig.from_dict(self.config_dict)

    @cached_property
    def weights(self) -> FileSource:
        if is_folder(self.folder):
            return _weights(self.folder, _VAE, _VAE)
        return FileSource([self.folder], str(self.folder))


@dataclass
class Checkpoint:
    """A JanusFlow checkpoint on disk: its name, its folder, and its parts, each read on first use.

    text_files: paths of the existing TEXT_FILES, by name. hub: download options, see `fetch_repository`.
    """

    source: str
    folder: Path
    vae_source: str | Path | None = None
    revision: str | None = None
    text_files: dict[str, Path] = field(default_factory=dict)
    hub: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def locate(
        cls,
        source: str | os.PathLike[str],
        *,
        vae: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        hub: Mapping[str, Any] | None = None,
    ) -> Checkpoint:
        """Find or download the folder without reading its contents. CheckpointError if it is missing or empty."""
        for what, given in (("checkpoint", source), ("vae", "" if vae is None else vae)):
            if not isinstance(given, (str, os.PathLike)):
                raise CheckpointError(f"{what}: expected a folder or a hub id, got {given!r:.80}")
        name = os.fspath(source)
        folder = _folder(name, revision, _MODEL, _TORCH_MODEL, [*TEXT_FILES, "vae/config.json"], hub)
        vae_source: str | Path | None = os.fspath(vae) if vae is not None else None
        if vae_source is None and is_folder(folder / "vae"):
            vae_source = folder / "vae"
        if vae_source is None and not is_folder(Path(name)):
            vae_source = DEFAULT_VAE.get(name)
        text_files = {file: folder / file for file in TEXT_FILES if is_file(folder / file)}
        return cls(name, folder, vae_source, revision, text_files, hub or {})

    @classmethod
    def open(
        cls,
        source: str | os.PathLike[str],
        *,
        vae: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        hub: Mapping[str, Any] | None = None,
    ) -> Checkpoint:
        """Locate a checkpoint and read its config and its weights' headers; weights stay on disk.

        source: a folder, or a hub id "organization/name" at `revision`. vae: the same for the VAE; without it, the
        `vae` subfolder, else what DEFAULT_VAE names for a published model (fetched when first used), else none.
        hub: options of a fetch, see `fetch_repository`.
        ConfigError or CheckpointError when a part is missing, damaged, or does not describe a JanusFlow model.
        """
        found = cls.locate(source, vae=vae, revision=revision, hub=hub)
        _ = found.config, found.weights
        if vae is not None or isinstance(found.vae_source, Path):
            found.check_vae()
        return found

    @cached_property
    def config_dict(self) -> dict[str, Any]:
        path = self.folder / "config.json"
        if not is_file(path):
            raise ConfigError(f"{path}: no such file{hints.no_config(self.folder, names_in(self.folder))}")
        return read_json(path, ConfigError)

    @cached_property
    def config(self) -> JanusFlowConfig:
        try:
            tied = self.config_dict.get("tie_word_embeddings") is True
            return JanusFlowConfig.from_dict(with_tied_head(self.config_dict, self.weights.names() if tied else ()))
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
        return VaeFiles.locate(self.vae_source, options=self.hub)

    def check_vae(self) -> None:
        """Read the VAE's config and headers, if there is a VAE. ConfigError if it belongs to another model."""
        if self.vae is not None:
            self.vae.config.check_fits(self.config)
            _ = self.vae.weights


def _folder(
    source: str,
    revision: str | None,
    stem: str,
    torch_stem: str,
    more: list[str],
    options: Mapping[str, Any] | None = None,
) -> Path:
    """The local folder called `source`, else the snapshot of the hub repository of that name."""
    if not source:
        raise CheckpointError("checkpoint: expected a folder or a hub id, got an empty name")
    try:
        path = Path(source).expanduser()
    except RuntimeError as error:  # "~user" without a home directory
        raise CheckpointError(
            f"{source:.200}: expected a checkpoint folder; {str(error).rstrip('.').lower()}"
        ) from None
    if is_folder(path):
        if not names_in(path):
            raise CheckpointError(f"{path}: the folder is empty; expected config.json and weights{unfinished(path)}")
        return path
    if os.path.exists(path):
        raise CheckpointError(f"{path}: expected a folder with config.json and weights, got a file")
    if not is_hub_id(source):
        raise CheckpointError(
            f"{str(path)[:200]}: no such folder; expected a checkpoint folder or a hub id such as organization/name"
        )
    vae_weights = [f"vae/{_VAE}*.safetensors*"] if stem == _MODEL else []
    groups = [
        [f"{stem}.safetensors", f"{stem}-*.safetensors", f"{stem}.safetensors.index.json"],
        [f"{torch_stem}.bin", f"{torch_stem}-*.bin", f"{torch_stem}.bin.index.json"],
        ["*.safetensors"],
    ]
    return fetch_repository(source, revision, ["config.json", *more, *vae_weights], groups, options)


def _weights(folder: Path, stem: str, torch_stem: str) -> FileSource:
    """The weights in `folder`. CheckpointError if there are none, or if an index names a file that is missing."""
    names = names_in(folder)
    for pattern in (
        f"{stem}.safetensors",
        f"{stem}.safetensors.index.json",
        f"{stem}-*-of-*.safetensors",
        f"{torch_stem}.bin",
        f"{torch_stem}.bin.index.json",
        f"{torch_stem}-*.bin",
        "*.safetensors",  # last, because the folder may also hold those of an optimizer or an adapter
    ):
        found = [name for name in names if fnmatchcase(name, pattern) and is_file(folder / name)]
        if found and pattern.endswith(".json"):
            return _indexed(folder / found[0])
        if found:
            _check_complete(folder, found)
            return FileSource([folder / name for name in found], str(folder))
    raise CheckpointError(
        f"{folder}: no weights; expected {stem}.safetensors, {stem}.safetensors.index.json with its shards, "
        f"another *.safetensors, or {torch_stem}.bin{hints.no_weights(folder, names)}"
    )


def _check_complete(folder: Path, names: list[str]) -> None:
    """Raise CheckpointError if a file's name says that it is one of several and another of them is missing."""
    shards = [shard for shard in map(_SHARD.fullmatch, names) if shard is not None]
    wanted = {f"{s[1]}{i:05d}-of-{s[2]}{s[3]}" for s in shards for i in range(1, int(s[2]) + 1)}
    _check_there(str(folder), folder, wanted)


def _indexed(index: Path) -> FileSource:
    """The shards that an index names; each name must be a plain file name in the index's folder."""
    weight_map = read_json(index, ConfigError).get("weight_map")
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
    _check_there(str(index), index.parent, names)
    return FileSource([index.parent / name for name in sorted(names)], str(index.parent), weight_map)


def _check_there(label: str, folder: Path, names: set[str]) -> None:
    absent = sorted(name for name in names if not is_file(folder / name))
    if absent:
        raise CheckpointError(
            f"{label}: {len(absent)} of {len(names)} files are absent{unfinished(folder)}, fetch them: "
            f"{', '.join(absent[:5])}"
        )
