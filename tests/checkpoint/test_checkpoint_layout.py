from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flashjanus.checkpoint import (
    JanusFlowConfig,
    StateDictSource,
    VaeConfig,
    check_layout,
    load_weights,
    vae_layout,
    weight_layout,
)
from flashjanus.errors import CheckpointError

GOLDEN = Path(__file__).parents[1] / "golden"
F32 = {"matrix_dtype": torch.float32, "vector_dtype": torch.float32}
State = dict[str, torch.Tensor]


def manifest(name: str) -> StateDictSource:
    """Names and shapes alone: meta tensors hold no data."""
    shapes = json.loads((GOLDEN / f"{name}.manifest.json").read_text())
    return StateDictSource({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, name)


def full_config() -> JanusFlowConfig:
    data = json.loads((GOLDEN / "thin.config.json").read_text())
    data["language_config"].update(num_hidden_layers=24, intermediate_size=5632, vocab_size=102400)
    data["vision_und_enc_config"]["params"]["select_layer"] = -1
    return JanusFlowConfig.from_dict(data)


def elements(layout: Any) -> int:
    return sum(torch.Size(target.shape).numel() for target in layout)


def test_thin_manifest_is_the_layout() -> None:
    layout = weight_layout(JanusFlowConfig.from_file(GOLDEN / "thin.config.json"))
    assert check_layout(layout, manifest("thin")) == []


def test_full_manifest_is_the_layout() -> None:
    layout, source = weight_layout(full_config()), manifest("full")
    assert check_layout(layout, source) == []
    stored = {name: torch.Size(info.shape).numel() for name, info in source.names().items()}
    assert sum(stored.values()) == 2_046_367_504
    assert elements(layout) == sum(count for name, count in stored.items() if ".attn_pool." not in name)


def test_vae_manifest_is_the_layout() -> None:
    layout, source = vae_layout(VaeConfig.from_file(GOLDEN / "vae_thin.config.json")), manifest("vae_thin")
    assert check_layout(layout, source) == []
    used = [info for name, info in source.names().items() if not name.startswith(("encoder.", "quant_conv."))]
    assert elements(layout) == sum(torch.Size(info.shape).numel() for info in used)


def test_a_wrong_config_for_the_manifest_is_noticed() -> None:
    config = full_config()
    config = replace(config, language=replace(config.language, num_hidden_layers=23, intermediate_size=5631))
    problems = check_layout(weight_layout(config), manifest("full"))
    assert "left over: language_model.model.layers.23.self_attn.q_proj.weight [2048, 2048]" in problems
    assert (
        "misshapen: language_model.model.layers.0.mlp.up_proj.weight expected [5631, 2048], got [5632, 2048]"
        in problems
    )
    assert len(problems) == 9 + 3 * 23


def test_names_are_unique_and_every_shape_is_that_of_its_sources(
    config: JanusFlowConfig, vae_config: VaeConfig
) -> None:
    layout = [*weight_layout(config), *vae_layout(vae_config)]
    assert len({target.name for target in layout}) == len(layout)
    for target in layout:
        stored = sum(torch.Size(source.shapes[0]).numel() for source in target.sources)
        assert torch.Size(target.shape).numel() == stored, target.name


def test_language_targets_are_stacked_in_order(config: JanusFlowConfig, state: State) -> None:
    weights = load_weights(weight_layout(config), StateDictSource(state), **F32)
    at = "language_model.model.layers.1"
    qkv = [state[f"{at}.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert [tuple(part.shape) for part in qkv] == [(48, 48), (16, 48), (16, 48)]
    assert torch.equal(weights["llm.1.qkv"], torch.cat(qkv))
    gate_up = torch.cat([state[f"{at}.mlp.gate_proj.weight"], state[f"{at}.mlp.up_proj.weight"]])
    assert torch.equal(weights["llm.1.gate_up"], gate_up)
    assert torch.equal(weights["llm.1.norm1"], state[f"{at}.input_layernorm.weight"])
    assert torch.equal(weights["llm.1.norm2"], state[f"{at}.post_attention_layernorm.weight"])
    assert torch.equal(weights["llm.head"], state["language_model.lm_head.weight"])


def test_vision_targets(config: JanusFlowConfig, state: State) -> None:
    weights = load_weights(weight_layout(config), StateDictSource(state), **F32)
    tower = "vision_und_enc_model.vision_tower"
    assert torch.equal(weights["vit.patch.w"], state[f"{tower}.patch_embed.proj.weight"].flatten(1))
    assert torch.equal(weights["vit.pos"], state[f"{tower}.pos_embed"][0])
    assert torch.equal(weights["vit.2.fc1.b"], state[f"{tower}.blocks.2.mlp.fc1.bias"])
    assert weights["vit.begin"].shape == (1, 48)
    enc, dec = "vision_gen_enc_model", "vision_gen_dec_model"
    depthwise = state[f"{dec}.mid_block.res_blocks.1.depthwise.weight"]
    assert weights["dec.1.dw.w"].shape == (7, 7, 36)
    assert weights["dec.1.dw.w"].is_contiguous()
    assert all(torch.equal(weights["dec.1.dw.w"][:, :, c], depthwise[c, 0]) for c in range(36))
    blocks = [f"{enc}.mid_block.res_blocks.0", *(f"{dec}.mid_block.res_blocks.{i}" for i in range(2))]
    for part, stored in (("w", "weight"), ("b", "bias")):
        mapper = torch.cat([state[f"{at}.cond_embeds_mapper.{stored}"] for at in blocks])
        assert torch.equal(weights[f"mod.{part}"], mapper)
    assert torch.equal(weights["enc.0.grn.b"], state[f"{enc}.mid_block.res_blocks.0.channelwise_norm.bias"].flatten())
    assert torch.equal(weights["dec.out.0.w"], state[f"{dec}.out_convs.0.unpatch_conv.weight"][:, :, 0, 0])
    assert torch.equal(weights["enc.in.w"], state[f"{enc}.in_conv.weight"])
    assert weights["dec.norm"].shape == (20,)


def test_vae_targets(vae_config: VaeConfig, vae_state: State) -> None:
    weights = load_weights(vae_layout(vae_config), StateDictSource(vae_state), **F32)
    at = "decoder.mid_block.attentions.0"
    for part, stored in (("w", "weight"), ("b", "bias")):
        qkv = torch.cat([vae_state[f"{at}.{name}.{stored}"] for name in ("to_q", "to_k", "to_v")])
        assert torch.equal(weights[f"vae.mid.attn.qkv.{part}"], qkv)
    conv = weights["vae.up.1.resnet.0.conv1.w"]
    assert conv.shape == (8, 16, 3, 3)
    assert conv.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(conv, vae_state["decoder.up_blocks.1.resnets.0.conv1.weight"])
    assert "vae.up.1.resnet.0.shortcut.w" in weights
    assert "vae.up.0.upsample.w" in weights
    assert "vae.up.1.upsample.w" not in weights


def test_old_vae_attention_names_and_shapes(vae_config: VaeConfig, vae_state: State) -> None:
    wanted = load_weights(vae_layout(vae_config), StateDictSource(vae_state), **F32)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in vae_state.items():
        for new, was in old.items():
            if f".{new}." in name:
                name = name.replace(new, was)
                tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        renamed[name] = tensor
    assert set(renamed) != set(vae_state)
    got = load_weights(vae_layout(vae_config), StateDictSource(renamed), **F32)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_vae_without_its_optional_parts(vae_config: VaeConfig) -> None:
    layout = vae_layout(replace(vae_config, use_post_quant_conv=False, mid_block_add_attention=False))
    names = {target.name for target in layout}
    assert not any(name.startswith(("vae.post_quant", "vae.mid.attn")) for name in names)
    assert "vae.mid.resnet.1.conv2.w" in names


def test_kinds_choose_the_dtype(config: JanusFlowConfig, state: State) -> None:
    weights = load_weights(
        weight_layout(config), StateDictSource(state), matrix_dtype=torch.bfloat16, vector_dtype=torch.float32
    )
    vectors = {name for name, tensor in weights.items() if tensor.dtype == torch.float32}
    assert {"llm.norm", "llm.0.norm1", "vit.pos", "vit.begin", "time.1.w", "time.2.b", "mod.w", "mod.b"} <= vectors
    assert {"enc.in.w", "enc.in.b", "enc.0.grn.w", "dec.out.0.w", "dec.out.0.b", "dec.aligner.norm"} <= vectors
    matrices = set(weights) - vectors
    assert {"llm.embed", "llm.head", "llm.0.qkv", "vit.patch.b", "vit.0.fc1.b", "enc.0.dw.w", "enc.0.dw.b"} <= matrices
    assert {"enc.aligner.b", "dec.aligner.w", "dec.1.fc2.b", "vit.aligner.b"} <= matrices
    assert torch.equal(weights["llm.0.o"], state["language_model.model.layers.0.self_attn.o_proj.weight"].bfloat16())


def test_without_biases_only_the_official_ones_remain(config_dict: dict[str, Any]) -> None:
    for key in ("vision_gen_enc_config", "vision_gen_dec_config"):
        config_dict[key]["params"]["use_bias"] = False
    names = {target.name for target in weight_layout(JanusFlowConfig.from_dict(config_dict))}
    biases = {name for name in names if name.endswith(".b") and name.startswith(("time", "mod", "enc", "dec"))}
    assert biases == {"enc.in.b", "enc.aligner.b", "dec.aligner.b", "enc.0.grn.b", "dec.0.grn.b", "dec.1.grn.b"}


def test_without_mid_blocks_there_is_no_modulation(config_dict: dict[str, Any]) -> None:
    for key in ("vision_gen_enc_config", "vision_gen_dec_config"):
        config_dict[key]["params"]["use_mid_block"] = False
    names = {target.name for target in weight_layout(JanusFlowConfig.from_dict(config_dict))}
    assert "mod.w" not in names
    assert "enc.0.dw.w" not in names
    assert "dec.out.0.w" in names


def test_two_upsamples(config_dict: dict[str, Any]) -> None:
    config_dict["vision_gen_dec_config"]["params"]["upsamples"] = 2
    config_dict["vision_gen_enc_config"]["params"].update(stride=4, kernel_size=4)
    shapes = {target.name: target.shape for target in weight_layout(JanusFlowConfig.from_dict(config_dict))}
    assert shapes["dec.out.0.w"] == (64, 36)
    assert shapes["dec.out.1.w"] == (16, 16)
    assert shapes["dec.out.1.norm"] == (16,)


@pytest.mark.parametrize("head_in_file", [True, False])
def test_tied_head_is_the_embedding(config_dict: dict[str, Any], state: State, head_in_file: bool) -> None:
    config_dict["language_config"]["tie_word_embeddings"] = True
    if not head_in_file:
        del state["language_model.lm_head.weight"]
    layout = weight_layout(JanusFlowConfig.from_dict(config_dict))
    weights = load_weights(layout, StateDictSource(state), **F32)
    assert weights["llm.head"] is weights["llm.embed"]


def test_every_problem_is_in_one_error(config: JanusFlowConfig, state: State) -> None:
    del state["language_model.model.norm.weight"]
    del state["beg_of_und_embed"]
    state["vision_und_enc_aligner.weight"] = torch.zeros(48, 25)
    state["vision_und_enc_aligner.bias"] = torch.zeros(48, dtype=torch.int64)
    state["surprise"] = torch.zeros(2, 3)
    with pytest.raises(CheckpointError) as caught:
        load_weights(weight_layout(config), StateDictSource(state, "here"), **F32)
    lines = str(caught.value).split("\n  ")
    assert lines[0].startswith("here: tensors do not match")
    assert "2 missing" in lines[0]
    assert set(lines[1:]) == {
        "missing: language_model.model.norm.weight [48]",
        "missing: beg_of_und_embed [1, 48]",
        "misshapen: vision_und_enc_aligner.weight expected [48, 24], got [48, 25]",
        "wrong dtype: vision_und_enc_aligner.bias expected one of float64, float32, float16, bfloat16, got int64",
        "left over: surprise [2, 3]",
    }


def test_a_long_list_is_counted(config: JanusFlowConfig) -> None:
    with pytest.raises(CheckpointError, match=r"\.\.\. and \d+ more") as caught:
        load_weights(weight_layout(config), StateDictSource({}), **F32)
    assert len(str(caught.value).splitlines()) == 22


def test_nothing_is_allocated_for_an_impossible_size() -> None:
    data = json.loads((GOLDEN / "thin.config.json").read_text())
    data["language_config"].update(vocab_size=4_194_304, num_hidden_layers=1024, intermediate_size=524_288)
    layout = weight_layout(JanusFlowConfig.from_dict(data))
    with pytest.raises(CheckpointError, match="missing"):
        load_weights(layout, manifest("thin"), **F32)


def test_known_unused_tensors_are_dropped_and_others_on_request(
    config: JanusFlowConfig, state: State, vae_config: VaeConfig, vae_state: State
) -> None:
    state["vision_und_enc_model.vision_tower.attn_pool.q.weight"] = torch.full((2,), torch.nan)
    state["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    load_weights(weight_layout(config), StateDictSource(state), **F32)
    vae_state["encoder.conv_in.weight"] = torch.zeros(1)
    vae_state["quant_conv.bias"] = torch.zeros(1)
    load_weights(vae_layout(vae_config), StateDictSource(vae_state), **F32)
    state["training.step"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match="left over: training"):
        load_weights(weight_layout(config), StateDictSource(state), **F32)
    load_weights(weight_layout(config), StateDictSource(state), allow_unused=["training.*"], **F32)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_name_their_tensor(config: JanusFlowConfig, state: State, value: float) -> None:
    name = "language_model.model.layers.1.self_attn.k_proj.weight"
    state[name][15, 3] = value
    with pytest.raises(CheckpointError, match=f"{name}: holds NaN or inf"):
        load_weights(weight_layout(config), StateDictSource(state), **F32)


def test_values_beyond_the_dtype_are_refused(config: JanusFlowConfig, state: State) -> None:
    state["vision_gen_enc_aligner.weight"][0, 0] = 1e6
    with pytest.raises(
        CheckpointError, match=r"vision_gen_enc_aligner.weight: values up to 1e\+06 overflow torch.float16"
    ):
        load_weights(
            weight_layout(config), StateDictSource(state), matrix_dtype=torch.float16, vector_dtype=torch.float32
        )


def test_large_finite_values_are_not_mistaken_for_inf(config: JanusFlowConfig, state: State) -> None:
    state["language_model.lm_head.weight"].fill_(3e38)
    weights = load_weights(weight_layout(config), StateDictSource(state), **F32)
    assert weights["llm.head"].max() == torch.tensor(3e38)


def test_weights_are_copies(config: JanusFlowConfig, state: State) -> None:
    weights = load_weights(weight_layout(config), StateDictSource(state), **F32)
    before = weights["llm.norm"].clone()
    state["language_model.model.norm.weight"].zero_()
    assert torch.equal(weights["llm.norm"], before)


def test_large_tensors_are_read_in_chunks(
    config: JanusFlowConfig, state: State, vae_config: VaeConfig, vae_state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    for layout, tensors in ((weight_layout(config), state), (vae_layout(vae_config), vae_state)):
        whole = load_weights(layout, StateDictSource(tensors), **F32)
        with monkeypatch.context() as patch:
            patch.setattr("flashjanus.checkpoint.load.CHUNK_BYTES", 1000)
            parts = load_weights(layout, StateDictSource(tensors), **F32)
        assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_a_state_dict_holds_tensors_only() -> None:
    with pytest.raises(CheckpointError, match="expected a state dict of tensors, got dict with the keys step"):
        StateDictSource({"step": 3})  # type: ignore[dict-item]


def test_sparse_tensors_are_refused(config: JanusFlowConfig, state: State) -> None:
    state["vision_und_enc_aligner.weight"] = state["vision_und_enc_aligner.weight"].to_sparse()
    with pytest.raises(CheckpointError, match=r"wrong dtype: vision_und_enc_aligner\.weight .*sparse_coo"):
        load_weights(weight_layout(config), StateDictSource(state), **F32)
