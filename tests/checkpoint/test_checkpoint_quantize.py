"""Quantized checkpoints: what is written, what is refused, and that it loads as if quantized at load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from flashjanus.checkpoint import (
    Checkpoint,
    JanusFlowConfig,
    StateDictSource,
    VaeConfig,
    check_layout,
    load_weights,
    vae_layout,
    weight_layout,
)
from flashjanus.checkpoint.quantize import format_errors, quantization_errors, quantize_checkpoint
from flashjanus.engine.formats import rows
from flashjanus.engine.formats.nibbles import INT4
from flashjanus.errors import CheckpointError, ConfigError, InputError, OutputError
from flashjanus.model import Policy
from safetensors.torch import load_file, save_file

State = dict[str, torch.Tensor]
DOWN = "language_model.model.layers.1.mlp.down_proj.weight"
QUERY = "language_model.model.layers.0.self_attn.q_proj.weight"
UNUSED = "vision_und_enc_model.vision_tower.attn_pool.latent"


def quantized(folder: Path, to: Path, **options: Any) -> Checkpoint:
    quantize_checkpoint(Checkpoint.open(folder), to, **options)
    return Checkpoint.open(to)


def stored(checkpoint: Checkpoint) -> State:
    """As the format's own library reads it."""
    return {name: tensor for path in checkpoint.weights.paths for name, tensor in load_file(path).items()}


def loaded(checkpoint: Checkpoint, dtype: torch.dtype, method: str = "int8") -> State:
    policy = Policy.of(dtype, tiled=method == "int4", quantization=method)
    layout = weight_layout(checkpoint.config)
    dtypes = {"matrix_dtype": policy.matrix, "vector_dtype": policy.vector}
    return load_weights(layout, checkpoint.weights, **dtypes, quantized=policy.quantized, finish=policy.pack)


