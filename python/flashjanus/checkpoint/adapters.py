"""LoRA adapters of the language model as PEFT saves them: adapter_config.json beside adapter_model.safetensors.

The whole adapter is checked against the model before any of it is loaded: every tensor has to be a factor of one of
the language model's projections, and factors must come in pairs with the shapes and the rank that the config states.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flashjanus.checkpoint.config import LanguageConfig
from flashjanus.checkpoint.fields import Fields, raise_problems
from flashjanus.checkpoint.hub import fetch_repository, is_hub_id
from flashjanus.checkpoint.layout import FLOAT_DTYPES
from flashjanus.checkpoint.sources import FileSource
from flashjanus.disk.paths import cannot_read, is_file, is_folder, names_in, unfinished
from flashjanus.disk.reading import read_json
from flashjanus.errors import CheckpointError, ConfigError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_RANK = 1 << 20
LISTED = 8
_FACTOR = re.compile(
    r"(?:base_model\.model\.)?(?:language_model\.)?(?:model\.)?"
    r"layers\.(\d+)\.(?:self_attn|mlp)\.(\w+_proj)\.lora_([AB])(?:\.default)?\.weight"
)
_OTHER_METHODS = {
    "lora_magnitude_vector": "the magnitudes of DoRA",
    "lora_embedding_": "an adapter of the token embeddings",
    "modules_to_save": "a whole module that was trained beside the adapter",
    "base_layer": "a weight of the model itself",
    ".bias": "a bias",
}
_ALTERED = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Prefixes of init_lora_weights for which PEFT derives an adapter's initial factors from the model's weights."""


@dataclass(frozen=True)
class Linear:
    """A linear of every layer: its number of inputs, and its outputs by projection, in stacking order."""

    columns: int
    rows: Mapping[str, int]


def linears(config: LanguageConfig) -> dict[str, Linear]:
    """The linears that adapters can modify, by name in the layout."""
    d, f = config.hidden_size, config.intermediate_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    return {
        "qkv": Linear(d, {"q_proj": q, "k_proj": kv, "v_proj": kv}),
        "o": Linear(q, {"o_proj": d}),
        "gate_up": Linear(d, {"gate_proj": f, "up_proj": f}),
        "down": Linear(f, {"down_proj": d}),
    }


@dataclass(frozen=True)
class Factors:
    """scale * up down is added to a projection's weight (rows, columns): down (r, columns), up (rows, r)."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float

    @property
    def rank(self) -> int:
        return len(self.down)

    def product(self) -> torch.Tensor:
        """(rows, columns), float32."""
        return self.scale * (self.up.float() @ self.down.float())


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter that fits a language model: factors by layer and projection, and the largest rank among them."""

    source: str
    factors: Mapping[tuple[int, str], Factors]

    @property
    def rank(self) -> int:
        return max(factors.rank for factors in self.factors.values())

    @staticmethod
    def combined(source: str, weights: Sequence[tuple[AdapterFiles, float]]) -> AdapterFiles:
        """The weighted sum of adapters as a single adapter, whose rank is the sum of their ranks."""
        places = dict.fromkeys(at for files, _ in weights for at in files.factors)
        found = {}
        for at in places:
            own = [(files.factors[at], weight) for files, weight in weights if at in files.factors]
            down = torch.cat([one.down.float() for one, _ in own])
            up = torch.cat([weight * one.scale * one.up.float() for one, weight in own], 1)
            found[at] = Factors(down, up, 1.0)
        return AdapterFiles(source, found)

    @property
    def targets(self) -> tuple[str, ...]:
        """The projections that it modifies in some layer."""
        return tuple(sorted({projection for _, projection in self.factors}))

    @classmethod
    def read(cls, source: str | os.PathLike[str], config: LanguageConfig, revision: str | None = None) -> AdapterFiles:
        """Read a folder, or a hub id at `revision`. Raises CheckpointError, or ConfigError for adapter_config.json."""
        folder = _folder(source, revision)
        settings = _Settings.read(folder / CONFIG)
        weights = FileSource([folder / WEIGHTS], str(folder / WEIGHTS))
        try:
            return cls(os.fspath(source), _factors(weights, settings, config))
        finally:
            weights.close()


