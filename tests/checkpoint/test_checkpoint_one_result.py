"""However a checkpoint is kept and given, the same bits are multiplied by."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.checkpoint import Checkpoint, JanusFlowConfig, StateDictSource, TensorSource, weight_layout
from flashjanus.checkpoint.quantize import quantization_errors, quantize_checkpoint
from flashjanus.engine.formats import Weight, tiles
from flashjanus.engine.formats.nibbles import INT4
from flashjanus.execution import loading
from flashjanus.model import Policy
from safetensors.torch import save_file
from small_model import prompt, small_config, small_state

State = dict[str, torch.Tensor]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def wide_config() -> dict[str, Any]:
    """Of which every linear fits into tiles of int8, but not the stack of q, k and v."""
    config = small_config(kv_heads=1)
    config["language_config"].update(intermediate_size=128, num_attention_heads=8, vocab_size=96)
    return config


def written(folder: Path, config: dict[str, Any], state: State, form: str = "safetensors") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if form == "bin":
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    parts = 3 if form == "shards" else 1
    files = [f"model-{i + 1:05d}-of-{parts:05d}.safetensors" for i in range(parts)]
    shards = [dict(list(state.items())[i::parts]) for i in range(parts)]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, folder / file)
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def kept(config: dict[str, Any], source: TensorSource, policy: Policy) -> State:
    layout = weight_layout(JanusFlowConfig.from_dict(config))
    return loading.load(layout, source, policy, torch.device("cpu"), None, "")


def assert_same(got: State, expected: State) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype is tensor.dtype, name
        assert torch.equal(*(t.flatten().contiguous().view(torch.uint8) for t in (got[name], tensor))), name


def seeded(dtype: torch.dtype) -> tuple[dict[str, Any], State]:
    config = wide_config()
    return config, {name: tensor.to(dtype) for name, tensor in small_state(config).items()}


@pytest.mark.parametrize("stored", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("method", "tiled"),
    [("int8", False), ("int8", True), ("int4", False), ("int4", True), ("fp8", False), ("fp8", True)],
)
def test_quantized_at_load_is_quantized_beforehand(
    tmp_path: Path, stored: torch.dtype, method: str, tiled: bool
) -> None:
    config, state = seeded(stored)
    quantize_checkpoint(Checkpoint.open(written(tmp_path / "a", config, state)), tmp_path / "b", method)
    before = Checkpoint.open(tmp_path / "b")
    for compute in (torch.float32, torch.bfloat16):
        policy = Policy.of(compute, tiled=tiled, quantization=method)
        at_load = kept(config, StateDictSource(state), policy)
        assert_same(kept(before.config_dict, before.weights, policy), at_load)
        of = policy.kept(next(t for t in weight_layout(before.config) if t.name == "llm.0.o"))
        assert isinstance(of, Weight)
        assert (of.formats[0].name == "int8_tiles") == (tiled and method != "fp8")
        assert ("llm.0.o.int4" in at_load) == (method == "int4")
        exact = state["language_model.model.layers.0.self_attn.o_proj.weight"].double()
        held = tiles.untile(at_load["llm.0.o"]) if tiled and method != "fp8" else at_load["llm.0.o"]
        wide = held.double() * at_load["llm.0.o.scale"].double()[:, None]
        # Out of the stored values: a step is 1/127 of a row's largest, and nothing is rounded before.
        if method != "fp8":
            assert bool(((wide - exact).abs() <= 0.5001 * at_load["llm.0.o.scale"].double()[:, None]).all())


def test_a_model_of_either_computes_the_same(tmp_path: Path) -> None:
    config, state = seeded(torch.float32)
    written(tmp_path / "a", config, state)
    quantize_checkpoint(Checkpoint.open(tmp_path / "a"), tmp_path / "b")
    models = [
        JanusFlow.from_pretrained(tmp_path / "a", device="cpu", dtype="bfloat16", quantization="int8"),
        JanusFlow.from_pretrained(tmp_path / "b", device="cpu", dtype="bfloat16"),
        JanusFlow.from_state_dict(config, state, device="cpu", dtype="bfloat16", quantization="int8"),
    ]
    for model in models[1:]:
        assert model.runner.policy == models[0].runner.policy
        assert_same(model.runner.weights, models[0].runner.weights)
    ids = torch.tensor([prompt(3, 9)])
    logits = [model.next_token_logits(ids) for model in models]
    assert torch.equal(logits[1], logits[0])
    assert torch.equal(logits[2], logits[0])


@pytest.mark.parametrize("form", ["safetensors", "shards", "bin"])
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_however_the_files_are_cut(tmp_path: Path, form: str, quantization: str | None) -> None:
    config, state = seeded(torch.float32)
    checkpoint = Checkpoint.open(written(tmp_path / "a", config, state, form))
    policy = Policy.of(torch.bfloat16, tiled=True, quantization=quantization)
    assert_same(kept(config, checkpoint.weights, policy), kept(config, StateDictSource(state), policy))
    quantize_checkpoint(checkpoint, tmp_path / "b", shard_bytes=20_000)
    before = Checkpoint.open(tmp_path / "b")
    in_8_bits = Policy.of(torch.bfloat16, tiled=True, quantization="int8")
    assert_same(kept(before.config_dict, before.weights, in_8_bits), kept(config, StateDictSource(state), in_8_bits))


@pytest.mark.parametrize("head_in_file", [True, False])
def test_a_tied_head_is_the_embedding_either_way(tmp_path: Path, head_in_file: bool) -> None:
    config, state = seeded(torch.float32)
    config["language_config"]["tie_word_embeddings"] = True
    if not head_in_file:
        del state["language_model.lm_head.weight"]
    quantize_checkpoint(Checkpoint.open(written(tmp_path / "a", config, state)), tmp_path / "b")
    before, policy = Checkpoint.open(tmp_path / "b"), Policy.of(torch.bfloat16, quantization="int8")
    at_load = kept(config, StateDictSource(state), policy)
    assert_same(kept(before.config_dict, before.weights, policy), at_load)
    assert at_load["llm.head"] is at_load["llm.embed"]


def test_a_row_beyond_the_computing_dtype_is_quantized_all_the_same(tmp_path: Path) -> None:
    """bfloat16 rounds the largest floats to inf; their 8 bits are finite."""
    config, state = seeded(torch.float32)
    state["language_model.model.layers.0.self_attn.o_proj.weight"][0, 0] = torch.finfo(torch.float32).max
    quantize_checkpoint(Checkpoint.open(written(tmp_path / "a", config, state)), tmp_path / "b")
    before, policy = Checkpoint.open(tmp_path / "b"), Policy.of(torch.bfloat16, quantization="int8")
    assert_same(kept(before.config_dict, before.weights, policy), kept(config, StateDictSource(state), policy))


@pytest.mark.parametrize("tiled", [True, False])
def test_the_errors_shown_are_those_of_what_is_multiplied(tmp_path: Path, tiled: bool) -> None:
    """int4: of the 4 bits that a model keeps, and of 8 where the stacked linear does not fit them."""
    config, state = seeded(torch.float32)
    checkpoint = Checkpoint.open(written(tmp_path / "a", config, state))
    policy = Policy.of(torch.bfloat16, tiled=tiled, quantization="int4")
    weights = kept(config, checkpoint.weights, policy)
    seen = set()
    errors = {error.name: error.loss.relative for error in quantization_errors(checkpoint, method="int4")}
    for target in weight_layout(checkpoint.config):
        if not target.quantizable:
            continue
        if f"{target.name}.int4" in weights:
            held = INT4.unpack(weights[f"{target.name}.int4"], weights[f"{target.name}.int4.scale"]).double()
        else:
            q = weights[target.name]
            q = q if policy.kept(target).formats[0].by_rows else tiles.untile(q)
            held = q.double() * weights[f"{target.name}.scale"].double()[:, None]
        seen.add((target.name.rpartition(".")[2], f"{target.name}.int4" in weights))
        rows = 0
        for source in target.sources:
            exact = state[source.names[0]].double()
            part = held[rows : rows + len(exact)]
            rows += len(exact)
            assert errors[source.names[0]] == pytest.approx(float((part - exact).norm() / exact.norm()), rel=1e-9)
    assert seen == {("qkv", False), ("o", True), ("gate_up", True), ("down", True), ("head", False)}


def test_images_are_read_the_same_without_a_file_that_says_how(tmp_path: Path) -> None:
    config, state = seeded(torch.float32)
    folder = written(tmp_path / "a", config, state)
    models = [JanusFlow.from_pretrained(folder, device="cpu"), JanusFlow.from_state_dict(config, state, device="cpu")]
    assert models[0].processor == models[1].processor


@pytest.mark.parametrize("vae_dtype", ["auto", "float32", "bfloat16"])
def test_a_vae_is_the_same_wherever_it_lies(
    folder_with_vae: Path, config_dict: dict[str, Any], state: State, vae_state: State, tmp_path: Path, vae_dtype: str
) -> None:
    quantize_checkpoint(Checkpoint.open(folder_with_vae), tmp_path / "int8")
    vae_config = json.loads((folder_with_vae / "vae" / "config.json").read_text())
    options = dict(device="cpu", dtype="bfloat16", vae_dtype=vae_dtype)
    models = [
        JanusFlow.from_pretrained(folder_with_vae, **options),
        JanusFlow.from_pretrained(tmp_path / "int8", **options),
        JanusFlow.from_pretrained(folder_with_vae, vae=tmp_path / "int8" / "vae", **options),
        JanusFlow.from_state_dict(config_dict, state, vae_config=vae_config, vae_state_dict=vae_state, **options),
    ]
    expected = torch.float32 if vae_dtype == "float32" else torch.bfloat16
    assert models[0].runner.vae_weights["vae.conv_in.w"].dtype is expected
    for model in models[1:]:
        assert_same(model.runner.vae_weights, models[0].runner.vae_weights)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("method", ["int8", "fp8", "int4"])
@pytest.mark.parametrize(
    "foreign",
    [
        partial(torch.device, "meta"),
        torch.inference_mode,
        partial(torch.autocast, "cpu", torch.float16),
        partial(default_dtype, torch.float64),
        partial(default_dtype, torch.float16),
    ],
    ids=["default device", "inference mode", "autocast", "float64", "float16"],
)
def test_the_callers_state_does_not_count(
    tmp_path: Path, method: str, foreign: Callable[[], AbstractContextManager[Any]]
) -> None:
    source = Checkpoint.open(written(tmp_path / "floats", *seeded(torch.float32)))
    quantize_checkpoint(source, tmp_path / "plain", method)
    errors, seen = quantization_errors(source, method=method), []

    def note(done: int) -> None:
        seen.append((torch.empty(()).device, torch.empty(()).dtype))

    with foreign():
        own = torch.empty(()).device, torch.empty(()).dtype
        quantize_checkpoint(source, tmp_path / "foreign", method, progress=note)
        assert quantization_errors(source, note, method) == errors
    got, expected = (Checkpoint.open(tmp_path / name).weights.paths for name in ("foreign", "plain"))
    assert [path.read_bytes() for path in got] == [path.read_bytes() for path in expected]
    assert set(seen) == {own}