@pytest.mark.parametrize(
    ("dtype", "compute"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("method", "shard_bytes"), [("int8", 2**30), ("int8", 20_000), ("fp8", 20_000), ("int4", 2**30)]
)
def test_it_loads_as_if_quantized_at_load(
    folder: Path, tmp_path: Path, state: State, dtype: torch.dtype, compute: torch.dtype, method: str, shard_bytes: int
) -> None:
    state[DOWN][3] = 0
    state[DOWN][5] *= 1e-36
    save_file({name: tensor.to(dtype) for name, tensor in state.items()}, folder / "model.safetensors")
    written = quantized(folder, tmp_path / "out", method=method, shard_bytes=shard_bytes)
    assert written.config.quantization == method
    assert check_layout(weight_layout(written.config), written.weights) == []
    expected, got = loaded(Checkpoint.open(folder), compute, method), loaded(written, compute, method)
    assert expected.keys() == got.keys()
    assert {name for name in got if got[name].dtype != expected[name].dtype} == set()
    assert {name for name in got if not torch.equal(got[name].float(), expected[name].float())} == set()
    assert got["llm.1.down"].dtype is (torch.float8_e4m3fn if method == "fp8" else torch.int8)
    assert not got["llm.1.down"].float().isnan().any()


def test_linears_of_the_language_model_change_and_nothing_else(folder: Path, tmp_path: Path, state: State) -> None:
    state[UNUSED] = torch.randn(3, dtype=torch.float64)
    state["vision_und_enc_aligner.bias"] = state["vision_und_enc_aligner.bias"].half()
    save_file(state, folder / "model.safetensors")
    written = stored(quantized(folder, tmp_path / "int8"))
    linears = {name for name in state if name.startswith("language_model.") and ("proj" in name or "head" in name)}
    assert len(linears) == 2 * 7 + 1
    assert written.keys() == state.keys() | {f"{name}_scale" for name in linears}
    for name, tensor in state.items():
        if name not in linears:
            assert written[name].dtype is tensor.dtype
            assert torch.equal(written[name], tensor), name
            continue
        q, scale = written[name], written[f"{name}_scale"]
        assert (q.dtype, scale.dtype, scale.shape) == (torch.int8, torch.float32, tensor.shape[:1])
        assert torch.equal(scale, tensor.abs().amax(1) / 127)
        assert ((q * scale[:, None] - tensor).abs() <= 0.5001 * scale[:, None]).all()


def test_large_weights_are_quantized_in_chunks(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stored(quantized(folder, tmp_path / "whole"))
    monkeypatch.setattr("flashjanus.checkpoint.load.CHUNK_BYTES", 1000)
    parts = stored(quantized(folder, tmp_path / "parts"))
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_shards_are_as_small_as_asked_and_the_index_names_them(folder: Path, tmp_path: Path) -> None:
    written = quantized(folder, tmp_path / "int8", shard_bytes=20_000)
    index = json.loads((tmp_path / "int8" / "model.safetensors.index.json").read_text())
    paths = written.weights.paths
    assert len(paths) > 5
    assert paths[0].name == f"model-00001-of-{len(paths):05d}.safetensors"
    for path in paths:
        tensors = load_file(path)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 20_000
        assert {index["weight_map"][name] for name in tensors} == {path.name}
    assert index["metadata"]["total_size"] == sum(info.nbytes for info in written.weights.names().values())


def test_a_tied_head_stays_the_embedding(folder: Path, tmp_path: Path, config_dict: dict[str, Any]) -> None:
    config_dict["language_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config_dict))
    written = quantized(folder, tmp_path / "int8")
    assert stored(written)["language_model.lm_head.weight"].dtype is torch.float32
    weights = loaded(written, torch.float32)
    assert weights["llm.head"] is weights["llm.embed"]


def test_the_other_files_come_along(folder_with_vae: Path, vae_state: State, tmp_path: Path) -> None:
    (folder_with_vae / "tokenizer.json").write_text("{}")
    (folder_with_vae / "preprocessor_config.json").write_text('{"image_size": 32}')
    vae = folder_with_vae / "vae"
    (vae / "diffusion_pytorch_model.safetensors").unlink()
    names = list(vae_state)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: vae_state[name] for name in held}, vae / file)
    weight_map = {name: file for file, held in shards.items() for name in held}
    (vae / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    written = quantized(folder_with_vae, tmp_path / "int8")
    assert {name: path.read_text() for name, path in written.text_files.items()} == {
        "tokenizer.json": "{}",
        "preprocessor_config.json": '{"image_size": 32}',
    }
    assert written.vae is not None
    assert written.vae.folder == tmp_path / "int8" / "vae"
    assert all(torch.equal(written.vae.weights.read(name), vae_state[name]) for name in names)
    config = json.loads((folder_with_vae / "config.json").read_text())
    entry = {"method": "int8", "bits": 8, "what": "linears of the language model, by row"}
    assert json.loads((tmp_path / "int8" / "config.json").read_text()) == {**config, "quantization_config": entry}


def test_a_vae_from_elsewhere_comes_along(folder_with_vae: Path, tmp_path: Path) -> None:
    vae = (folder_with_vae / "vae").rename(tmp_path / "elsewhere")
    quantize_checkpoint(Checkpoint.open(folder_with_vae, vae=vae), tmp_path / "int8")
    written = Checkpoint.open(tmp_path / "int8")
    assert written.vae is not None
    written.check_vae()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_vae_that_is_one_file_becomes_a_folder(folder: Path, tmp_path: Path, suffix: str) -> None:
    channels = Checkpoint.open(folder).config.gen_decoder.out_channels
    config = VaeConfig(latent_channels=channels, block_out_channels=(32, 64), scaling_factor=0.13025)
    generator = torch.Generator().manual_seed(0)
    state = {s.names[0]: torch.randn(s.shapes[0], generator=generator) for t in vae_layout(config) for s in t.sources}
    path = tmp_path / f"sdxl_vae{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    quantize_checkpoint(Checkpoint.open(folder, vae=path), tmp_path / "int8")
    written = Checkpoint.open(tmp_path / "int8").vae
    assert written is not None
    assert written.config == config
    assert all(torch.equal(written.weights.read(name), tensor) for name, tensor in state.items())


def test_an_empty_folder_is_taken(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "int8").mkdir()
    assert quantized(folder, tmp_path / "int8").config.quantization == "int8"
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "int8"}


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_is_there_is_left_alone(folder: Path, tmp_path: Path, kind: str) -> None:
    to = tmp_path / "int8"
    if kind == "folder":
        to.mkdir()
        (to / "notes.txt").write_text("mine")
    elif kind == "file":
        to.write_text("mine")
    else:
        to.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="int8: expected a folder that is empty or does not exist yet"):
        quantize_checkpoint(Checkpoint.open(folder), to)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "int8"}
    if kind != "dangling link":
        assert (to / "notes.txt" if kind == "folder" else to).read_text() == "mine"


