"""`random-weights` writes what a published checkpoint consists of, and everything that loads one loads it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.compat.diffusers import AutoencoderKL
from flashjanus.compat.janusflow import MultiModalityCausalLM, VLChatProcessor
from flashjanus.measure.bench.models import random_model
from flashjanus.measure.bench.random_checkpoint import shapes_of, write_random_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("size", ["full", "thin"])
def test_the_tensors_are_all_those_of_the_official_checkpoint(size: str) -> None:
    manifest = json.loads((GOLDEN / f"{size}.manifest.json").read_text())
    assert {name: list(shape) for name, shape in shapes_of(size)[0].items()} == manifest


def test_a_written_checkpoint_is_the_random_model(cli, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "random"
    result = cli("random-weights", folder, "--size", "shapes", "--json")
    assert (result.code, result.err) == (0, "")
    elements = sum(math.prod(shape) for shape in shapes_of("shapes")[0].values())
    assert result.json == {"destination": str(folder), "size": "shapes", "bytes": 2 * elements}
    assert cli("inspect", folder, "--json").json["problems"] == []
    loaded, made = JanusFlow.from_pretrained(folder, dtype="float32"), random_model("shapes", dtype="float32")
    for weights, others in (
        (loaded.runner.weights, made.runner.weights),
        (loaded.runner.vae_weights, made.runner.vae_weights),
    ):
        assert weights.keys() == others.keys()
        assert all(torch.equal(weight, others[name]) for name, weight in weights.items())
    assert loaded.generate_image("a red circle", num_inference_steps=1).images[0].size == (64, 64)


def test_the_official_classes_and_quantize_take_it(cli, tmp_path: Path) -> None:
    folder = tmp_path / "random"
    write_random_checkpoint(folder, "shapes", shard_bytes=2**20)
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert cli("quantize", folder, tmp_path / "int8").code == 0
    processor, model = VLChatProcessor.from_pretrained(folder), MultiModalityCausalLM.from_pretrained(folder)
    assert processor.num_image_tokens == 16
    assert model.dtype == torch.bfloat16
    vae = AutoencoderKL.from_pretrained(folder)
    assert vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mean.shape == (1, 4, 8, 8)


def test_it_refuses_before_it_writes(cli, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    for arguments, words in (
        ([tmp_path], "empty or does not exist"),
        ([""], "DST is empty"),
        ([tmp_path / "new", "--size", "huge"], "huge"),
    ):
        result = cli("random-weights", *arguments)
        assert result.code == 2
        assert words in result.err
        assert result.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_random_checkpoint(tmp_path / "random", "shapes", progress=stop)
    assert list(tmp_path.iterdir()) == []
