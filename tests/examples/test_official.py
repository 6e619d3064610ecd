"""examples/official: scripts for the official code whose import lines name FlashJanus instead.

examples.safetensors holds what the same scripts gave with the official imports, the official code and diffusers, on the
thin checkpoint of the goldens in float32. Its metadata say how.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from flashjanus import JanusFlow
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from seeded import seeded_state_dict
from small_model import relative_error

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden"
SCRIPTS = ("understand", "generate", "demo")
PICTURE = Image.fromarray(np.random.RandomState(7).randint(0, 256, (30, 40, 3), dtype=np.uint8))
QUESTION, PROMPT = "What is this?", "a red circle above a blue square"
NEW = 24


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    monkeypatch.syspath_prepend(str(ROOT / "examples/official"))
    yield {name: import_module(name) for name in SCRIPTS}
    for name in SCRIPTS:
        sys.modules.pop(name)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    PICTURE.save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


def test_understanding_answers_what_the_engine_answers(scripts, picture, untrained_folder, untrained: JanusFlow):
    _, answer = scripts["understand"].understand(
        str(untrained_folder), picture, QUESTION, dtype=torch.float32, max_new_tokens=NEW
    )
    content = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]
    assert answer == untrained.chat([{"role": "user", "content": content}], max_new_tokens=NEW)
    assert answer


def test_a_script_names_flashjanus_in_its_import_lines_alone():
    for name in SCRIPTS:
        lines = (ROOT / f"examples/official/{name}.py").read_text(encoding="utf-8").splitlines()
        code = lines[next(i for i, line in enumerate(lines) if line.startswith("from __future__")) :]
        named = [line for line in code if "flashjanus" in line]
        assert 1 <= len(named) <= 2
        assert all(line.startswith("from flashjanus.compat.") for line in named)


@pytest.fixture(scope="module")
def thin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The thin checkpoint of the goldens, in the official layout."""
    folder = tmp_path_factory.mktemp("models") / "thin"
    (folder / "vae").mkdir(parents=True)
    for name in ("tokenizer", "tokenizer_config", "processor_config", "preprocessor_config"):
        shutil.copy(GOLDEN / f"{name}.json", folder)
    shutil.copy(GOLDEN / "thin.config.json", folder / "config.json")
    shutil.copy(GOLDEN / "vae_thin.config.json", folder / "vae/config.json")
    for manifest, prefix, file in (
        ("thin", "", "model.safetensors"),
        ("vae_thin", "vae.", "vae/diffusion_pytorch_model.safetensors"),
    ):
        shapes = json.loads((GOLDEN / f"{manifest}.manifest.json").read_text())
        save_file(seeded_state_dict(shapes, prefix), folder / file)
    return folder


@pytest.fixture(scope="module")
def recorded() -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(GOLDEN / "examples.safetensors", framework="pt") as file:
        return load_file(GOLDEN / "examples.safetensors"), file.metadata()


@pytest.mark.long
def test_understanding_equals_the_official_run(scripts, picture, thin_folder, recorded):
    prompt, answer = scripts["understand"].understand(
        str(thin_folder), picture, QUESTION, dtype=torch.float32, max_new_tokens=NEW
    )
    assert prompt == recorded[1]["understand.prompt"]
    assert answer == recorded[1]["understand.answer"]


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_generation_equals_the_official_run(scripts, thin_folder, recorded, dtype):
    """In float32; in bfloat16, whose z the loop itself rounds, it is no farther from float32 than the official run."""
    model, vae = str(thin_folder), str(thin_folder / "vae")
    z, images = scripts["generate"].generate(
        model, vae, PROMPT, dtype=dtype, num_inference_steps=3, batchsize=2, seed=5
    )
    found, official = relative_error(z.float(), recorded[0]["generate.z1"]), recorded[0]["generate.z1_bf16"].float()
    if dtype is torch.bfloat16:
        assert found <= 1.05 * relative_error(official, recorded[0]["generate.z1"])
        return
    assert found <= 1e-4
    assert relative_error(images[:, :, ::4, ::4], recorded[0]["generate.image"]) <= 1e-4


@pytest.mark.long
def test_the_demo_equals_the_official_run(scripts, thin_folder, recorded, monkeypatch):
    monkeypatch.setattr(scripts["demo"], "IMAGES", 1)
    demo = scripts["demo"].Demo(str(thin_folder), str(thin_folder / "vae"), dtype=torch.float32)
    ask = dict(image=np.array(PICTURE), question=QUESTION, seed=1, top_p=0.95, max_new_tokens=NEW)
    assert demo.multimodal_understanding(**ask, temperature=0) == recorded[1]["demo.answer"]
    assert demo.multimodal_understanding(**ask, temperature=0.7) == recorded[1]["demo.sampled"]
    [image] = demo.generate_image("a red circle", seed=3, guidance=5, num_inference_steps=2)
    assert image.size == (1024, 1024)
    levels = np.array(image)[::8, ::8].astype(int)
    assert np.abs(levels - recorded[0]["demo.image"].numpy()).max() <= 1