def test_a_link_to_an_empty_folder_is_written_through(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "int8").symlink_to("real")
    quantize_checkpoint(Checkpoint.open(folder), tmp_path / "int8")
    assert (tmp_path / "int8").is_symlink()
    assert Checkpoint.open(tmp_path / "int8").config.quantization == "int8"
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "int8", "real"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_run_that_ends_early_leaves_nothing(folder: Path, tmp_path: Path, error: Any) -> None:
    def interrupt(done: int) -> None:
        if done == 20:
            assert len(list(tmp_path.iterdir())) == 2  # so there was something to leave
            raise error

    with pytest.raises((KeyboardInterrupt, OutputError)):
        quantize_checkpoint(Checkpoint.open(folder), tmp_path / "int8", progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize("to", ["tiny/config.json/int8", "nul\0"])
def test_a_place_that_cannot_be_written(folder: Path, tmp_path: Path, to: str) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        quantize_checkpoint(Checkpoint.open(folder), tmp_path / to)


@pytest.mark.parametrize("method", ["int8", "int4", "fp8"])
def test_a_quantized_checkpoint_is_not_quantized_again(folder: Path, tmp_path: Path, method: str) -> None:
    written = quantized(folder, tmp_path / "out", method=method)
    for again in (quantization_errors, lambda found: quantize_checkpoint(found, tmp_path / "again")):
        with pytest.raises(InputError, match=f"expected a checkpoint with float weights, got one in {method}"):
            again(written)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(folder: Path, tmp_path: Path, state: State, value: float) -> None:
    state[DOWN][47, 7] = value
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{DOWN}: holds NaN or inf"):
        quantized(folder, tmp_path / "int8")
    assert not (tmp_path / "int8").exists()


def test_tensors_that_do_not_match_the_config_are_refused(folder: Path, tmp_path: Path, state: State) -> None:
    del state[QUERY]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"missing: {QUERY}"):
        quantized(folder, tmp_path / "int8")