@dataclass(frozen=True)
class _Settings:
    """The fields of adapter_config.json that determine ranks and scales."""

    path: Path
    rank: int
    alpha: float
    stabilized: bool
    ranks: Mapping[str, Any]
    alphas: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> _Settings:
        problems: list[str] = []
        fields = Fields(read_json(path, ConfigError), "", problems)
        if fields.data.get("peft_type") != "LORA":
            fields.bad("peft_type", '"LORA"')
            raise_problems(str(path), problems)
        fields.refuse_unless("use_dora", (False,), "DoRA scales the model's own weights; train with use_dora=False")
        fields.refuse_unless("bias", ("none",), 'the language model has no biases; train with bias="none"')
        fields.refuse_unless("lora_bias", (False,), "the language model has no biases; train with lora_bias=False")
        fields.refuse_unless("fan_in_fan_out", (False,), "the projections are torch's linears")
        for key, what in (
            ("modules_to_save", "whole modules cannot be switched by request; save them into the checkpoint"),
            ("trainable_token_indices", "the token embeddings are shared by all requests"),
            ("target_parameters", "adapters change projections only"),
            ("alora_invocation_tokens", "an adapter is on for a whole request"),
            ("megatron_config", "the projections are torch's linears"),
            ("layer_replication", "the model has the layers of its checkpoint"),
        ):
            if fields.data.get(key):
                fields.bad(key, f"null ({what})")
        begins = fields.data.get("init_lora_weights")
        if isinstance(begins, str) and begins.startswith(_ALTERED):
            fields.bad(
                "init_lora_weights",
                "true, false or gaussian (this adapter belongs to altered weights; save it again with "
                "path_initial_model_for_weight_conversion)",
            )
        patterns = {}
        for key in ("rank_pattern", "alpha_pattern"):
            found = fields.data.get(key) or {}
            if not isinstance(found, Mapping) or not all(_positive(v) and _is_pattern(k) for k, v in found.items()):
                fields.bad(key, "numbers above 0 by a module's name or a plain regular expression")
                found = {}
            patterns[key] = found
        settings = cls(
            path,
            fields.size("r", 8, MAX_RANK),
            fields.number("lora_alpha", 8.0),
            fields.flag("use_rslora", False),
            patterns["rank_pattern"],
            patterns["alpha_pattern"],
        )
        raise_problems(str(path), problems)
        return settings

    def of(self, module: str) -> tuple[int, float]:
        """Rank and scale of a module."""
        rank = int(self._pattern(self.ranks, module, self.rank))
        alpha = float(self._pattern(self.alphas, module, self.alpha))
        return rank, alpha / (math.sqrt(rank) if self.stabilized else rank)

    def _pattern(self, patterns: Mapping[str, Any], module: str, default: float) -> float:
        """Match as PEFT does: the first pattern that matches the end of the module's name, starting at a name part."""
        found = (value for pattern, value in patterns.items() if re.match(rf"(?:.*\.)?(?:{pattern})$", module))
        return float(next(found, default))


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e9


def _is_pattern(text: str) -> bool:
    """True for a regular expression that cannot take long to search: no repeated groups and few repetitions."""
    repeated = re.search(r"\)[*+{]", text) or len(re.findall(r"[*+{]", text)) > 4 or len(text) > 200
    try:
        return not repeated and bool(re.compile(text))
    except re.error:
        return False


def fingerprint(source: str | os.PathLike[str]) -> str:
    """A hash of an adapter's files, in a folder or at a hub id. Raises CheckpointError if they cannot be read."""
    folder, found = _folder(source, None), hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise cannot_read(folder / name, error) from error
        found.update(hashlib.sha256(data).digest())
    return found.hexdigest()


