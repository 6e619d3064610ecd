from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from flashjanus.checkpoint import Checkpoint, FileSource, describe, format_description
from flashjanus.checkpoint.files import TEXT_FILES
from safetensors.torch import save_file

State = dict[str, torch.Tensor]
TEXT = {
    "tokenizer.json": {"added_tokens": [{"content": "<a>"}], "model": {"vocab": {"<b>": 1}}},
    "processor_config.json": {
        "image_tag": "<a>",
        "image_start_tag": "<b>",
        "image_end_tag": "<c>",
        "num_image_tokens": 4,
    },
}


@pytest.fixture
def whole(folder_with_vae: Path) -> Path:
    for name, content in TEXT.items():
        (folder_with_vae / name).write_text(json.dumps(content))
    return folder_with_vae


def no_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: FileSource, name: str) -> torch.Tensor:
        raise AssertionError(f"read {name}")

    monkeypatch.setattr(FileSource, "read", read)


def test_a_whole_checkpoint(whole: Path, state: State, vae_state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    no_reads(monkeypatch)
    described = describe(Checkpoint.open(whole))
    assert described["problems"] == []
    assert described["model_type"] == "multi_modality"
    assert (described["sizes"]["language"]["num_hidden_layers"], described["sizes"]["num_image_tokens"]) == (2, 16)
    parts = {part["part"]: part for part in described["parts"]}
    assert set(parts) == {
        "language model", "understanding encoder", "generation encoder", "generation decoder", "aligners and others",
    }  # fmt: skip
    assert sum(part["parameters"] for part in parts.values()) == sum(tensor.numel() for tensor in state.values())
    assert sum(part["bytes"] for part in parts.values()) == 4 * sum(tensor.numel() for tensor in state.values())
    llm = [tensor.numel() for name, tensor in state.items() if name.startswith("language_model.")]
    assert (parts["language model"]["tensors"], parts["language model"]["parameters"]) == (len(llm), sum(llm))
    assert described["dtypes"] == {"float32": len(state)}
    assert [file["name"] for file in described["files"]] == ["model.safetensors"]
    assert described["tags"] == {
        "image_tag": {"text": "<a>", "in_tokenizer": True},
        "image_start_tag": {"text": "<b>", "in_tokenizer": True},
        "image_end_tag": {"text": "<c>", "in_tokenizer": False},
    }
    assert described["text_files"]["tokenizer.json"]
    assert not described["text_files"]["preprocessor_config.json"]
    assert described["vae"]["scale"] == 2
    assert sum(part["parameters"] for part in described["vae"]["parts"]) == sum(t.numel() for t in vae_state.values())
    json.dumps(described)


def test_the_text_for_a_terminal(whole: Path) -> None:
    text = format_description(describe(Checkpoint.open(whole)))
    for piece in ("2 layers, width 48, 6 heads x 8 (2 key/value)", "16 tokens", "VAE decoder", "no problems", "total"):
        assert piece in text
    assert "<c> (added when loading)" in text
    assert max(len(line) for line in text.splitlines() if str(whole) not in line) <= 120


def test_problems_are_listed_side_by_side(whole: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    del state["beg_of_und_embed"]
    save_file(state, whole / "model.safetensors")
    (whole / "vae" / "config.json").write_text("{")
    (whole / "tokenizer.json").unlink()
    no_reads(monkeypatch)
    described = describe(Checkpoint.locate(whole))
    problems = described["problems"]
    assert len(problems) == 3
    assert "missing: beg_of_und_embed [1, 48]" in problems[0]
    assert "not JSON" in problems[1]
    assert "no tokenizer.json" in problems[2]
    text = format_description(described)
    assert all(problem in text for problem in problems)


@pytest.mark.parametrize("damage", ["config", "weights", "both"])
def test_damaged_parts_leave_the_others_described(whole: Path, damage: str) -> None:
    if damage != "weights":
        (whole / "config.json").write_text('{"model_type": "other"}')
    if damage != "config":
        os.truncate(whole / "model.safetensors", 64)
    described = describe(Checkpoint.locate(whole))
    assert len(described["problems"]) == (2 if damage == "both" else 1)
    assert (described["sizes"] is None) == (damage != "weights")
    assert (described["parts"] == []) == (damage != "config")
    assert described["vae"]["parts"]
    format_description(described)


def test_a_vae_that_does_not_fit(whole: Path) -> None:
    path = whole / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"latent_channels": 8}))
    problems = describe(Checkpoint.locate(whole))["problems"]
    assert "latent_channels: expected 4" in problems[0]
    assert "misshapen: decoder.conv_in.weight expected [16, 8, 3, 3], got [16, 4, 3, 3]" in problems[1]


def test_without_a_vae(folder: Path) -> None:
    described = describe(Checkpoint.open(folder))
    assert described["vae"] is None
    assert "none: images cannot be decoded" in format_description(described)


def test_a_vae_on_the_hub_is_named_and_not_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    found = Checkpoint("deepseek-ai/JanusFlow-1.3B", folder, "stabilityai/sdxl-vae")
    described = describe(found)
    assert described["vae"] == {"source": "stabilityai/sdxl-vae", "is_local": False}
    assert "stabilityai/sdxl-vae (fetched when first used)" in format_description(described)


@pytest.mark.parametrize("content", ["[", "1"])
@pytest.mark.parametrize("name", TEXT_FILES)
def test_text_files_that_are_no_json(whole: Path, name: str, content: str) -> None:
    (whole / name).write_text(content)
    assert [name in problem for problem in describe(Checkpoint.open(whole))["problems"]] == [True]


def test_a_tokenizer_that_is_no_json_without_a_processor(whole: Path) -> None:
    (whole / "processor_config.json").unlink()
    (whole / "tokenizer.json").write_text("[")
    (problem,) = describe(Checkpoint.open(whole))["problems"]
    assert "tokenizer.json: expected a JSON object" in problem


@pytest.mark.parametrize(
    "tokenizer", [{"added_tokens": 3}, {"added_tokens": [3], "model": {"vocab": [["<a>", 0]]}}, {"model": 1}]
)
def test_odd_tokenizer_files(whole: Path, tokenizer: object) -> None:
    (whole / "tokenizer.json").write_text(json.dumps(tokenizer))
    tags = describe(Checkpoint.open(whole))["tags"]
    assert not any(tag["in_tokenizer"] for tag in tags.values())
