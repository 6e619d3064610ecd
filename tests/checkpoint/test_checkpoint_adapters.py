"""PEFT's adapter files: what fits is read, and what does not is refused with every cause."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flashjanus.checkpoint import JanusFlowConfig, adapters
from flashjanus.checkpoint.adapters import AdapterFiles
from flashjanus.errors import CheckpointError, ConfigError
from safetensors.torch import load_file, save_file
from small_adapter import write_adapter
from small_model import small_config

LANGUAGE = JanusFlowConfig.from_dict(small_config()).language
MODEL = "base_model.model.language_model.model"
Q = f"{MODEL}.layers.0.self_attn.q_proj"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "adapter", LANGUAGE, rank=4, targets=("q_proj", "down_proj"), lora_alpha=6)
    return tmp_path / "adapter"


def read(folder: Path) -> AdapterFiles:
    return AdapterFiles.read(folder, LANGUAGE)


def set_config(folder: Path, **settings: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_what_is_read(folder: Path) -> None:
    found, stored = read(folder), load_file(folder / "adapter_model.safetensors")
    assert (found.source, found.rank, found.targets) == (str(folder), 4, ("down_proj", "q_proj"))
    assert sorted(found.factors) == [(0, "down_proj"), (0, "q_proj"), (1, "down_proj"), (1, "q_proj")]
    factors = found.factors[0, "q_proj"]
    assert torch.equal(factors.down, stored[f"{Q}.lora_A.weight"])
    assert torch.equal(factors.up, stored[f"{Q}.lora_B.weight"])
    assert factors.scale == 1.5
    torch.testing.assert_close(factors.product(), 1.5 * (factors.up @ factors.down))


@pytest.mark.parametrize("prefix", ["base_model.model.model.", "base_model.model.", "language_model.model.", "model."])
def test_modules_under_any_name_of_the_language_model(tmp_path: Path, prefix: str) -> None:
    write_adapter(tmp_path, LANGUAGE, rank=2)
    given = "base_model.model.language_model.model."
    change_tensors(tmp_path, lambda t: [t.update({k.replace(given, prefix): t.pop(k)}) for k in [*t]])
    assert len(read(tmp_path).factors) == 14


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        (dict(use_rslora=True), 6 / math.sqrt(4)),
        (dict(lora_alpha=1), 0.25),
        (dict(alpha_pattern={"q_proj": 2, "down_proj": 40}), 0.5),
        (dict(alpha_pattern={r"layers\.1\..*": 2, r".*\.0\.self_attn\.q_proj": 8}), 2.0),
        (dict(alpha_pattern={"proj": 2}), 1.5),
        (dict(r=3, rank_pattern={"q_proj": 4, "mlp.down_proj": 4}), 1.5),
        (dict(rank_pattern=None, alpha_pattern=None, modules_to_save=None, layers_to_transform=[0, 1]), 1.5),
    ],
)
def test_scales(folder: Path, settings: dict[str, object], scale: float) -> None:
    set_config(folder, **settings)
    assert read(folder).factors[0, "q_proj"].scale == pytest.approx(scale)


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        (dict(peft_type="LOHA"), 'peft_type: expected "LORA", got "LOHA"'),
        (dict(use_dora=True), "use_dora: expected false .DoRA scales the model's own weights"),
        (dict(bias="all"), 'bias: expected "none" .the language model has no biases'),
        (dict(lora_bias=True), "lora_bias: expected false"),
        (dict(modules_to_save=["lm_head"]), "modules_to_save: expected null .whole modules"),
        (dict(trainable_token_indices=[1]), "trainable_token_indices: expected null"),
        (dict(target_parameters=["w"]), "target_parameters: expected null"),
        (dict(alora_invocation_tokens=[1]), "alora_invocation_tokens: expected null"),
        (dict(layer_replication=[[0, 1]]), "layer_replication: expected null"),
        (dict(fan_in_fan_out=True), "fan_in_fan_out: expected false"),
        (dict(init_lora_weights="pissa_niter_4"), "init_lora_weights: .*path_initial_model_for_weight_conversion"),
        (dict(r=0), r"r: expected an integer in 1\.\."),
        (dict(lora_alpha=-1), "lora_alpha: expected a finite number above 0"),
        (dict(use_rslora="yes"), "use_rslora: expected true or false"),
        (dict(rank_pattern={"q_proj": 0}), "rank_pattern: expected numbers above 0"),
        (dict(rank_pattern={"(a+)+": 3}), "rank_pattern: .*a plain regular expression"),
        (dict(alpha_pattern={"[": 3}), "alpha_pattern: .*a plain regular expression"),
        (
            dict(r=8),
            r"q_proj.lora_A.weight: expected \[8, 64\] \(rank 8 from adapter_config.json, and 64 features\), got",
        ),
        (dict(rank_pattern={"down_proj": 2}), r"down_proj.lora_B.weight: expected \[64, 2\]"),
    ],
)
def test_settings_that_are_refused(folder: Path, settings: dict[str, object], refusal: str) -> None:
    set_config(folder, **settings)
    with pytest.raises(CheckpointError, match=refusal):
        read(folder)


def test_every_bad_setting_is_said_at_once(folder: Path) -> None:
    set_config(folder, use_dora=True, bias="lora_only", r=-1)
    with pytest.raises(ConfigError, match=r"adapter_config.json: 3 bad values(\n.*){3}"):
        read(folder)


def moved(name: str, to: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({to: tensors.pop(name)})


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (
            lambda t: t.pop(f"{Q}.lora_B.weight"),
            "q_proj.lora_A.weight: expected both lora_A and lora_B, got one of them",
        ),
        (lambda t: t.clear(), "expected lora_A and lora_B of at least one projection, got no tensor"),
        (lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.ones(64)}), "the magnitudes of DoRA"),
        (lambda t: t.update({f"{Q}.lora_B.bias": torch.ones(64)}), "a bias; expected only lora_A and lora_B"),
        (
            lambda t: t.update(
                {"base_model.model.language_model.model.embed_tokens.lora_embedding_A": torch.ones(2, 2)}
            ),
            "an adapter of the token embeddings",
        ),
        (
            moved(f"{Q}.lora_A.weight", "base_model.model.language_model.lm_head.lora_A.weight"),
            r"lm_head.lora_A.weight: expected a projection of the language model \(q_proj, k_proj",
        ),
        (
            moved(
                f"{Q}.lora_A.weight",
                "base_model.model.vision_und_enc_model.vision_tower.blocks.0.attn.qkv.lora_A.weight",
            ),
            "vision_tower.*: expected a projection of the language model",
        ),
        (moved(f"{Q}.lora_A.weight", f"{Q.replace('.0.', '.2.')}.lora_A.weight"), "expected a layer below 2, got 2"),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 32)}), r"expected \[4, 64\] .*, got \[4, 32\]"),
        (lambda t: t.update({f"{Q}.lora_B.weight": torch.ones(64, 4).int()}), "expected floats, got int32"),
        (lambda t: t.update({f"{Q}.lora_B.weight": torch.full((64, 4), math.nan)}), "holds NaN or inf"),
    ],
)
def test_tensors_that_are_refused(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], refusal: str
) -> None:
    change_tensors(folder, change)
    with pytest.raises(CheckpointError, match=refusal):
        read(folder)


def test_an_adapter_of_another_model(tmp_path: Path) -> None:
    write_adapter(tmp_path, replace(LANGUAGE, intermediate_size=48, num_hidden_layers=4), rank=2)
    with pytest.raises(CheckpointError, match=r"not an adapter of this model(\n.*){8}\n  and \d+ more"):
        read(tmp_path)


def test_an_adapter_of_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetched(*request: object) -> Path:
        asked.append(request)
        return folder

    monkeypatch.setattr(adapters, "fetch_repository", fetched)
    assert AdapterFiles.read("somebody/ink", LANGUAGE, "v2").rank == 4
    assert asked == [("somebody/ink", "v2", ["adapter_config.json"], [["adapter_model.safetensors"]])]


def test_folders_that_hold_none(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such folder; expected one that PEFT's save_pretrained wrote"):
        read(tmp_path / "nowhere at all")
    with pytest.raises(CheckpointError, match=r"adapter_config.json: no such file; there is an adapter in adapter: "):
        read(tmp_path)
    with pytest.raises(CheckpointError, match="adapter: expected a folder or a hub id, got ''"):
        AdapterFiles.read("", LANGUAGE)
    weights = folder / "adapter_model.safetensors"
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model.bin is a pickle: save the adapter again with PEFT"):
        read(folder)
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="a Git LFS pointer"):
        read(folder)
