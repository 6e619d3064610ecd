from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from flashjanus.checkpoint import Checkpoint, load_weights, vae_layout, weight_layout
from flashjanus.errors import CheckpointError, ConfigError
from safetensors.torch import save_file

State = dict[str, torch.Tensor]


def assert_loads(found: Checkpoint, state: State) -> None:
    """The weights on disk are those of `state`."""
    assert {name: info.shape for name, info in found.weights.names().items()} == {
        name: tuple(tensor.shape) for name, tensor in state.items()
    }
    weights = load_weights(
        weight_layout(found.config), found.weights, matrix_dtype=torch.float32, vector_dtype=torch.float32
    )
    assert torch.equal(weights["llm.embed"], state["language_model.model.embed_tokens.weight"])
    assert torch.equal(weights["vit.norm.b"], state["vision_und_enc_model.vision_tower.norm.bias"])


def shard(folder: Path, state: State, names: list[str], index: str) -> dict[str, str]:
    """Split `state` over the files `names`, with an index; the single file goes."""
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i, file in enumerate(names):
        part = dict(list(state.items())[i :: len(names)])
        save_file(part, folder / file) if file.endswith(".safetensors") else torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = "model.safetensors.index.json"


def test_one_safetensors_file(folder: Path, state: State) -> None:
    found = Checkpoint.open(folder)
    assert found.vae is None
    assert found.text_files == {}
    assert_loads(found, state)


def test_shards_with_an_index(folder: Path, state: State) -> None:
    shard(folder, state, SHARDS, INDEX)
    assert_loads(Checkpoint.open(str(folder)), state)


def test_any_safetensors_files(folder: Path, state: State) -> None:
    shard(folder, state, ["weights-a.safetensors", "weights-b.safetensors"], "unrelated.json")
    assert_loads(Checkpoint.open(folder), state)


def test_one_torch_file(folder: Path, state: State) -> None:
    shard(folder, state, ["pytorch_model.bin"], "unrelated.json")
    assert_loads(Checkpoint.open(folder), state)


def test_torch_shards(folder: Path, state: State) -> None:
    files = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    shard(folder, state, files, "pytorch_model.bin.index.json")
    assert_loads(Checkpoint.open(folder), state)


def test_model_safetensors_comes_before_other_files(folder: Path, state: State) -> None:
    save_file({"junk": torch.zeros(1)}, folder / "consolidated.safetensors")
    torch.save({"junk": torch.zeros(1)}, folder / "pytorch_model.bin")
    assert_loads(Checkpoint.open(folder), state)


@pytest.mark.parametrize(
    "names",
    [
        ["pytorch_model.bin"],
        ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
        SHARDS,
    ],
    ids=["bin", "bin shards", "shards"],
)
def test_weights_under_their_usual_names_come_before_other_files(folder: Path, state: State, names: list[str]) -> None:
    shard(folder, state, names, "unrelated.json")
    save_file({"junk": torch.zeros(1)}, folder / "optimizer.safetensors")
    assert_loads(Checkpoint.open(folder), state)


def test_text_files_are_listed(folder: Path) -> None:
    for name in ("tokenizer.json", "processor_config.json", "README.md"):
        (folder / name).write_text("{}")
    assert Checkpoint.open(folder).text_files == {
        name: folder / name for name in ("tokenizer.json", "processor_config.json")
    }


def test_vae_subfolder(folder_with_vae: Path, vae_state: State) -> None:
    vae = Checkpoint.open(folder_with_vae).vae
    assert vae is not None
    weights = load_weights(vae_layout(vae.config), vae.weights, matrix_dtype=torch.float32, vector_dtype=torch.float32)
    assert torch.equal(weights["vae.conv_out.w"], vae_state["decoder.conv_out.weight"])


def test_vae_in_its_own_folder(folder_with_vae: Path, tmp_path: Path, vae_state: State) -> None:
    own = tmp_path / "own"
    (folder_with_vae / "vae").rename(own)
    (own / "diffusion_pytorch_model.safetensors").rename(own / "sdxl_vae.safetensors")
    assert Checkpoint.open(folder_with_vae).vae is None
    vae = Checkpoint.open(folder_with_vae, vae=own).vae
    assert vae is not None
    assert set(vae.weights.names()) == set(vae_state)


def test_vae_as_a_torch_file(folder_with_vae: Path, vae_state: State) -> None:
    (folder_with_vae / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(vae_state, folder_with_vae / "vae" / "diffusion_pytorch_model.bin")
    vae = Checkpoint.open(folder_with_vae).vae
    assert vae is not None
    assert set(vae.weights.names()) == set(vae_state)


def test_vae_of_another_model(folder_with_vae: Path) -> None:
    path = folder_with_vae / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"latent_channels": 16}))
    with pytest.raises(ConfigError, match="latent_channels: expected 4"):
        Checkpoint.open(folder_with_vae)


def test_vae_without_weights(folder_with_vae: Path) -> None:
    (folder_with_vae / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"vae: no weights; expected diffusion_pytorch_model\.safetensors"):
        Checkpoint.open(folder_with_vae)


