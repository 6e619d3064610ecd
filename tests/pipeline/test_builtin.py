from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from flashjanus.builtin import _FILES, builtin_folder, cache_folder, is_untrained, model_shapes, vae_shapes
from flashjanus.checkpoint import Checkpoint, JanusFlowConfig, VaeConfig, check_layout, vae_layout, weight_layout
from flashjanus.errors import CheckpointError, OutputError
from flashjanus.pipeline.images import ImageProcessor
from flashjanus.pipeline.prompts import DEFAULT_SYSTEM_PROMPT, encode_chat, encode_generation_prompt
from flashjanus.pipeline.tokenizer import Tokenizer
from safetensors import SafetensorError
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLASHJANUS_CACHE", str(tmp_path_factory.mktemp("cache")))
        return builtin_folder()


def digest(folder: Path) -> dict[str, str]:
    return {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in _FILES}


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_names_and_shapes_are_those_of_the_official_model():
    shapes = model_shapes(JanusFlowConfig.from_dict(read(GOLDEN / "thin.config.json")))
    assert {name: list(shape) for name, shape in shapes.items()} == read(GOLDEN / "thin.manifest.json")


def test_names_and_shapes_are_those_of_diffusers():
    shapes = vae_shapes(VaeConfig.from_dict(read(GOLDEN / "vae_thin.config.json")))
    assert {name: list(shape) for name, shape in shapes.items()} == read(GOLDEN / "vae_thin.manifest.json")


def test_the_checkpoint_is_complete_and_small(folder):
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == sorted(_FILES)
    assert sum((folder / file).stat().st_size for file in _FILES) < 20e6
    checkpoint = Checkpoint.open(folder)
    assert check_layout(weight_layout(checkpoint.config), checkpoint.weights) == []
    assert checkpoint.vae is not None
    assert check_layout(vae_layout(checkpoint.vae.config), checkpoint.vae.weights) == []
    assert checkpoint.config.num_image_tokens == checkpoint.config.num_understanding_tokens == 36
    assert checkpoint.vae.config.scale * checkpoint.config.latent_size == 96
    assert is_untrained(checkpoint.config_dict)


def test_weights_are_finite_and_keep_unit_size(folder):
    tensors = load_file(folder / "model.safetensors") | load_file(folder / "vae/diffusion_pytorch_model.safetensors")
    x = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.bfloat16
        assert bool(tensor.isfinite().all()), name
        if tensor.ndim == 2 and "embed" not in name:
            out = tensor.float() @ torch.randn(tensor.shape[1], generator=x)
            assert 0.6 < out.std() < 1.6, name


def test_tokenizer_and_processors_fit_the_config(folder):
    config = JanusFlowConfig.from_file(folder / "config.json")
    t = Tokenizer.from_files(*(folder / f"{n}.json" for n in ("tokenizer", "tokenizer_config", "processor_config")))
    assert (t.bos_id, t.eos_id, t.pad_id, t.image_gen_id) == (0, 1, 2, 3)
    assert t.vocab_size <= config.language.vocab_size < t.vocab_size + 64
    assert t.num_image_tokens == config.num_understanding_tokens
    raw = read(folder / "tokenizer.json")
    assert {t.image_id, t.image_start_id, t.image_end_id} <= {token["id"] for token in raw["added_tokens"]}
    for text in ("a red circle on a white background", "图 😀\n"):
        assert t.decode(t.encode_text(text)) == text
    assert len(encode_generation_prompt("a red circle above a blue square", t)) < 30
    content = [{"type": "image", "image": "x"}, {"type": "text", "text": "How many circles are there?"}]
    ids = encode_chat([{"role": "user", "content": content}], t, max_tokens=256).ids
    assert ids.count(t.image_id) == 36
    assert len(t.encode_text(DEFAULT_SYSTEM_PROMPT)) < 50  # its words are in the vocabulary
    assert ImageProcessor.from_file(folder / "preprocessor_config.json", config.understanding.image_size)


def test_it_is_made_once_and_healed_where_files_are_gone(tmp_path, monkeypatch, folder):
    monkeypatch.setenv("FLASHJANUS_CACHE", str(tmp_path / "new" / "cache"))
    made = builtin_folder("shapes")
    before = {file: (made / file).stat().st_mtime_ns for file in _FILES}
    assert builtin_folder() == made
    (made / "vae/config.json").unlink()
    (made / "tokenizer.json").unlink()
    assert builtin_folder() == made
    assert digest(made) == digest(folder)
    kept = set(_FILES) - {"vae/config.json", "tokenizer.json"}
    assert all((made / file).stat().st_mtime_ns == before[file] for file in kept)
    assert os.listdir(made.parent) == [made.name]


def test_racing_processes_agree(tmp_path, folder):
    code = "from flashjanus.builtin import builtin_folder; print(builtin_folder())"
    environment = {**os.environ, "FLASHJANUS_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    racers = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    made = {racer.communicate(timeout=120)[0].strip() for racer in racers}
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert len(made) == 1
    assert os.listdir(tmp_path) == [Path(made.pop()).name]
    assert digest(tmp_path / os.listdir(tmp_path)[0]) == digest(folder)


def test_the_cache_folder_is_looked_up_when_called(monkeypatch):
    monkeypatch.setenv("FLASHJANUS_CACHE", "/a/b")
    assert cache_folder() == Path("/a/b")
    monkeypatch.delenv("FLASHJANUS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/flashjanus")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/home/someone/.cache/flashjanus")


def test_a_user_without_a_home_is_told_what_to_do(monkeypatch):
    monkeypatch.setenv("FLASHJANUS_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(OutputError, match="set FLASHJANUS_CACHE"):
        builtin_folder()


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setenv("FLASHJANUS_CACHE", str(tmp_path))
    monkeypatch.setattr("flashjanus.builtin.save_file", fail)
    with pytest.raises(OutputError, match="No space left"):
        builtin_folder()
    assert os.listdir(tmp_path) == []


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("FLASHJANUS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OutputError, match="FLASHJANUS_CACHE"):
        builtin_folder()
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_in_the_place_of_the_folder(tmp_path, monkeypatch, folder):
    monkeypatch.setenv("FLASHJANUS_CACHE", str(tmp_path))
    (tmp_path / folder.name).write_text("x")
    with pytest.raises(OutputError, match="cannot make"):
        builtin_folder()
    assert os.listdir(tmp_path) == [folder.name]


def test_unknown_names_are_refused():
    with pytest.raises(CheckpointError, match="shapes"):
        builtin_folder("circles")


@pytest.mark.parametrize("config", [{}, {"flashjanus": {}}, {"flashjanus": {"untrained": False}}, {"flashjanus": 5}])
def test_other_models_are_not_untrained(config):
    assert not is_untrained(config)
