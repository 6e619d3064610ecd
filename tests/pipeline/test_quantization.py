"""A model in int8, fp8 or int4: what is quantized, how far it is from the exact one, and what goes with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.builtin import builtin_folder
from flashjanus.checkpoint import Checkpoint, Target
from flashjanus.checkpoint.quantize import quantize_checkpoint
from flashjanus.engine.device import native
from flashjanus.engine.formats import Weight, tiles
from flashjanus.engine.formats.nibbles import INT4
from flashjanus.engine.formats.rows import quantized
from flashjanus.engine.specs import TensorSpec
from flashjanus.errors import InputError
from flashjanus.execution.text import TextRequest, TextSession
from flashjanus.model import Policy
from gpu_stand_in import stand_in

needs_amx = pytest.mark.skipif(native.amx_available() is not None, reason=str(native.amx_available()))
PROMPT = "a red circle to the left of a blue square"
KINDS = [
    pytest.param({}, marks=needs_amx),
    {"implementations": {"linear": ("scaled_mm", "torch")}},
    {"implementations": {"linear": "torch"}},
]
"""Weights in tiles, with activations in int8 too; and row by row, with such activations and with those of the dtype."""


def of(source: str | Path = "shapes", **options: object) -> JanusFlow:
    return JanusFlow.from_pretrained(source, **{"dtype": "bfloat16", **options})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model, stored in int8."""
    return written(tmp_path_factory.mktemp("stored"), "int8")


def written(folder: Path, method: str) -> Path:
    quantize_checkpoint(Checkpoint.open(builtin_folder()), folder / method, method)
    return folder / method


@pytest.mark.parametrize("options", KINDS)
def test_the_language_model_alone_is_quantized(options: dict[str, object]) -> None:
    exact, int8 = of(implementations={"linear": "torch"}), of(quantization="int8", **options)
    for name, weight in int8.runner.weights.items():
        layer = name.startswith("llm.") and weight.dim() == 2 and name != "llm.embed"
        assert (weight.dtype is torch.int8) == layer, name
        if layer:
            rows = tiles.untile(weight) if int8.runner.policy.tiled else weight
            scale = int8.runner.weights[f"{name}.scale"][:, None]
            assert ((rows.float() * scale - exact.runner.weights[name].float()).abs() <= 0.5001 * scale).all()
    assert int8.quantization == "int8"
    assert exact.quantization is None


@pytest.mark.parametrize("options", KINDS)
def test_pictures_and_answers_stay_close(options: dict[str, object]) -> None:
    exact, int8 = of(), of(quantization="int8", **options)
    drawing = dict(num_inference_steps=8, seed=3, output_type="pt")
    pictures = [m.generate_image(PROMPT, **drawing).images[0] for m in (exact, int8)]  # type: ignore[arg-type]
    assert 0 < (pictures[0] - pictures[1]).abs().mean() < 0.01
    content = [
        {"type": "image", "image": exact.generate_image(PROMPT, seed=3).images[0]},
        {"type": "text", "text": "Which is on the left, the circle or the square?"},
    ]
    answers = {str(m.chat([{"role": "user", "content": content}], max_new_tokens=8)) for m in (exact, int8)}
    assert len(answers) == 1


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_policy_keeps_4_bits_beside_8_of_the_layers_linears(dtype: torch.dtype, tiled: bool) -> None:
    policy, int8 = (Policy.of(dtype, tiled=tiled, quantization=name) for name in ("int4", "int8"))
    targets = {
        "llm.0.qkv": ((96, 64), True),
        "llm.head": ((96, 64), False),
        "llm.embed": ((96, 64), False),
        "vit.0.fc1": ((96, 64), False),
        "llm.0.o": ((48, 64), False),  # not in tiles either
    }
    for name, (shape, packed) in targets.items():
        target = Target(name, shape, "matrix", ())
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
        kept, beside = (it.pack(target, weight.clone()) for it in (policy, int8))
        of = policy.kept(target)
        due = of.specs() if isinstance(of, Weight) else {name: of}
        assert {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in kept.items()} == due
        assert kept.keys() - beside.keys() == ({f"{name}.int4", f"{name}.int4.scale"} if packed else set())
        assert all(torch.equal(kept[name], t) for name, t in beside.items())
        if packed:
            wide = INT4.unpack(kept[f"{name}.int4"], kept[f"{name}.int4.scale"])
            q, scale = quantized(weight)
            assert torch.equal(wide, INT4.unpack(*INT4.pack(q * scale[:, None])))
            assert (wide - weight.float()).norm() <= 0.1 * weight.float().norm()


