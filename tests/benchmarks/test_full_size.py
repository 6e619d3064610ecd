"""The checkpoint that benchmarks write loads like a published one."""

from __future__ import annotations

from pathlib import Path

import full_size
import pytest
from flashjanus import JanusFlow
from flashjanus.measure.bench.models import configs, random_model
from small_model import small_config


def test_a_written_checkpoint_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_size, "SHARD_BYTES", 100_000)
    full_size.make(tmp_path, small_config())
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = JanusFlow.from_pretrained(tmp_path, device="cpu", dtype="float32")
    assert model.runner.vae_config is None


def test_it_has_the_weights_of_the_random_model(tmp_path: Path) -> None:
    config, vae = configs("shapes")
    full_size.add_faces(tmp_path, config, vae)
    full_size.make(tmp_path, config)
    loaded, made = JanusFlow.from_pretrained(tmp_path, dtype="float32"), random_model("shapes", dtype="float32")
    assert all((loaded.runner.weights[name] == weight).all() for name, weight in made.runner.weights.items())
    assert loaded.generate_image("a red circle", num_inference_steps=1).images[0].size == (64, 64)
