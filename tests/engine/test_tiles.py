"""Weights in tiles: their order, the nodes that read them, and a model that keeps them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.checkpoint import Target
from flashjanus.checkpoint.layout import Source
from flashjanus.engine.device import native
from flashjanus.engine.errors import NativeError, PlanError, SchemaError
from flashjanus.engine.formats import Weight, rows, tiles
from flashjanus.engine.formats.dense import DENSE
from flashjanus.engine.formats.rows import INT8
from flashjanus.engine.formats.tiles import TILES
from flashjanus.engine.graph import Graph
from flashjanus.engine.ops import get_op
from flashjanus.engine.plan import lower
from flashjanus.engine.runtime.executor import Executor
from flashjanus.engine.specs import Dim, TensorSpec
from flashjanus.model import Policy

F32, BF16, CPU = torch.float32, torch.bfloat16, torch.device("cpu")
needs_amx = pytest.mark.skipif(native.amx_available() is not None, reason=str(native.amx_available()))
R = Dim.symbol("R")
SHAPES = {"gate_up": (128, 96), "fc": (32, 96), "down": (96, 64)}
REST = {"norm": TensorSpec((96,), F32), "bias": TensorSpec((128,), BF16)}
PLAIN, SPECS = (
    REST | {name: Weight(name, shape, BF16, (fmt,)) for name, shape in SHAPES.items()} for fmt in (DENSE, TILES[DENSE])
)


@pytest.mark.parametrize("dtype", [BF16, torch.int8])
def test_a_tile_holds_four_bytes_of_each_of_its_16_rows_side_by_side(dtype: torch.dtype) -> None:
    weight = torch.arange(32 * 256).view(32, 256).remainder(251).to(dtype)
    tiled, v = tiles.tile(weight), 4 // dtype.itemsize
    k = 64 // dtype.itemsize
    blocks = tiled.view(2, 256 // k, 16, 16, v)
    for n, c in ((0, 0), (5, 1), (17, 131), (31, 255)):
        assert blocks[n // 16, c // k, c % k // v, n % 16, c % v] == weight[n, c]
    assert torch.equal(tiles.untile(tiled), weight)


@pytest.mark.parametrize(
    ("n", "k", "dtype", "reason"),
    [(24, 64, BF16, "16 x 32, got 24 x 64"), (16, 96, torch.int8, "16 x 64"), (16, 64, F32, "not torch.float32")],
)
def test_what_does_not_fit_into_tiles_says_why(n: int, k: int, dtype: torch.dtype, reason: str) -> None:
    said = TILES[INT8 if dtype is torch.int8 else DENSE].refuses(n, k, dtype)
    assert said is not None
    assert reason in said
    fmt = "int8_tiles" if dtype is torch.int8 else "tiles"
    scale = TensorSpec((n,), F32) if dtype is torch.int8 else None
    x = TensorSpec((1, k), BF16 if dtype is torch.int8 else dtype)
    with pytest.raises(SchemaError, match="linear: tiles"):
        get_op("linear").schema.bind(
            "linear", [x, TensorSpec((n, k), dtype), None, scale, None, None, None], dict(format=fmt)
        )


def layer(specs: Mapping[str, TensorSpec | Weight]) -> Graph:
    """An MLP: norm, gated linear with a bias, linear, residual add and norm; and a linear with GELU after it."""
    g = Graph("layer", specs)
    h = g.add("cast", g.input("h", (R, 1, 96), F32), dtype=F32, label="h32")
    normed = g.add("rms_norm", h, g.weight("norm"), eps=1e-6, dtype=BF16, label="normed")
    gate_up = g.add("linear", normed, g.weight("gate_up"), g.weight("bias"), label="gate_up.out")
    down = g.add("linear", g.add("silu_mul", gate_up), g.weight("down"), None, label="down.out")
    x, normed = g.add("add_rms_norm", h, down, g.weight("norm"), eps=1e-6, dtype=BF16, label="add")
    g.output("x", x)
    g.output("y", g.add("gelu", g.add("linear", normed, g.weight("fc"), None, label="fc.out")))
    return g


def kept(specs: Mapping[str, TensorSpec | Weight]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = {"norm": torch.randn(96, generator=generator), "bias": torch.randn(128, generator=generator).to(BF16) / 8}
    for name, shape in SHAPES.items():
        weight = specs[name]
        assert isinstance(weight, Weight)
        drawn |= weight.pack((torch.randn(shape, generator=generator) / 8).to(BF16))
    return drawn


def test_a_linear_takes_its_neighbors_whatever_the_number_of_rows() -> None:
    plan = lower(layer(SPECS), {"R": 40}, CPU)
    assert [(node.work, node.attrs.get("act")) for node in plan.nodes] == [
        ("cast", None),
        ("linear/tiles", "gated_silu"),
        ("linear/tiles", "none"),
        ("linear/tiles", "gelu"),
    ]
    assert plan.nodes[1].inputs[5] is not None
    assert plan.nodes[2].inputs[6] is not None


@pytest.mark.parametrize("forced", [{"rms_norm": ("torch",)}, {"gelu": ("torch",)}])
def test_parts_that_are_forced_stay_alone(forced: dict[str, tuple[str]]) -> None:
    ops = [node.work for node in lower(layer(SPECS), {"R": 2}, CPU, forced).nodes]
    assert ops == [
        "cast",
        "rms_norm",
        "linear/tiles",
        "silu_mul",
        "linear/tiles",
        "add_rms_norm",
        "linear/tiles",
        "gelu",
    ]
    assert ops == [node.work for node in lower(layer(SPECS), {"R": 2}, CPU, fused=False).nodes]


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("implementation", [pytest.param("amx", marks=needs_amx), "torch"])
def test_the_numbers_are_those_of_the_parts(count: int, implementation: str) -> None:
    h = torch.randn(count, 1, 96, generator=torch.Generator().manual_seed(count))
    results = []
    for specs, name in ((PLAIN, "torch"), (SPECS, implementation)):
        executor = Executor(lower(layer(specs), {"R": count}, CPU, {"linear": (name,)}), kept(specs))
        executor.inputs["h"].copy_(h)
        executor.run()
        results.append(executor.outputs)
    for name, expected in results[0].items():
        # the parts round where a linear with its neighbors does not
        torch.testing.assert_close(
            results[1][name].float(), expected.float(), rtol=0.02, atol=0.02 * expected.abs().max()
        )


def test_other_ops_do_not_read_tiles() -> None:
    g = Graph("other", SPECS)
    g.output("y", g.add("embed", g.input("ids", (R, 4), torch.int32), g.weight("fc"), None, None, dtype=F32))
    with pytest.raises(
        PlanError, match=r"embed.*expected a weight stored row by row, got 'fc' in tiles, which only linears"
    ):
        lower(g, {"R": 1}, CPU)
    g = Graph("rounds", SPECS)
    x = g.input("x", (R, 96), BF16)
    g.output("y", g.add("linear", x, g.weight("fc"), None, split_bias=True, label="in"))
    with pytest.raises(PlanError, match="torch: rounds before it adds its bias for dense weights alone"):
        lower(g, {"R": 1}, CPU)


def test_a_policy_tiles_what_linears_alone_read_and_what_fits() -> None:
    policy = Policy.of(BF16, tiled=True)
    targets = {
        "llm.0.qkv": ((96, 64), True),
        "llm.embed": ((96, 64), False),
        "vit.0.fc1.b": ((96,), False),
        "odd": ((48, 64), False),  # halves of 24 rows, were it gated
    }
    for name, (shape, tiled) in targets.items():
        target = Target(name, shape, "matrix", ())
        weight = torch.randn(shape).to(BF16)
        assert in_tiles(policy, target) is tiled
        assert torch.equal(policy.pack(target, weight)[name], tiles.tile(weight) if tiled else weight)
    assert not in_tiles(policy, Target("llm.head", (96, 64), "matrix", (), same_as="llm.embed"))
    assert not in_tiles(Policy.of(F32, tiled=True), Target("llm.0.qkv", (96, 64), "matrix", ()))


def in_tiles(policy: Policy, target: Target) -> bool:
    kept = policy.kept(target)
    return isinstance(kept, Weight) and kept.formats[0].name == "tiles"


def test_a_weight_keeps_what_it_was_made_of() -> None:
    parts = [Source((f"{part}_proj",), ((48, 64),)) for part in "qk"]
    target = Target("llm.0.qkv", (96, 64), "matrix", tuple(parts))
    policy, weight = Policy.of(BF16, tiled=True, quantization="int8"), torch.randn(96, 64)
    kept = policy.kept(target)
    assert isinstance(kept, Weight)
    assert kept.sources == (("q_proj", 48), ("k_proj", 48))
    q, scale = kept.by_rows(policy.pack(target, weight)).values()
    assert all(map(torch.equal, (q, scale), rows.quantized(weight)))


@needs_amx
def test_a_model_keeps_tiles_where_no_plain_linear_is_asked_for() -> None:
    tiled = JanusFlow.from_pretrained("shapes", dtype="bfloat16")
    plain = JanusFlow.from_pretrained("shapes", dtype="bfloat16", implementations={"linear": "torch"})
    assert tiled.runner.policy.tiled
    assert not plain.runner.policy.tiled
    assert not JanusFlow.from_pretrained("shapes", dtype="bfloat16", numerics="official").runner.policy.tiled
    assert not JanusFlow.from_pretrained("shapes", dtype="float32").runner.policy.tiled
    assert "linear" not in {n.work for n in tiled.plan("decode_step").nodes}
    pictures = [
        m.generate_image("a red circle", num_inference_steps=4, seed=1, output_type="pt").images for m in (tiled, plain)
    ]
    assert (pictures[0] - pictures[1]).abs().mean() < 0.01


@needs_amx
@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("rows", [3, 100])
def test_threads_share_the_work_without_changing_it(threads: int, rows: int) -> None:
    op, generator = get_op("linear"), torch.Generator().manual_seed(0)
    call = op.example(generator, BF16, m=rows, k=4128, n=96, norm=True, of="tiles")
    outputs = []
    before = torch.get_num_threads()
    for count in (1, threads):
        y = torch.full((rows, 1, 96), torch.nan, dtype=BF16)
        torch.set_num_threads(count)
        try:
            op.implementations["amx"].run(*call.args, y, **call.attrs)
        finally:
            torch.set_num_threads(before)
        outputs.append(y)
    assert torch.equal(*outputs)


@needs_amx
def test_attention_in_tiles_refuses_what_it_cannot_hold() -> None:
    arguments = dict(q=64, k=64, v=64, kv_start=0, kv_end=0, slots=0, o=64, scale=1.0, batch=1, queries=1, keys=4)
    arguments |= dict(heads=1, kv_heads=1, batch_stride=32, key_stride=8)
    for wrong, message in ((dict(head=8, dtype=BF16), "multiple of 32"), (dict(head=32, dtype=F32), "bfloat16")):
        with pytest.raises(NativeError, match=message):
            native.run("tiled_attention", **arguments, **wrong)  # type: ignore[arg-type]