def test_int4_decodes_few_rows_on_4_bits_and_is_int8_elsewhere() -> None:
    exact, int8, int4 = of(implementations={"linear": "torch"}), of(quantization="int8"), of(quantization="int4")
    extra = {name for name in int4.runner.weights if ".int4" in name}
    assert int4.runner.weights.keys() - extra == int8.runner.weights.keys()
    assert extra
    for name in extra:
        if name.endswith(".int4"):
            wide = INT4.unpack(int4.runner.weights[name], int4.runner.weights[f"{name}.scale"])
            weight = exact.runner.weights[name.removesuffix(".int4")].float()
            assert (wide - weight).norm() <= 0.12 * weight.norm(), name
    for program, rows, count in (("decode_step", 4, len(extra) // 2), ("decode_step", 8, 0), ("prefill", 1, 0)):
        nodes = int4.plan(program, rows=rows, prompt_tokens=1).nodes
        assert [node.work for node in nodes].count("linear/int4") == count, program
    drawing = dict(num_inference_steps=2, seed=3, output_type="pt")
    pictures = [m.generate_image(PROMPT, **drawing).images[0] for m in (int8, int4)]  # type: ignore[arg-type]
    assert torch.equal(*pictures)


def read_by_decoding(model: JanusFlow, text: str) -> torch.Tensor:
    """Logits (V,) of the token after `text`, of which all but the first token went through decode_step."""
    assert model.tokenizer is not None
    ids = [model.tokenizer.bos_id, *model.tokenizer.encode_text(text)]
    session = TextSession(model.runner, rows=1, prompt=16, slots=64, features=1, new=48)
    session.start([TextRequest((ids[0],))], None)
    for token in ids[1:]:
        session.states["token"].fill_(token)
        session.step()
    return session.decode.outputs["logits"][0].float()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_int4_reads_on_as_the_exact_model_does(dtype: str) -> None:
    exact, int4 = of(dtype=dtype), of(dtype=dtype, quantization="int4")
    for text in ("User: Which is on the left, the circle or the square?", "User: How many triangles are there?"):
        expected, got = (read_by_decoding(model, text) for model in (exact, int4))
        assert 0 < (got - expected).norm() < 0.05 * expected.norm(), text
        assert got.argmax() == expected.argmax(), text


def test_int4_needs_native_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"implementations of linear are without 'native'; 'int8' works everywhere"):
        of(quantization="int4", implementations={"linear": "torch"})
    monkeypatch.setattr(native, "available", lambda: "no compiler was found")
    with pytest.raises(InputError, match="needs a CPU's native kernels: no compiler was found; 'int8' works"):
        of(quantization="int4")
    monkeypatch.undo()
    stand_in(monkeypatch)
    with pytest.raises(InputError, match="runs on the CPU, not on cuda; 'int8' works everywhere"):
        of(quantization="int4", device="cuda")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(quantization="int3"), ["quantization", "'int8'", "'int3'"]),
        (dict(quantization="int8", numerics="official"), ["quantization", "official"]),
        (dict(quantization="int8", dtype="float16", vae_dtype="float32"), ["quantization", "float16", "bfloat16"]),
    ],
)
def test_what_does_not_go_together(options: dict[str, str], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        JanusFlow.from_pretrained("shapes", **options)  # type: ignore[arg-type]
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("asked", [None, "int8"])
def test_a_checkpoint_in_int8_is_the_model_quantized_at_load(
    stored: Path, options: dict[str, object], asked: str | None
) -> None:
    at_load, from_int8 = of(quantization="int8", **options), of(stored, quantization=asked, **options)
    assert from_int8.quantization == "int8"
    expected, got = at_load.runner.weights, from_int8.runner.weights
    assert {name: tensor.dtype for name, tensor in got.items()} == {name: t.dtype for name, t in expected.items()}
    assert {name for name, tensor in got.items() if not torch.equal(tensor, expected[name])} == set()
    if asked is None:
        drawing = dict(num_inference_steps=2, seed=3, output_type="pt")
        pictures = [m.generate_image(PROMPT, **drawing).images for m in (at_load, from_int8)]  # type: ignore[arg-type]
        assert torch.equal(*pictures)


@pytest.mark.parametrize(("method", "asked"), [("int4", None), ("int4", "int4"), ("int4", "int8"), ("int8", "int4")])
def test_int4_is_stored_in_int8_and_each_serves_for_the_other(
    stored: Path, tmp_path: Path, method: str, asked: str | None
) -> None:
    checkpoint = Checkpoint.open(written(tmp_path, method) if method == "int4" else stored)
    assert checkpoint.config.quantization == method
    assert {info.dtype for info in checkpoint.weights.names().values()} == {"int8", "float32", "bfloat16"}
    at_load, from_stored = of(quantization=asked or method), of(checkpoint.folder, quantization=asked)
    assert from_stored.quantization == at_load.quantization == (asked or method)
    expected, got = at_load.runner.weights, from_stored.runner.weights
    assert got.keys() == expected.keys()
    assert {name for name, tensor in got.items() if not torch.equal(tensor, expected[name])} == set()


def test_a_checkpoint_in_int4_says_what_serves_without_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(tmp_path, "int4")
    monkeypatch.setattr(native, "available", lambda: "no compiler was found")
    with pytest.raises(InputError, match="no compiler was found; 'int8' works everywhere"):
        of(folder)
    assert of(folder, quantization="int8").quantization == "int8"


def test_fp8_needs_a_gpu_that_multiplies_it(tmp_path: Path) -> None:
    stored, elsewhere = written(tmp_path, "fp8"), "load the checkpoint that it was made from"
    for source, asked, instead in (
        ("shapes", "fp8", "'int8' works everywhere"),
        (stored, "fp8", f"the checkpoint is stored in fp8: {elsewhere}"),
        (stored, None, f"the checkpoint is stored in fp8: {elsewhere}"),
    ):
        with pytest.raises(InputError) as error:
            of(source, quantization=asked)
        assert str(error.value) == (
            f"quantization: fp8 needs a GPU of compute capability 8.9 or later (Ada, Hopper), got the CPU; {instead}"
        )
    for asked in ("int8", "int4"):
        with pytest.raises(InputError) as error:
            of(stored, quantization=asked)
        assert str(error.value) == (
            f"quantization: expected None or 'fp8' because the checkpoint is stored in fp8, got '{asked}'; {elsewhere}"
        )


def test_a_checkpoint_in_fp8_is_the_model_quantized_at_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = of(implementations={"linear": "torch"})
    stand_in(monkeypatch)
    at_load, from_fp8 = of(quantization="fp8", device="cuda"), of(written(tmp_path, "fp8"), device="cuda")
    assert from_fp8.quantization == at_load.quantization == "fp8"
    for name, tensor in at_load.runner.weights.items():
        got = from_fp8.runner.weights[name]
        assert got.dtype is tensor.dtype
        assert torch.equal(got.float(), tensor.float()), name
        if f"{name}.scale" in at_load.runner.weights:
            assert tensor.dtype is torch.float8_e4m3fn
            wide = tensor.float() * at_load.runner.weights[f"{name}.scale"][:, None]
            weight = exact.runner.weights[name].float()
            assert (wide - weight).norm() <= 0.03 * weight.norm()
    for program, rows in (("flow_step", 1), ("prefill", 1), ("decode_step", 1)):
        linears = [n for n in from_fp8.plan(program, rows=rows, prompt_tokens=8).nodes if n.work == "linear/e4m3"]
        assert linears
        assert all(node.inputs[4] is not None for node in linears), "inputs are in 8 bits too"
    # in two steps, rounding alone can change the background
    drawing = dict(num_inference_steps=8, seed=3, output_type="pt")
    pictures = [m.generate_image(PROMPT, **drawing).images[0] for m in (exact, at_load, from_fp8)]  # type: ignore[arg-type]
    assert torch.equal(*pictures[1:])
    assert 0 < (pictures[0] - pictures[1]).abs().mean() < 0.005


def test_a_checkpoint_in_int8_computes_in_float32_too(stored: Path) -> None:
    model = of(stored, dtype="float32")
    assert (model.dtype, model.quantization) == (torch.float32, "int8")
    assert model.runner.weights["llm.0.qkv"].dtype is torch.int8
    assert model.generate_image(PROMPT, num_inference_steps=1, output_type="pt").images.isfinite().all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(quantization="int3"), ["quantization", "None or 'int8' or 'int4'", "stored in int8", "'int3'"]),
        (dict(quantization="fp8"), ["quantization", "None or 'int8' or 'int4'", "stored in int8", "'fp8'"]),
        (dict(numerics="official"), ["numerics", "'exact'", "'int8'"]),
        (dict(dtype="float16", vae_dtype="float32"), ["quantization", "float16", "bfloat16"]),
    ],
)
def test_what_does_not_go_with_a_checkpoint_in_int8(stored: Path, options: dict[str, str], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        of(stored, **options)
    assert all(word in str(error.value) for word in words), error.value


def test_a_state_dict_in_int8_says_so_in_its_config(stored: Path) -> None:
    checkpoint = Checkpoint.open(stored)
    state = {name: checkpoint.weights.read(name) for name in checkpoint.weights.names()}
    assert JanusFlow.from_state_dict(checkpoint.config_dict, state).quantization == "int8"