def test_a_dtype_that_safetensors_lacks_is_refused(folder: Path, tmp_path: Path, state: State) -> None:
    torch.save({**state, UNUSED: torch.zeros(2, dtype=torch.complex64)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"{UNUSED}: complex64 cannot be written"):
        quantized(folder, tmp_path / "int8")
    assert not (tmp_path / "int8").exists()


def test_int8_tensors_and_their_scales_are_checked(folder: Path, tmp_path: Path, state: State) -> None:
    written = quantized(folder, tmp_path / "int8")
    layout, tensors = weight_layout(written.config), stored(written)
    assert check_layout(layout, StateDictSource(tensors)) == []
    at = "language_model.model.layers.0.self_attn"
    del tensors[f"{at}.q_proj.weight_scale"]
    tensors[f"{at}.k_proj.weight_scale"] = torch.ones(1)
    tensors[f"{at}.v_proj.weight_scale"] = tensors[f"{at}.v_proj.weight_scale"].half()
    tensors[f"{at}.o_proj.weight"] = tensors[f"{at}.o_proj.weight"].float()
    tensors[DOWN] = tensors[DOWN][:, 1:]
    assert check_layout(layout, StateDictSource(tensors)) == [
        f"missing: {at}.q_proj.weight_scale [48]",
        f"misshapen: {at}.k_proj.weight_scale expected [16], got [1]",
        f"wrong dtype: {at}.v_proj.weight_scale expected float32, got float16",
        f"wrong dtype: {at}.o_proj.weight expected int8, got float32",
        f"misshapen: {DOWN} expected [48, 80], got [48, 79]",
    ]


def test_int8_tensors_need_the_config_to_say_so(folder: Path, tmp_path: Path, config: JanusFlowConfig) -> None:
    problems = check_layout(weight_layout(config), quantized(folder, tmp_path / "int8").weights)
    assert f"wrong dtype: {DOWN} expected one of float64, float32, float16, bfloat16, got int8" in problems
    assert f"left over: {DOWN}_scale [48]" in problems
    assert len(problems) == 2 * 15


@pytest.mark.parametrize(("method", "damaged"), [("int8", f"{DOWN}_scale"), ("fp8", f"{DOWN}_scale"), ("fp8", DOWN)])
def test_a_weight_or_scale_that_is_not_finite_is_refused(
    folder: Path, tmp_path: Path, method: str, damaged: str
) -> None:
    written = quantized(folder, tmp_path / "out", method=method)
    tensors = stored(written)
    tensors[damaged].view(-1)[4] = torch.nan
    with pytest.raises(CheckpointError, match=f"{damaged}: holds NaN or inf"):
        load_weights(
            weight_layout(written.config),
            StateDictSource(tensors),
            matrix_dtype=torch.bfloat16,
            vector_dtype=torch.float32,
        )


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"quant_method": "bitsandbytes"}, ["quantization_config.method", '"int8"', "nothing"]),
        ({"method": "int3"}, ["quantization_config.method", '"int8"', '"int3"']),
        ({"method": "int8", "bits": 4}, ["quantization_config.bits", "8", "4"]),
        ({"method": "int4", "bits": 8}, ["quantization_config.bits", "4", "8"]),
        ([], ["quantization_config", "an object"]),
    ],
)
def test_another_quantization_is_refused(config_dict: dict[str, Any], entry: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        JanusFlowConfig.from_dict({**config_dict, "quantization_config": entry})
    assert all(word in str(caught.value) for word in words)
    assert JanusFlowConfig.from_dict({**config_dict, "quantization_config": None}).quantization is None


def test_errors_are_those_of_what_is_written(folder: Path, tmp_path: Path, state: State) -> None:
    state[QUERY][0, 0] = 100.0  # coarsens its row
    state[DOWN].zero_()
    save_file(state, folder / "model.safetensors")
    written = stored(quantized(folder, tmp_path / "int8"))
    seen: list[int] = []
    errors = {error.name: error for error in quantization_errors(Checkpoint.open(folder), seen.append)}
    assert seen == list(range(1, 16))
    for name, error in errors.items():
        exact = state[name].double()
        held = written[name].double() * written[f"{name}_scale"].double()[:, None]
        if name == DOWN:
            assert (error.loss.relative, error.loss.cosine) == (0.0, 1.0)
            continue
        assert error.loss.relative == pytest.approx(float((held - exact).norm() / exact.norm()), rel=1e-9)
        cosine = torch.nn.functional.cosine_similarity(held.flatten(), exact.flatten(), dim=0)
        assert error.loss.cosine == pytest.approx(float(cosine), rel=1e-12)
    assert max(errors.values(), key=lambda error: error.loss.relative).name == QUERY
    assert {error.kind for error in errors.values()} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head",
    }  # fmt: skip
    rows = format_errors(list(errors.values())).splitlines()
    assert len(rows) == 1 + 8 + 1
    assert rows[1].split()[:2] == ["q_proj", "2"]
    assert rows[1].endswith(QUERY)
    both = [state[name] for name in errors if name.endswith("q_proj.weight")]
    lost = [
        errors[name].loss.relative ** 2 * state[name].norm() ** 2 for name in errors if name.endswith("q_proj.weight")
    ]
    pooled = float((sum(lost) / sum(w.norm() ** 2 for w in both)) ** 0.5)
    assert float(rows[1].split()[2]) == pytest.approx(pooled, abs=1e-5)


def test_errors_of_other_methods_are_those_of_what_is_multiplied(folder: Path, tmp_path: Path, state: State) -> None:
    """fp8: of what is written; int4: of 4 bits out of what is written, but for the head and what does not fit them."""
    narrow = "language_model.model.layers.0.mlp.gate_proj.weight"
    checkpoint = Checkpoint.open(folder)
    errors = {m: {e.name: e for e in quantization_errors(checkpoint, method=m)} for m in ("int8", "int4", "fp8")}
    written = stored(quantized(folder, tmp_path / "fp8", method="fp8"))
    for name, error in errors["fp8"].items():
        assert written[name].dtype is torch.float8_e4m3fn
        held = written[name].double() * written[f"{name}_scale"].double()[:, None]
        exact = state[name].double()
        assert error.loss.relative == pytest.approx(float((held - exact).norm() / exact.norm()), rel=1e-9)
        assert 0.02 < error.loss.relative < 0.03
    assert state[narrow].shape[1] % 32 != 0
    assert errors["int4"][narrow] == errors["int8"][narrow]
    assert errors["int4"].keys() == errors["int8"].keys()
    assert format_errors(list(errors["int4"].values()), "int4").split()[0] == "int4"


def test_4_bits_are_made_of_8_with_hardly_more_error() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    q, scale = rows.quantized(weight)
    direct, through = (
        float((INT4.unpack(*made) - weight).norm() / weight.norm()) for made in (INT4.pack(weight), INT4.pack(q, scale))
    )
    assert direct < through < 1.01 * direct