def test_missing_vae_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        Checkpoint.open(folder, vae=tmp_path / "absent")


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder; expected a checkpoint folder or a hub id"):
        Checkpoint.open(tmp_path / "absent")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the folder is empty"):
        Checkpoint.open(tmp_path)


def test_a_file_in_place_of_a_folder(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected a folder with config.json and weights, got a file"):
        Checkpoint.open(folder / "config.json")


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        Checkpoint.open(folder)


def test_config_that_is_not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{'model_type': 1}")
    with pytest.raises(ConfigError, match="expected a JSON object, got text that is not JSON"):
        Checkpoint.open(folder)


def test_wrong_model_type_names_the_folder(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match=f'{folder}: model_type: expected "multi_modality", got "llama"'):
        Checkpoint.open(folder)


def test_a_config_too_large_to_be_one(folder: Path) -> None:
    with (folder / "config.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ConfigError, match="bytes, expected at most"):
        Checkpoint.open(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "training_args.bin")
    with pytest.raises(CheckpointError, match=r"no weights; expected model\.safetensors"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("keep", [4, 100, 0.5, 0.999])
def test_truncated_safetensors(folder: Path, keep: float) -> None:
    path = folder / "model.safetensors"
    size = path.stat().st_size
    os.truncate(path, keep if isinstance(keep, int) else int(size * keep))
    with pytest.raises(CheckpointError, match=r"not a complete safetensors file .* fetch it again"):
        Checkpoint.open(folder)


def test_safetensors_of_noise(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 5000)
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        Checkpoint.open(folder)


def test_an_index_that_names_an_absent_shard(folder: Path, state: State) -> None:
    shard(folder, state, SHARDS, INDEX)
    (folder / SHARDS[1]).unlink()
    with pytest.raises(CheckpointError, match=f"{INDEX}: 1 of 2 files are absent, fetch them: {SHARDS[1]}"):
        Checkpoint.open(folder)


def test_a_tensor_in_two_shards(folder: Path, state: State) -> None:
    shard(folder, state, SHARDS, INDEX)
    save_file(state, folder / SHARDS[1])
    with pytest.raises(CheckpointError, match=f"is in two files, {SHARDS[0]} and {SHARDS[1]}"):
        Checkpoint.open(folder)


def test_an_index_that_is_wrong_about_a_tensor(folder: Path, state: State) -> None:
    weight_map = shard(folder, state, SHARDS, INDEX)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map | {"ghost": SHARDS[0]}}))
    with pytest.raises(CheckpointError, match=r"the index puts tensor ghost in .*, which does not hold it"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "sub/x.safetensors",
        "..",
        "",
        ".",
        "a\\b.safetensors",
        "x\0.bin",
        3,
        "x.pkl",
    ],
)
def test_an_index_that_leaves_its_folder(folder: Path, state: State, name: object) -> None:
    save_file(state, folder.parent / "outside.safetensors")
    weight_map = shard(folder, state, SHARDS, INDEX)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map | {"beg_of_und_embed": name}}))
    with pytest.raises(CheckpointError, match=r"expected the plain name of a .safetensors or .bin file"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_an_index_without_a_map(folder: Path, state: State, weight_map: object) -> None:
    shard(folder, state, SHARDS, INDEX)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="expected an object weight_map"):
        Checkpoint.open(folder)


class Payload:
    """Unpickling this would make a folder."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("source", ["", "~nobody-of-this-name/x", "x" * 5000, None, 3])
def test_names_that_are_no_folder(source: object) -> None:
    with pytest.raises(CheckpointError, match="expected a"):
        Checkpoint.open(source)  # type: ignore[arg-type]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_does_not_run(folder: Path, tmp_path: Path, zipped: bool) -> None:
    (folder / "model.safetensors").unlink()
    mark = tmp_path / "ran"
    torch.save({"x": Payload(mark)}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"refused: it is damaged, or its pickle|zip format") as error:
        Checkpoint.open(folder)
    assert "weights_only" not in str(error.value)  # no advice to run it
    assert not mark.exists()
    if zipped:
        torch.load(folder / "pytorch_model.bin", weights_only=False)
        assert mark.exists()  # the payload is live: only the restricted unpickler kept it from running


@pytest.mark.parametrize("content", [b"noise", pickle.dumps([1]), b"PK\x03\x04" + b"\0" * 100])
def test_damaged_torch_files(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: (refused|not a file that torch\.save wrote)"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("value", [[torch.zeros(2)], {"step": 3}, {}, {"model": {"x": 3}}])
def test_torch_files_of_something_else(folder: Path, value: object) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(value, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="expected a state dict of tensors"):
        Checkpoint.open(folder)


def test_a_float8_file_is_refused_as_weights(folder: Path, state: State) -> None:
    state["language_model.lm_head.weight"] = state["language_model.lm_head.weight"].to(torch.float8_e4m3fn)
    save_file(state, folder / "model.safetensors")
    found = Checkpoint.open(folder)
    with pytest.raises(
        CheckpointError, match=r"wrong dtype: language_model.lm_head.weight expected .* got float8_e4m3fn"
    ):
        load_weights(weight_layout(found.config), found.weights, matrix_dtype=torch.float32, vector_dtype=torch.float32)
