"""diffusers' names for adapters draw what the model's own do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from drawn_pipeline import drawn, seeded
from flashjanus import JanusFlow
from flashjanus.compat import JanusFlowPipeline
from flashjanus.errors import InputError
from small_adapter import write_adapter


@pytest.fixture(scope="module")
def adapters(model: JanusFlow, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("first", "second")):
        write_adapter(folder / name, model.config.language, rank=2, seed=seed)
    return {name: folder / name for name in ("first", "second")}


def test_adapters_are_loaded_set_and_unloaded(untrained_folder: Path, adapters: dict[str, Path]) -> None:
    pipe = JanusFlowPipeline.from_pretrained(untrained_folder, torch_dtype=torch.float32)

    def latents() -> torch.Tensor:
        return drawn(pipe, generator=seeded(0))

    plain = latents()
    pipe.load_lora_weights(adapters["first"])
    first = latents()
    pipe.load_lora_weights(str(adapters["second"]), adapter_name="other")
    other = latents()
    assert len({image.numpy().tobytes() for image in (plain, first, other)}) == 3
    assert (pipe.get_active_adapters(), pipe.get_list_adapters()) == (["other"], {"language_model": ["first", "other"]})
    pipe.disable_lora()
    assert torch.equal(latents(), plain)
    assert pipe.get_active_adapters() == []
    pipe.enable_lora()
    assert torch.equal(latents(), other)
    pipe.set_adapters(["first"], adapter_weights=[1.0])
    assert torch.equal(latents(), first)
    assert torch.equal(drawn(JanusFlowPipeline.from_pipe(pipe), generator=seeded(0)), plain)  # has set none
    pipe.to(torch.bfloat16).to(torch.float32)
    assert torch.equal(latents(), first)
    pipe.set_adapters("other")
    pipe.model.unload_adapter("other")  # as another pipeline of the model might
    with pytest.raises(InputError, match="adapter: 'other' is active but no longer loaded"):
        latents()
    pipe.unload_lora_weights()
    assert (pipe.get_list_adapters(), pipe.model.adapters) == ({}, {})
    assert torch.equal(latents(), plain)


def test_a_fused_adapter_stays_in_the_weights(untrained_folder: Path, adapters: dict[str, Path]) -> None:
    """As in the recipe that fuses, and unloads to save memory."""
    pipe = JanusFlowPipeline.from_pretrained(untrained_folder, torch_dtype=torch.float32)
    plain = drawn(pipe, generator=seeded(0))
    pipe.load_lora_weights(adapters["first"])
    named = drawn(pipe, generator=seeded(0))
    pipe.fuse_lora(adapter_names=["first"])
    pipe.unload_lora_weights()
    torch.testing.assert_close(drawn(pipe, generator=seeded(0)), named, atol=1e-4, rtol=0)
    assert not torch.equal(drawn(pipe, generator=seeded(0)), plain)
    pipe.unfuse_lora()
    assert torch.equal(drawn(pipe, generator=seeded(0)), plain)


def test_what_adapters_refuse(pipe: JanusFlowPipeline, adapters: dict[str, Path]) -> None:
    path = adapters["first"]
    for wrong, message in (
        (lambda: pipe.load_lora_weights(path, weight_name="pytorch_lora_weights.safetensors"), "weight_name: expected"),
        (lambda: pipe.load_lora_weights({"weight": torch.zeros(1)}), "expected the folder or the hub id.*got dict"),
        (lambda: pipe.set_adapters(["a", "b"]), "adapter_names: expected one name, because one adapter draws an image"),
        (lambda: pipe.set_adapters("a"), r"adapter_names: expected the name of a loaded adapter \(none\), got 'a'"),
        (lambda: pipe.set_adapters("a", 0.5), "adapter_weights: expected 1"),
        (lambda: pipe.fuse_lora(), "fuse_lora: expected a loaded and active adapter"),
        (lambda: pipe.fuse_lora(lora_scale=0.7), "lora_scale: expected 1"),
        (lambda: pipe.delete_adapters(["a"]), "adapter_names: expected the name of a loaded adapter"),
    ):
        with pytest.raises(InputError, match=message):
            wrong()
