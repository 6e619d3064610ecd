"""Parts of a checkpoint that belong to different models, and surroundings that must not change a result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from flashjanus import ImageTokens, JanusFlow
from flashjanus.builtin import builtin_folder
from flashjanus.errors import ConfigError, InputError


def altered(folder: Path, file: str, **changes: object) -> Path:
    """A copy of the built-in model with a JSON file changed."""
    shutil.copytree(builtin_folder(), folder)
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(tmp_path: Path) -> None:
    config = json.loads((builtin_folder() / "config.json").read_text())
    language = {**config["language_config"], "vocab_size": 300}
    folder = altered(tmp_path / "model", "config.json", language_config=language)
    with pytest.raises(ConfigError, match=r"expected at most language_config\.vocab_size = 300 tokens, got \d+"):
        JanusFlow.from_pretrained(folder)


def test_image_blocks_of_another_encoder_are_refused(tmp_path: Path) -> None:
    folder = altered(tmp_path / "model", "processor_config.json", num_image_tokens=30)
    with pytest.raises(ConfigError, match=r"expected num_image_tokens 16, .* got 30"):
        JanusFlow.from_pretrained(folder)


def test_autocast_around_a_request_changes_nothing(untrained: JanusFlow) -> None:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = untrained.sample_latents([[0, 40, 3]], noise, num_inference_steps=2)
    with torch.autocast("cpu", torch.bfloat16):
        inside = untrained.sample_latents([[0, 40, 3]], noise, num_inference_steps=2)
        image = untrained.decode_latents(plain)
    assert torch.equal(inside, plain)
    assert torch.equal(image, untrained.decode_latents(plain))


def test_an_image_that_no_row_shows_is_refused(untrained: JanusFlow) -> None:
    pixels = torch.zeros(1, 1, 3, 64, 64)
    with pytest.raises(InputError, match="expected image blocks in input_ids"):
        untrained.next_token_logits(torch.tensor([[0, 40, 41]]), None, pixels)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (ImageTokens(-1, 2), "expected an integer from 0 to 447, got -1"),
        (ImageTokens("a", "b"), "got 'a'"),  # type: ignore[arg-type]
        (ImageTokens(7, 7), "expected two different ids, got 7 twice"),
    ],
)
def test_image_tokens_that_are_no_ids_are_refused(untrained: JanusFlow, tokens: ImageTokens, words: str) -> None:
    with pytest.raises(InputError, match=words):
        untrained.next_token_logits(torch.tensor([[0, 40, 41]]), image_tokens=tokens)
