from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from flashjanus.checkpoint import JanusFlowConfig, VaeConfig
from flashjanus.errors import CheckpointError, ConfigError

GOLDEN = Path(__file__).parents[1] / "golden"

LANGUAGE, UND = "language_config", "vision_und_enc_config.params"
ENC, DEC = "vision_gen_enc_config.params", "vision_gen_dec_config.params"


def put(data: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    *parents, key = path.split(".")
    at = data
    for parent in parents:
        at = at[parent]
    at[key] = value
    return data


def drop(data: dict[str, Any], *paths: str) -> dict[str, Any]:
    for path in paths:
        *parents, key = path.split(".")
        at = data
        for parent in parents:
            at = at[parent]
        del at[key]
    return data


def test_thin_golden_config() -> None:
    config = JanusFlowConfig.from_file(GOLDEN / "thin.config.json")
    assert (config.language.hidden_size, config.language.head_dim, config.language.num_hidden_layers) == (2048, 128, 2)
    assert (config.understanding.layers, config.understanding.mlp_width, config.understanding.norm_eps) == (
        2,
        4096,
        1e-6,
    )
    assert (config.latent_size, config.grid, config.num_image_tokens, config.num_understanding_tokens) == (
        48,
        24,
        576,
        576,
    )
    assert (config.gen_encoder.blocks, config.gen_decoder.blocks, config.gen_decoder.width) == (2, 2, 1536)
    assert config.image_attention == "causal"
    assert config.gen_encoder.use_bias
    assert not config.language.tie_word_embeddings


def test_official_defaults_fill_what_is_absent() -> None:
    data = json.loads((GOLDEN / "thin.config.json").read_text())
    for key in ("vision_und_enc_config", "vision_gen_enc_config", "vision_gen_dec_config"):
        data[key]["params"] = {}
    data["language_config"] = {"hidden_size": 2048}
    with pytest.raises(ConfigError) as caught:  # the official defaults do not fit one another, and the error shows them
        JanusFlowConfig.from_dict(data)
    assert "latent_size: expected a size that kernel 7, stride 4 and padding 3 reproduce, got 42 -> 11" in str(
        caught.value
    )
    data["latent_size"] = 44
    config = JanusFlowConfig.from_dict(data)
    assert config.language.vocab_size == 32000
    assert config.language.intermediate_size == 11008
    assert config.language.num_attention_heads == config.language.num_key_value_heads == 32
    assert config.language.max_position_embeddings == 2048
    assert (config.language.rms_norm_eps, config.language.rope_theta) == (1e-6, 10000.0)
    assert config.understanding.image_size == 336
    assert config.understanding.layers == 23  # select_layer -2 of 24
    assert (config.gen_encoder.input_channels, config.gen_encoder.channels, config.gen_encoder.layers) == (3, 768, 2)
    assert (config.gen_decoder.in_channels, config.gen_decoder.out_channels, config.gen_decoder.upsamples) == (
        768,
        3,
        2,
    )


def test_other_sizes_are_accepted(config: JanusFlowConfig) -> None:
    assert (config.language.head_dim, config.language.num_key_value_heads) == (8, 2)
    assert (config.understanding.mlp_width, config.understanding.layers, config.understanding.head_dim) == (60, 3, 8)
    assert (config.num_image_tokens, config.num_understanding_tokens, config.gen_decoder.width) == (16, 16, 36)


def test_an_explicit_head_dim_need_not_divide_the_width(config_dict: dict[str, Any]) -> None:
    put(config_dict, f"{LANGUAGE}.head_dim", 10)
    put(config_dict, f"{LANGUAGE}.num_attention_heads", 10)
    config = JanusFlowConfig.from_dict(config_dict)
    assert config.language.head_dim == 10


@pytest.mark.parametrize(
    ("name", "select", "layers", "width", "mlp"),
    [
        ("siglip_large_patch16_384", -1, 24, 1024, 4096),
        ("siglip_large_patch16_384", -2, 23, 1024, 4096),
        ("siglip_large_patch16_384", 0, 24, 1024, 4096),
        ("siglip_large_patch16_256", 5, 5, 1024, 4096),
        ("siglip_large_patch16_256", 99, 24, 1024, 4096),
        ("siglip_so400m_patch14_384", -1, 27, 1152, 4304),
        ("siglip_so400m_patch14_224", -27, 1, 1152, 4304),
    ],
)
def test_siglip_table_and_select_layer(
    config_dict: dict[str, Any], name: str, select: int, layers: int, width: int, mlp: int
) -> None:
    side = 14 * 4 if "14" in name else 16 * 4
    put(config_dict, UND, {"model_name": name, "select_layer": select, "image_size": side})
    und = JanusFlowConfig.from_dict(config_dict).understanding
    assert (und.layers, und.width, und.heads, und.mlp_width) == (layers, width, 16, mlp)


def test_unknown_keys_are_ignored(config_dict: dict[str, Any], config: JanusFlowConfig) -> None:
    put(config_dict, f"{ENC}.elementwize_affine", "anything")
    put(config_dict, f"{DEC}.num_extra_tensors", -3)
    put(config_dict, "transformers_version", None)
    assert JanusFlowConfig.from_dict(config_dict) == config


def test_nulls_that_mean_the_default(config_dict: dict[str, Any]) -> None:
    for path in (f"{LANGUAGE}.head_dim", f"{LANGUAGE}.num_key_value_heads", f"{LANGUAGE}.rope_scaling", "latent_size"):
        put(config_dict, path, None)
    put(config_dict, f"{ENC}.padding", None)
    config = JanusFlowConfig.from_dict(put(config_dict, "latent_size", 8))
    assert config.language.num_key_value_heads == 6
    assert config.gen_encoder.padding == 0


def test_latent_size_defaults_to_an_eighth_of_the_image(config_dict: dict[str, Any]) -> None:
    assert JanusFlowConfig.from_dict(drop(config_dict, "latent_size")).latent_size == 4


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        {"rope_scaling": {"type": "default"}, "rope_theta": 5e5},
        {"rope_theta": 500000},
    ],
)
def test_rope_theta_in_old_and_new_spelling(config_dict: dict[str, Any], rope: dict[str, Any]) -> None:
    config_dict["language_config"].update(rope)
    assert JanusFlowConfig.from_dict(config_dict).language.rope_theta == 5e5


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (f"{LANGUAGE}.hidden_size", -48, "expected an integer in 1..65536, got -48"),
        (f"{LANGUAGE}.hidden_size", 10**9, "expected an integer in 1..65536, got 1000000000"),
        (f"{LANGUAGE}.hidden_size", 10**300, "an integer of 997 bits"),
        (f"{LANGUAGE}.hidden_size", 48.0, "got 48.0"),
        (f"{LANGUAGE}.hidden_size", "48", 'got "48"'),
        (f"{LANGUAGE}.hidden_size", True, "got true"),
        (f"{LANGUAGE}.hidden_size", None, "got null"),
        (f"{LANGUAGE}.num_hidden_layers", 0, "expected an integer in 1..1024, got 0"),
        (f"{LANGUAGE}.num_hidden_layers", 10**9, "got 1000000000"),
        (f"{LANGUAGE}.vocab_size", 10**9, "got 1000000000"),
        (f"{LANGUAGE}.intermediate_size", 10**9, "got 1000000000"),
        (f"{LANGUAGE}.max_position_embeddings", 10**9, "got 1000000000"),
        (f"{LANGUAGE}.num_attention_heads", 7, "expected a divisor of hidden_size 48"),
        (f"{LANGUAGE}.num_attention_heads", 48, "num_key_value_heads|head_dim"),
        (f"{LANGUAGE}.num_key_value_heads", 4, "expected a divisor of num_attention_heads 6, got 4"),
        (f"{LANGUAGE}.head_dim", 7, "expected an even size"),
        (f"{LANGUAGE}.rms_norm_eps", 0, "expected a finite number above 0, got 0"),
        (f"{LANGUAGE}.rms_norm_eps", math.nan, "got nan"),
        (f"{LANGUAGE}.rope_theta", math.inf, "got inf"),
        (f"{LANGUAGE}.rope_theta", -1.0, "got -1.0"),
        (f"{LANGUAGE}.rope_scaling", {"rope_type": "linear", "factor": 2.0}, 'expected "default" .scaled rotary'),
        (f"{LANGUAGE}.rope_parameters", {"rope_type": "yarn"}, "scaled rotary"),
        (f"{LANGUAGE}.rope_scaling", "linear", "expected an object"),
        (f"{LANGUAGE}.hidden_act", "gelu", 'expected "silu"'),
        (f"{LANGUAGE}.attention_bias", True, "without biases"),
        (f"{LANGUAGE}.mlp_bias", True, "without biases"),
        (f"{LANGUAGE}.model_type", "qwen2", 'expected "llama"'),
        (f"{LANGUAGE}.tie_word_embeddings", "no", "expected true or false"),
        (LANGUAGE, [], "expected an object"),
        (f"{UND}.image_size", 30, "expected a multiple of the patch size 8, got 30"),
        (f"{UND}.image_size", [32, 16], "one side of a square image"),
        (f"{UND}.image_size", 10**9, "got 1000000000"),
        (f"{UND}.heads", 5, "expected a divisor of the width 24, got 5"),
        (f"{UND}.select_layer", -4, "expected an integer in -3..1024, got -4"),
        (f"{UND}.mlp_ratio", 1e9, "an MLP of at most"),
        (f"{UND}.mlp_ratio", 0.001, "at least one channel"),
        (f"{UND}.ignore_head", False, "attention pool"),
        ("vision_und_enc_config.cls", "SAM", 'a name that contains "CLIPVisionTower"'),
        ("vision_gen_enc_config", None, "expected an object, got null"),
        (f"{ENC}.block_out_channels", [16, 32], "expected one width"),
        (f"{ENC}.block_out_channels", [], "a list of"),
        (f"{ENC}.block_out_channels", [-1], "a list of integers"),
        (f"{ENC}.block_out_channels", 16, "a list of"),
        (f"{ENC}.hidden_size", 64, "expected the language model's 48, got 64"),
        (f"{ENC}.stride", 4, "expected 2 = 2 .. upsamples"),
        (f"{ENC}.kernel_size", 5, "latent_size: expected a size that kernel 5"),
        (f"{ENC}.padding", -1, "expected an integer in 0"),
        (f"{ENC}.use_bias", 1, "expected true or false"),
        (f"{DEC}.use_bias", False, "the modulations of both"),
        (f"{DEC}.hidden_size", 64, "expected the language model's 48"),
        (f"{DEC}.out_channels", 3, "the encoder's input_channels 4"),
        (f"{DEC}.block_out_channels", [24], "expected the encoder's 16"),
        (f"{DEC}.upsamples", 60, "upsamples"),
        (f"{DEC}.layers_in_middle", -1, "expected an integer in 0"),
        (f"{DEC}.norm_eps", "tiny", "norm_eps"),
        ("image_attention", "full", 'expected "causal" or "bidirectional", got "full"'),
        ("latent_size", 7, "latent_size: expected a size that kernel 2"),
        ("latent_size", 10**9, "got 1000000000"),
        ("latent_size", 32, "max_position_embeddings: expected at least 258"),
        ("model_type", "llama", 'model_type: expected "multi_modality", got "llama"'),
        ("model_type", None, "got null"),
    ],
)
def test_bad_values_are_refused_with_key_expected_and_got(
    config_dict: dict[str, Any], path: str, value: object, expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        JanusFlowConfig.from_dict(put(config_dict, path, value))
    if not path.endswith(("num_attention_heads", "kernel_size")) and value != 32:
        assert path in str(caught.value)


@pytest.mark.parametrize("name", ["clip", ["siglip"], None])
def test_an_unknown_vit_needs_every_size(config_dict: dict[str, Any], name: object) -> None:
    put(config_dict, f"{UND}.model_name", name)
    assert JanusFlowConfig.from_dict(config_dict).understanding.width == 24
    drop(config_dict, f"{UND}.width", f"{UND}.mlp_ratio")
    with pytest.raises(ConfigError, match=r"model_name: expected one of siglip.* missing width, mlp_ratio, got"):
        JanusFlowConfig.from_dict(config_dict)


def test_the_default_select_layer_leaves_no_block_of_one(config_dict: dict[str, Any]) -> None:
    put(config_dict, f"{UND}.layers", 1)
    with pytest.raises(ConfigError, match=r"select_layer: expected an integer in -1\.\.1024, got nothing"):
        JanusFlowConfig.from_dict(drop(config_dict, f"{UND}.select_layer"))


def test_a_second_normalization_is_refused(config_dict: dict[str, Any]) -> None:
    put(config_dict, f"{UND}.pixel_mean", [0.5] * 3)
    JanusFlowConfig.from_dict(config_dict)  # the official code normalizes only when both are given
    with pytest.raises(ConfigError, match="pixel_mean: expected null"):
        JanusFlowConfig.from_dict(put(config_dict, f"{UND}.pixel_std", [0.5] * 3))


def test_an_odd_time_embedding_is_refused(config_dict: dict[str, Any]) -> None:
    put(config_dict, f"{ENC}.block_out_channels", [15])
    put(config_dict, f"{DEC}.block_out_channels", [15])
    with pytest.raises(ConfigError, match="expected an even width"):
        JanusFlowConfig.from_dict(config_dict)


def test_all_bad_values_come_in_one_error(config_dict: dict[str, Any]) -> None:
    put(config_dict, f"{LANGUAGE}.vocab_size", -1)
    put(config_dict, f"{UND}.image_size", "big")
    put(config_dict, f"{DEC}.upsamples", 0)
    with pytest.raises(ConfigError, match="3 bad values") as caught:
        JanusFlowConfig.from_dict(config_dict)
    for key in ("vocab_size", "image_size", "upsamples"):
        assert key in str(caught.value)
    assert isinstance(caught.value, CheckpointError)


def test_a_missing_section_is_named(config_dict: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="vision_gen_dec_config: expected an object, got nothing"):
        JanusFlowConfig.from_dict(drop(config_dict, "vision_gen_dec_config"))


def test_autoregressive_relatives_are_told_apart() -> None:
    with pytest.raises(ConfigError, match="Janus-Pro"):
        JanusFlowConfig.from_dict({"model_type": "multi_modality", "gen_vision_config": {}})


def test_config_must_be_an_object() -> None:
    with pytest.raises(ConfigError, match="expected an object, got"):
        JanusFlowConfig.from_dict([1, 2])  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b" ", b"[" * 100_000, b"[1]", b'"x"'])
