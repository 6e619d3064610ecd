"""Names and nestings that other programs give a checkpoint's tensors: they load, or one line names the cause."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.checkpoint import (
    Checkpoint,
    JanusFlowConfig,
    StateDictSource,
    VaeConfig,
    describe,
    load_weights,
    vae_layout,
    weight_layout,
)
from flashjanus.checkpoint.names import official_names, with_tied_head
from flashjanus.checkpoint.quantize import quantize_checkpoint
from flashjanus.engine.formats import tiles
from flashjanus.errors import CheckpointError
from safetensors.torch import save_file
from small_model import prompt, small_config, small_state

State = dict[str, torch.Tensor]
F32 = {"matrix_dtype": torch.float32, "vector_dtype": torch.float32}
HEAD = "language_model.lm_head.weight"
LORA = "base_model.model.language_model.model.layers.0.self_attn.q_proj"


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def assert_loads(layout: Any, source: Any, state: State) -> None:
    assert set(source.names()) == set(state)
    got, expected = load_weights(layout, source, **F32), load_weights(layout, StateDictSource(state), **F32)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def refused(layout: Any, state: State) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_weights(layout, StateDictSource(state, "here"), **F32)
    message = str(caught.value)
    assert message.startswith("here: ")
    return message


@pytest.mark.parametrize(
    "prefix",
    [
        *("_orig_mod.", "module.", "model.", "base_model.model.", "net."),
        *("module._orig_mod.", "_orig_mod.module.", "model.base_model.model.", "_fsdp_wrapped_module."),
    ],
)
@pytest.mark.parametrize("kind", ["memory", "safetensors", "shards", "bin"])
def test_what_every_name_begins_with_is_taken_off(
    config: JanusFlowConfig, folder: Path, state: State, prefix: str, kind: str
) -> None:
    renamed, layout = prefixed(state, prefix), weight_layout(config)
    if kind == "memory":
        assert_loads(layout, StateDictSource(renamed), state)
        return
    (folder / "model.safetensors").unlink()
    if kind == "shards":
        parts = {f"model-0000{i}-of-00002.safetensors": dict(list(renamed.items())[i - 1 :: 2]) for i in (1, 2)}
        for file, part in parts.items():
            save_file(part, folder / file)
        weight_map = {name: file for file, part in parts.items() for name in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    elif kind == "bin":
        torch.save(renamed, folder / "pytorch_model.bin")
    else:
        save_file(renamed, folder / "model.safetensors")
    found = Checkpoint.open(folder)
    assert_loads(layout, found.weights, state)
    described = describe(found)
    assert {part["part"] for part in described["parts"]} >= {"language model", "generation decoder"}
    assert not [problem for problem in described["problems"] if "tokenizer" not in problem]


def test_wrappers_in_the_middle_of_names(config: JanusFlowConfig, state: State) -> None:
    """Of parts that were compiled or wrapped by themselves."""
    renamed = {
        name.replace("language_model.", "language_model._orig_mod.")
        .replace("layers.1.", "layers.1._checkpoint_wrapped_module.")
        .replace("vision_tower.", "vision_tower._fsdp_wrapped_module."): tensor
        for name, tensor in state.items()
    }
    assert_loads(weight_layout(config), StateDictSource(renamed), state)


def test_names_that_would_become_one_stay_as_they_are() -> None:
    names = ["_orig_mod.beg_of_und_embed", "beg_of_und_embed"]
    assert official_names(names) == {name: name for name in names}
    assert official_names(["model.layers.0", "model.norm"]) == {
        "model.layers.0": "model.layers.0",
        "model.norm": "model.norm",
    }
    assert official_names([]) == {}


def test_a_prefix_that_some_names_lack_is_the_cause(config: JanusFlowConfig, state: State) -> None:
    mixed = prefixed(state, "module.") | {"step": torch.zeros(1)}
    message = refused(weight_layout(config), mixed)
    assert f'{len(state)} of {len(state) + 1} names begin with "module.", and others, such as step, do not' in message
    assert message.endswith(
        "expected official names: remove the prefix, and leave out tensors that do not belong to the model"
    )
    few = state | {"extra.decoder.conv_in.weight": torch.zeros(1)}
    assert "left over: extra.decoder.conv_in.weight [1]" in refused(weight_layout(config), few)
    mixed = prefixed(state, "ema.") | state
    assert f'{len(state)} of {2 * len(state)} names begin with "ema."' in refused(weight_layout(config), mixed)


def test_tensors_of_another_model(config: JanusFlowConfig) -> None:
    other = {"model.layers.0.mlp.up_proj.weight": torch.zeros(2, 2), "lm_head.weight": torch.zeros(2, 2)}
    assert refused(weight_layout(config), other) == (
        "here: none of its 2 tensors, such as model.layers.0.mlp.up_proj.weight, is one that config.json asks for"
    )


def test_a_missing_tensor_under_a_prefix_is_still_named(config: JanusFlowConfig, state: State) -> None:
    del state["beg_of_und_embed"]
    assert "missing: beg_of_und_embed [1, 48]" in refused(weight_layout(config), prefixed(state, "model."))


def adapted(state: State) -> State:
    """As `get_peft_model(model, LoraConfig(target_modules=["q_proj"])).state_dict()` names them."""
    renamed = {}
    for name, tensor in prefixed(state, "base_model.model.").items():
        renamed[name.replace("q_proj.weight", "q_proj.base_layer.weight")] = tensor
    return renamed | {
        f"{LORA}.lora_A.default.weight": torch.zeros(4, 48),
        f"{LORA}.lora_B.default.weight": torch.zeros(48, 4),
    }


@pytest.mark.parametrize("kind", ["whole", "adapter alone", "DoRA", "base_layer alone"])
def test_an_adapter_that_is_not_merged(config: JanusFlowConfig, folder: Path, state: State, kind: str) -> None:
    layer = f"{LORA}.lora_A.weight"
    tensors = {
        "whole": adapted(state),
        "adapter alone": {layer: torch.zeros(4, 48), layer.replace("A.weight", "B.weight"): torch.zeros(48, 4)},
        "DoRA": state | {f"{LORA}.lora_magnitude_vector": torch.zeros(48)},
        "base_layer alone": {name.replace("q_proj", "q_proj.base_layer"): tensor for name, tensor in state.items()},
    }[kind]
    message = refused(weight_layout(config), tensors)
    assert "tensors belong to a PEFT adapter that is not merged (" in message
    assert "call merge_and_unload() on the PEFT model and save the model that it returns" in message
    assert "\n" not in message
    save_file(tensors, folder / "model.safetensors")
    found = Checkpoint.open(folder)
    assert message.removeprefix("here") in describe(found)["problems"][0]
    with pytest.raises(CheckpointError, match="merge_and_unload"):
        quantize_checkpoint(found, folder.parent / "int8")
    assert not (folder.parent / "int8").exists()


def test_a_merged_adapter_loads(config: JanusFlowConfig, state: State) -> None:
    assert_loads(weight_layout(config), StateDictSource(prefixed(state, "base_model.model.")), state)


@pytest.mark.parametrize("entry", ["state_dict", "model", "module", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_state_dict_among_other_entries(
    config: JanusFlowConfig, folder: Path, state: State, entry: str, prefix: str
) -> None:
    """As Lightning, DeepSpeed and many a training loop save it."""
    saved = {"epoch": 3, entry: prefixed(state, prefix), "optimizer": {"state": {}, "param_groups": []}}
    layout = weight_layout(config)
    assert_loads(layout, StateDictSource(saved), state)  # type: ignore[arg-type]
    (folder / "model.safetensors").unlink()
    torch.save(saved, folder / "pytorch_model.bin")
    assert_loads(layout, Checkpoint.open(folder).weights, state)


def test_an_optimizer_in_place_of_a_model(folder: Path) -> None:
    moments = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
    optimizer: Any = {"state": {0: moments}, "param_groups": [{"lr": 1e-3, "params": [0]}]}  # as AdamW's
    (folder / "model.safetensors").unlink()
    torch.save(optimizer, folder / "pytorch_model.bin")
    for give in (lambda: Checkpoint.open(folder), lambda: StateDictSource(optimizer)):
        with pytest.raises(CheckpointError, match="got the state of an optimizer; give the file of the model's own"):
            give()


def test_a_quantized_copy_has_official_names(folder: Path, state: State) -> None:
    save_file(prefixed(state, "module._orig_mod."), folder / "model.safetensors")
    quantize_checkpoint(Checkpoint.open(folder), folder.parent / "int8")
    written = Checkpoint.open(folder.parent / "int8").weights
    assert {name for name in written.names() if not name.endswith("_scale")} == set(state)
    assert torch.equal(written.read("beg_of_und_embed"), state["beg_of_und_embed"])


@pytest.mark.parametrize("prefix", ["vae.", "first_stage_model.", "module."])
def test_a_vae_under_a_prefix(vae_config: VaeConfig, folder_with_vae: Path, vae_state: State, prefix: str) -> None:
    vae_state |= {"encoder.conv_in.weight": torch.zeros(1), "quant_conv.bias": torch.zeros(1)}
    save_file(prefixed(vae_state, prefix), folder_with_vae / "vae" / "diffusion_pytorch_model.safetensors")
    vae = Checkpoint.open(folder_with_vae).vae
    assert vae is not None
    assert_loads(vae_layout(vae_config), vae.weights, vae_state)


def compvis(name: str) -> str:
    """A name of the tiny VAE's two resolutions as in the published sdxl_vae.safetensors."""
    table = {
        "mid_block.resnets.0": "mid.block_1",
        "mid_block.resnets.1": "mid.block_2",
        "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
        "mid_block.attentions.0.to_q": "mid.attn_1.q",
        "mid_block.attentions.0.to_k": "mid.attn_1.k",
        "mid_block.attentions.0.to_v": "mid.attn_1.v",
        "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
        "up_blocks.0.upsamplers.0.conv": "up.1.upsample.conv",
        "up_blocks.0.resnets": "up.1.block",
        "up_blocks.1.resnets": "up.0.block",
        "conv_shortcut": "nin_shortcut",
        "conv_norm_out": "norm_out",
    }
    for ours, theirs in table.items():
        name = name.replace(ours, theirs)
    return name


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_a_vae_under_the_names_of_the_code_that_trained_it(
    vae_config: VaeConfig, vae_state: State, prefix: str
) -> None:
    layout, source = vae_layout(vae_config), {}
    for name, tensor in vae_state.items():
        is_projection = "mid_block.attentions" in name and tensor.ndim == 2
        source[prefix + compvis(name)] = tensor[:, :, None, None] if is_projection else tensor
    source[f"{prefix}encoder.down.0.block.0.conv1.weight"] = torch.zeros(1)
    assert not {name.removeprefix(prefix) for name in source} & {n for n in vae_state if "block" in n}
    got = load_weights(layout, StateDictSource(source), **F32)
    expected = load_weights(layout, StateDictSource(vae_state), **F32)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


