"""Where a pipeline's model comes from, and where it goes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from drawn_pipeline import drawn, seeded
from flashjanus import JanusFlow
from flashjanus.compat import JanusFlowPipeline
from flashjanus.errors import DeviceError, FlashJanusError, InputError
from safetensors.torch import load_file


def test_to_loads_the_model_anew_where_it_must(untrained_folder: Path, model: JanusFlow) -> None:
    pipe = JanusFlowPipeline.from_pretrained(untrained_folder, dtype=torch.float32, device_map="cpu")
    first = pipe.model
    for same in (("cpu",), (torch.device("cpu"),), (torch.float32,), ("cpu", torch.float32), (None,), ()):
        assert pipe.to(*same) is pipe
        assert pipe.model is first
    assert pipe.to(torch_dtype=torch.bfloat16, device="cpu").dtype == torch.bfloat16
    assert pipe.model is not first
    assert pipe.to(torch.float16).model.runner.vae_policy.matrix == torch.float32  # whose decoder overflows in float16
    second = pipe.model
    with pytest.raises(DeviceError, match="no mps runtime"):
        pipe.to("mps")
    with pytest.raises(InputError, match="to: expected a device, a dtype"):
        pipe.to(torch.float32, "cpu")
    assert pipe.model is second
    with pytest.raises(InputError, match=r"only a pipeline from JanusFlowPipeline\.from_pretrained can load it again"):
        JanusFlowPipeline(model).to(torch.bfloat16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(variant="fp16"), "variant: .*torch_dtype"),
        (dict(quantization_config=SimpleNamespace()), "quantization_config: .*quantization='int8'"),
        (dict(scheduler=SimpleNamespace()), "scheduler: .*solver"),
        (
            dict(vae=SimpleNamespace()),
            "vae: expected a folder, a hub id, or an AutoencoderKL of diffusers, got",
        ),
        (dict(torch_dtyp=torch.float32), "torch_dtyp: unknown argument.*did you mean torch_dtype?"),
        (dict(torch_dtype=torch.float32, dtype=torch.float16), "torch_dtype, dtype: expected one of these two names"),
        (dict(torch_dtype="float8"), "dtype: expected 'auto'"),
        (dict(device_map="balanced"), "device_map: expected one device"),
        (dict(quantization="int3"), "quantization: expected"),
    ],
)
def test_what_loading_refuses(untrained_folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FlashJanusError, match=message):
        JanusFlowPipeline.from_pretrained(untrained_folder, **options)


def test_a_vae_that_a_program_has_loaded(pipe: JanusFlowPipeline, untrained_folder: Path) -> None:
    """As scripts load sdxl-vae-fp16-fix and pass it on."""
    tensors = load_file(untrained_folder / "vae/diffusion_pytorch_model.safetensors")
    config = json.loads((untrained_folder / "vae/config.json").read_text())
    brighter = {**tensors, "decoder.conv_out.bias": tensors["decoder.conv_out.bias"] + 0.5}
    images = []
    for state in (tensors, brighter):
        vae = SimpleNamespace(config=config, state_dict=lambda of=state: of)
        own = JanusFlowPipeline.from_pretrained(untrained_folder, torch_dtype=torch.float32, vae=vae)
        images.append(drawn(own, generator=seeded(0)))
    assert torch.equal(drawn(own.to(torch.bfloat16).to(torch.float32), generator=seeded(0)), images[1])
    assert torch.equal(images[0], drawn(pipe, generator=seeded(0)))
    assert float((images[1] - images[0]).max()) == pytest.approx(0.25, abs=1e-3)
    config = {**config, "latent_channels": 16}
    with pytest.raises(FlashJanusError, match="latent_channels: expected 4"):
        JanusFlowPipeline.from_pretrained(untrained_folder, vae=SimpleNamespace(config=config, state_dict=dict))


def test_options_of_the_hub_reach_the_model_and_its_vae(
    untrained_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    for name in ("model", "vae"):
        (tmp_path / name).mkdir()
    for file in untrained_folder.iterdir():
        if file.is_file():
            (tmp_path / "model" / file.name).symlink_to(file)
    for file in (untrained_folder / "vae").iterdir():
        (tmp_path / "vae" / file.name).symlink_to(file)

    def snapshot_download(repository: str, *, allow_patterns: list[str], revision: str | None, **options: Any) -> str:
        asked.append((repository, revision, options))
        return str(tmp_path / ("vae" if repository.endswith("vae") else "model"))

    hub = ModuleType("huggingface_hub")
    hub.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    options = dict(cache_dir=tmp_path, token="t", local_files_only=True)
    name = "deepseek-ai/JanusFlow-1.3B"
    pipe = JanusFlowPipeline.from_pretrained(name, revision="main", **options)
    assert pipe.name_or_path == name
    assert {(repository, revision) for repository, revision, _ in asked} == {
        (name, "main"),
        ("stabilityai/sdxl-vae", None),
    }
    assert all(given == {**options, "force_download": False} for *_, given in asked)


def test_loading_takes_what_is_so_anyway_and_presets(untrained_folder: Path) -> None:
    harmless = dict(use_safetensors=True, low_cpu_mem_usage=True, safety_checker=None, variant=None, cache_dir=None)
    pipe = JanusFlowPipeline.from_pretrained(untrained_folder, quantization="int8", **harmless)
    assert pipe.model.quantization == "int8"
    with pytest.raises(InputError, match="model: expected a JanusFlow, got str"):
        JanusFlowPipeline("shapes")  # type: ignore[arg-type]