def _folder(source: str | os.PathLike[str], revision: str | None) -> Path:
    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
        raise CheckpointError(f"adapter: expected a folder or a hub id, got {source!r:.80}")
    name, path = os.fspath(source), Path(source).expanduser()
    if not is_folder(path):
        if os.path.exists(path):
            raise CheckpointError(f"{path}: expected a folder with {CONFIG} and {WEIGHTS}, got a file")
        if not is_hub_id(name):
            raise CheckpointError(f"{name:.200}: no such folder; expected one that PEFT's save_pretrained wrote")
        path = fetch_repository(name, revision, [CONFIG], [[WEIGHTS]])
    for file in (CONFIG, WEIGHTS):
        if is_file(path / file):
            continue
        inner = [n for n in names_in(path) if os.path.isfile(path / n / CONFIG)]
        hint = f"; there is an adapter in {', '.join(inner[:3])}: give that folder" if inner else unfinished(path)
        if is_file(path / "adapter_model.bin"):
            hint = "; adapter_model.bin is a pickle: save the adapter again with PEFT and safe_serialization=True"
        raise CheckpointError(f"{path / file}: no such file{hint}")
    return path


def _factors(weights: FileSource, settings: _Settings, config: LanguageConfig) -> dict[tuple[int, str], Factors]:
    """All pairs in the file. CheckpointError lists every tensor that is no factor, misshapen or unpaired."""
    shapes = {name: (rows, one.columns) for one in linears(config).values() for name, rows in one.rows.items()}
    problems: list[str] = []
    found: dict[tuple[int, str], dict[str, str]] = {}
    for name, info in weights.names().items():
        match = _FACTOR.fullmatch(name)
        if match is None or match[2] not in shapes or int(match[1]) >= config.num_hidden_layers:
            problems.append(f"{name}: {_why_not(name, match, config)}")
            continue
        rank, _ = settings.of(_module(name))
        rows, columns = shapes[match[2]]
        expected = (rank, columns) if match[3] == "A" else (rows, rank)
        if info.shape != expected:
            said = f"rank {rank} from {CONFIG}, and {columns if match[3] == 'A' else rows} features"
            problems.append(f"{name}: expected {list(expected)} ({said}), got {list(info.shape)}")
        elif info.dtype not in FLOAT_DTYPES:
            problems.append(f"{name}: expected floats, got {info.dtype}")
        found.setdefault((int(match[1]), match[2]), {})[match[3]] = name
    for pair in found.values():
        (one, *others) = pair.values()
        if not others:
            problems.append(f"{one}: expected both lora_A and lora_B, got one of them")
    if not found and not problems:
        problems.append("expected lora_A and lora_B of at least one projection, got no tensor")
    if problems:
        more = [f"and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
        raise CheckpointError(
            "\n  ".join([f"{weights.label}: not an adapter of this model", *problems[:LISTED], *more])
        )
    return {at: _pair(weights, pair, settings) for at, pair in found.items()}


def _module(name: str) -> str:
    return name.partition(".lora_")[0].removeprefix("base_model.model.")


def _why_not(name: str, match: re.Match[str] | None, config: LanguageConfig) -> str:
    other = next((words for part, words in _OTHER_METHODS.items() if part in name), None)
    if other is not None:
        return f"{other}; expected only lora_A and lora_B"
    if match is not None and int(match[1]) >= config.num_hidden_layers:
        return f"expected a layer below {config.num_hidden_layers}, got {match[1]}"
    targets = ", ".join(projection for one in linears(config).values() for projection in one.rows)
    return f"expected a projection of the language model ({targets})"


def _pair(weights: FileSource, pair: Mapping[str, str], settings: _Settings) -> Factors:
    down, up = (weights.read(pair[factor]).clone() for factor in "AB")
    for name, tensor in ((pair["A"], down), (pair["B"], up)):
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{weights.label}: {name} holds NaN or inf; its training diverged")
    return Factors(down, up, settings.of(_module(pair["A"]))[1])
