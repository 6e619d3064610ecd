"""The built-in model as it is installed; what its weights are worth, flashjanus.measure.evaluation measures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import flashjanus.builtin
import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.builtin import FILES, NAMES, builtin_folder
from flashjanus.checkpoint import Checkpoint, check_layout, vae_layout, weight_layout
from flashjanus.errors import CheckpointError, ConfigError
from flashjanus.inputs.images import ImageProcessor
from flashjanus.inputs.prompts import DEFAULT_SYSTEM_PROMPT, encode_chat, encode_generation_prompt
from flashjanus.inputs.tokenizer import Tokenizer
from flashjanus.measure.evaluation import world
from safetensors.torch import load_file

WEIGHTS = [file for file in FILES if file.endswith(".safetensors")]


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of another installation, whose files a test may change."""
    shutil.copytree(builtin_folder(), tmp_path / "shapes")
    monkeypatch.setattr(flashjanus.builtin, "__file__", str(tmp_path / "__init__.py"))
    return tmp_path / "shapes"


def test_the_checkpoint_is_complete_and_small() -> None:
    folder = builtin_folder()
    found = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert found.keys() - {"MODEL_CARD.md"} == set(FILES)
    assert sum(found.values()) < 20_000_000
    checkpoint = Checkpoint.open(folder)
    assert check_layout(weight_layout(checkpoint.config), checkpoint.weights) == []
    assert checkpoint.vae is not None
    assert check_layout(vae_layout(checkpoint.vae.config), checkpoint.vae.weights) == []
    assert checkpoint.vae.config.scale * checkpoint.config.latent_size == world.SIZE


@pytest.mark.parametrize("file", WEIGHTS)
def test_weights_are_finite_bfloat16(file: str) -> None:
    for name, tensor in load_file(builtin_folder() / file).items():
        assert tensor.dtype == torch.bfloat16, name
        assert bool(tensor.isfinite().all()), name


def test_the_latents_of_the_ceiling_fit_the_model() -> None:
    config = Checkpoint.open(builtin_folder()).config
    latents = load_file(builtin_folder() / "evaluation.safetensors")["latents"]
    assert latents.shape[1:] == (config.gen_encoder.input_channels, config.latent_size, config.latent_size)


def test_tokenizer_and_processors_fit_the_config() -> None:
    folder = builtin_folder()
    config = Checkpoint.open(folder).config
    t = Tokenizer.from_files(*(folder / f"{n}.json" for n in ("tokenizer", "tokenizer_config", "processor_config")))
    assert (t.bos_id, t.eos_id, t.pad_id, t.image_gen_id) == (0, 1, 2, 3)
    assert t.vocab_size <= config.language.vocab_size < t.vocab_size + 64
    assert t.num_image_tokens == config.num_understanding_tokens
    added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    assert {t.image_id, t.image_start_id, t.image_end_id} <= {token["id"] for token in added}
    for text in ("a red circle on a white background", "图 😀\n"):
        assert t.decode(t.encode_text(text)) == text
    assert len(encode_generation_prompt("a red circle above a blue square", t)) < 30
    content = [{"type": "image", "image": "x"}, {"type": "text", "text": "How many circles are there?"}]
    ids = encode_chat([{"role": "user", "content": content}], t, max_tokens=256).ids
    assert ids.count(t.image_id) == config.num_understanding_tokens
    assert len(t.encode_text(DEFAULT_SYSTEM_PROMPT)) < 50
    assert ImageProcessor.from_file(folder / "preprocessor_config.json", config.understanding.image_size)


def test_it_draws_and_answers() -> None:
    model = JanusFlow.from_pretrained("shapes", device="cpu", dtype="float32")
    assert model.name == "shapes"
    (image,) = model.generate_image("a red circle", num_inference_steps=2, seed=1).images
    assert image.size == (world.SIZE, world.SIZE)
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What color is the circle?"}]
    assert isinstance(model.chat([{"role": "user", "content": content}], max_new_tokens=8), str)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(CheckpointError, match="no built-in model 'circles'; there is: shapes"):
        builtin_folder("circles")


@pytest.mark.parametrize("name", NAMES)
def test_an_installation_without_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(flashjanus.builtin, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(CheckpointError, match=r"missing config\.json, model\.safetensors.*install it again"):
        JanusFlow.from_pretrained(name)


@pytest.mark.parametrize("file", FILES)
def test_each_missing_file_is_named(copy: Path, file: str) -> None:
    assert builtin_folder() == copy
    (copy / file).unlink()
    with pytest.raises(CheckpointError, match=f"missing {file};"):
        builtin_folder()


@pytest.mark.parametrize("file", ["model.safetensors", "vae/diffusion_pytorch_model.safetensors"])
def test_a_pointer_in_the_place_of_weights(copy: Path, file: str) -> None:
    """As git-lfs leaves them where it is not installed."""
    (copy / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 18000000\n")
    with pytest.raises(CheckpointError, match=Path(file).name):
        JanusFlow.from_pretrained("shapes")


def test_its_vae_may_be_one_file() -> None:
    """Whose config its shapes tell, but for the groups, which are SDXL's: those of this one are too narrow for them."""
    weights = builtin_folder() / "vae/diffusion_pytorch_model.safetensors"
    with pytest.raises(ConfigError, match="norm_num_groups"):
        JanusFlow.from_pretrained("shapes", vae=weights)
