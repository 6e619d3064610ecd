"""`flashjanus.accelerate`: an engine on the memory of a model that was loaded as torch modules."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import flashjanus
import pytest
import tokenizers
import torch
from flashjanus import JanusFlow
from flashjanus.builtin import builtin_folder
from flashjanus.errors import CheckpointError, InputError
from official_calls import official_loop, on_torch, small_official
from safetensors.torch import load_file
from small_model import LATENT, normal, prompt, relative_error
from torch import nn

NEAR = 2e-5


class StandIn(nn.Module):
    """A model of the official layout in modules that are not ours: its parameters under the official names."""

    def __init__(self, source: nn.Module, config: dict) -> None:
        super().__init__()
        self.config = SimpleNamespace(to_dict=lambda: config)
        for name, parameter in source.state_dict().items():
            at, _, last = name.rpartition(".")
            owner = self
            for part in filter(None, at.split(".")):
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner._modules[part]
            owner.register_parameter(last, nn.Parameter(parameter.detach().clone()))


def test_it_draws_what_the_models_own_loop_draws():
    model = on_torch(small_official())
    stand_in = StandIn(model, model.config.to_dict())
    ids, noise = prompt(3, 9), normal(1, 2, *LATENT)
    expected = official_loop(model, torch.tensor(ids), noise, 4, 2.0)
    before = {name: tensor.clone() for name, tensor in stand_in.state_dict().items()}
    fast = flashjanus.accelerate(stand_in)
    assert relative_error(fast.sample_latents([ids] * 2, noise, 2.0, 4), expected) <= NEAR
    assert all(torch.equal(tensor, before[name]) for name, tensor in stand_in.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_memory_is_the_models(dtype):
    model = small_official(dtype)
    stand_in = StandIn(model, model.config.to_dict())
    fast = flashjanus.accelerate(stand_in, tiles=False)
    report = fast.report
    assert report.shared + report.copied + report.unused == sum(p.nbytes for p in stand_in.parameters())
    own = {p.untyped_storage().data_ptr(): n for n, p in stand_in.named_parameters()}
    engine = {w.untyped_storage().data_ptr() for w in fast.runner.weights.values()}
    shared = sum(p.nbytes for p in stand_in.parameters() if p.untyped_storage().data_ptr() in engine)
    assert shared == report.shared
    assert len(own) > len(engine & own.keys()) > 0
    q = stand_in.get_submodule("language_model.model.layers.0.self_attn.q_proj").weight
    assert q.data_ptr() == fast.runner.weights["llm.0.qkv"].data_ptr()
    linears = [n for n in report.copies if n.endswith("_proj.weight") or "channelwise_linear" in n]
    assert linears == []
    if dtype is torch.float32:
        assert set(report.copies.values()) == {"kept in another order"}
    assert f"{report.share:.1%} of" in str(report)


def test_a_vae_and_a_processor_make_it_whole():
    folder = builtin_folder("shapes")
    native = JanusFlow.from_pretrained("shapes", device="cpu", dtype="float32")
    source = flashjanus.compat.janusflow.MultiModalityCausalLM.from_pretrained("shapes", torch_dtype="float32")
    config = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
    vae = nn.Module()
    for name, tensor in load_file(folder / "vae" / "diffusion_pytorch_model.safetensors").items():
        at, _, last = name.rpartition(".")
        owner = vae
        for part in at.split("."):
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]
        owner.register_parameter(last, nn.Parameter(tensor.float()))
    vae.config = config
    settings = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    named = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokens = {name: named[name] for name in ("bos_token", "eos_token") if name in named}
    theirs = SimpleNamespace(backend_tokenizer=backend, **tokens)
    images = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    processor = SimpleNamespace(
        tokenizer=theirs, image_processor=SimpleNamespace(**images), **settings | {"num_image_tokens": 64}
    )
    processor.num_image_tokens = native.tokenizer.num_image_tokens
    fast = flashjanus.accelerate(source, vae=vae, processor=processor)
    options = dict(num_inference_steps=2, seed=3, output_type="pt")
    assert torch.equal(
        fast.generate_image("a red circle", **options).images, native.generate_image("a red circle", **options).images
    )
    question = [{"role": "user", "content": "What is it?"}]
    assert fast.chat(question, max_new_tokens=4) == native.chat(question, max_new_tokens=4)
    assert fast.report.share > 0.5
    assert source.core.engine.model is fast  # and its own calls run on the same weights


def test_what_it_refuses():
    model = small_official()
    with pytest.raises(InputError, match="expected a torch module with the official model's config, got dict"):
        flashjanus.accelerate({})
    with pytest.raises(InputError, match="quantization: unknown option, expected numerics"):
        flashjanus.accelerate(model, quantization="int8")
    mixed = StandIn(model, model.config.to_dict())
    mixed.get_submodule("language_model.lm_head").double()
    with pytest.raises(InputError, match="expected one dtype on one device, got"):
        flashjanus.accelerate(mixed)
    less = StandIn(model, model.config.to_dict())
    del less.language_model.lm_head.weight
    with pytest.raises(CheckpointError, match=r"missing: language_model\.lm_head\.weight"):
        flashjanus.accelerate(less)
    with pytest.raises(InputError, match="a fast tokenizer"):
        flashjanus.accelerate(model, processor=SimpleNamespace(tokenizer=None))


def test_importing_the_package_imports_no_torch():
    code = "import sys, flashjanus; assert 'accelerate' in flashjanus.__all__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