TIED = [("top", None), ("top", False), ("section", None)]


@pytest.mark.parametrize(("where", "section"), TIED)
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_head_that_is_not_stored_is_the_tied_embedding(
    tmp_path: Path, where: str, section: bool | None, quantization: str | None
) -> None:
    config = small_config()
    state = small_state(config)
    del state[HEAD]
    if section is not None:
        config["language_config"]["tie_word_embeddings"] = section
    (config if where == "top" else config["language_config"])["tie_word_embeddings"] = True
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    save_file(state, tmp_path / "a" / "model.safetensors")
    options = dict(device="cpu", dtype="bfloat16", quantization=quantization)
    untied = small_config() | {"tie_word_embeddings": False}
    whole = state | {HEAD: state["language_model.model.embed_tokens.weight"]}
    models = [
        JanusFlow.from_pretrained(tmp_path / "a", **options),
        JanusFlow.from_state_dict(config, state, **options),
    ]
    for model in models:
        assert model.runner.weights["llm.head"] is model.runner.weights["llm.embed"]
    if quantization is not None:
        quantize_checkpoint(Checkpoint.open(tmp_path / "a"), tmp_path / "b")
        models.append(JanusFlow.from_pretrained(tmp_path / "b", device="cpu", dtype="bfloat16"))
    else:
        models.append(JanusFlow.from_state_dict(untied, whole, **options))
    ids = torch.tensor([prompt(3, 9)])
    logits = [model.next_token_logits(ids) for model in models]
    assert all(torch.equal(other, logits[0]) for other in logits[1:])


def test_a_head_that_is_stored_is_multiplied_by(config_dict: dict[str, Any], folder: Path, state: State) -> None:
    """As officially: what stands beside language_config ties nothing in the language model."""
    config_dict["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config_dict))
    models = [
        JanusFlow.from_pretrained(folder, device="cpu", dtype="float32"),
        JanusFlow.from_state_dict(config_dict, state, device="cpu", dtype="float32"),
    ]
    for model in models:
        head = model.runner.weights["llm.head"]
        assert torch.equal(tiles.untile(head) if model.runner.policy.tiled else head, state[HEAD])


@pytest.mark.parametrize("change", [{}, {"tie_word_embeddings": False}, {"tie_word_embeddings": "yes"}])
def test_a_missing_head_that_nothing_ties_is_missing(
    config_dict: dict[str, Any], state: State, change: dict[str, Any]
) -> None:
    del state[HEAD]
    config = JanusFlowConfig.from_dict(with_tied_head({**config_dict, **change}, state))
    assert f"missing: {HEAD} [50, 48]" in refused(weight_layout(config), state)


def test_a_config_without_a_section_is_left_to_its_own_check() -> None:
    broken = {"tie_word_embeddings": True, "language_config": 3}
    assert with_tied_head(broken, ()) is broken