def test_a_file_that_is_no_json_object(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json: expected (a JSON object|UTF-8), got"):
        JanusFlowConfig.from_file(path)


def test_vae_config() -> None:
    config = VaeConfig.from_file(GOLDEN / "vae_thin.config.json")
    assert (config.block_out_channels, config.scale, config.scaling_factor) == ((32, 64, 64), 4, 0.13025)
    assert config.use_post_quant_conv
    assert config.mid_block_add_attention


def test_vae_defaults_are_those_of_diffusers() -> None:
    config = VaeConfig.from_dict({})
    assert (config.block_out_channels, config.layers_per_block, config.latent_channels) == ((64,), 1, 4)
    assert (config.norm_num_groups, config.scaling_factor, config.out_channels, config.scale) == (32, 0.18215, 3, 1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"_class_name": "VQModel"}, "_class_name"),
        ({"up_block_types": ["AttnUpDecoderBlock2D"]}, "up_block_types: expected a list"),
        ({"up_block_types": ["UpDecoderBlock2D"] * 2}, "one block per width"),
        ({"up_block_types": 5}, "up_block_types"),
        ({"act_fn": "relu"}, "act_fn"),
        ({"shift_factor": 0.1}, "scaled, not shifted"),
        ({"latents_mean": [0.0]}, "latents_mean: expected null"),
        ({"block_out_channels": [48]}, "norm_num_groups: expected a divisor"),
        ({"block_out_channels": [10**9]}, "block_out_channels"),
        ({"block_out_channels": [32] * 9, "up_block_types": ["UpDecoderBlock2D"] * 9}, "at most 8"),
        ({"scaling_factor": 0}, "scaling_factor"),
        ({"scaling_factor": math.nan}, "scaling_factor"),
        ({"latent_channels": 0}, "latent_channels"),
    ],
)
def test_bad_vae_values(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        VaeConfig.from_dict(values)


def test_a_vae_of_another_model(config: JanusFlowConfig) -> None:
    VaeConfig().check_fits(config)
    with pytest.raises(ConfigError, match=r"latent_channels: expected 4 .* got 16"):
        VaeConfig(latent_channels=16).check_fits(config)
    with pytest.raises(ConfigError, match=r"expected 3 \(RGB\), got 1"):
        VaeConfig(out_channels=1).check_fits(config)
