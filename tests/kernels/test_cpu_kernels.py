"""What the native module refuses: every kernel's raw arguments are checked before an address is read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from flashjanus.engine.device import native
from flashjanus.engine.errors import NativeError, PlanError
from flashjanus.engine.ops import Given, all_ops, get_op
from flashjanus.engine.ops.base import filled
from flashjanus.engine.ops.linear import members
from flashjanus.engine.specs import TensorSpec
from op_check import make_call, serving, specs_of

pytestmark = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))

CPU = torch.device("cpu")


def asked_for() -> dict[str, dict[str, Any]]:
    """Each kernel's arguments in the first case, by the names of ops, that asks for it."""
    found: dict[str, dict[str, Any]] = {}
    with patch.object(native, "amx_available", lambda: None), native.recording() as recorded:
        for op in all_ops().values():
            for case in op.cases:
                call = make_call(op, case, op.dtypes[-1], False)
                outputs = [
                    torch.empty(s.shape, dtype=s.dtype) for s in op.schema.infer(op.name, specs_of(call), call.attrs)
                ]
                for name in {"native", "amx"} & set(serving(op, call)):
                    op.implementations[name].run(*call.args, *outputs, **call.attrs)
    for it in recorded:
        found.setdefault(it.kernel, {name: value for name, value in it.arguments.items() if name != "isa"})
    return found


GOOD = asked_for() if native.available() is None else {}
BAD = [
    ("flow_update", dict(v=0), "non-null"),
    ("flow_update", dict(kept=68), "v and kept aligned to 4 elements"),
    ("flow_update", dict(history=4), "z and history aligned to 8 bytes"),
    ("flow_update", dict(schedule=2), "schedule, step and steps aligned to 4 bytes"),
    ("flow_update", dict(rows=0), "rows and evaluations >= 1"),
    ("flow_update", dict(evaluations=0), "rows and evaluations >= 1"),
    ("flow_update", dict(unconditional=3), "0 <= unconditional <= rows"),
    ("flow_update", dict(unconditional=-1), "0 <= unconditional <= rows"),
    ("flow_update", dict(patch=0), "patch >= 1"),
    ("flow_update", dict(height=1 << 15, width=1 << 14), "fewer than 2\\^31 elements"),
    ("flow_update", dict(height=1 << 30, width=1 << 30, channels=1 << 30), "fewer than 2\\^31 elements"),
    ("flow_update", dict(channels=4097, patch=1), "<= 4096"),
    ("flow_update", dict(v_dtype=2), "v_dtype 0"),
    ("gemv", dict(rows=0), "every size >= 1, .*got .*rows=0"),
    ("gemv", dict(out=0), "every size >= 1"),
    ("gemv", dict(w=0), "non-null"),
    ("gemv", dict(dtype=2), "0 .float32. or 1 .bfloat16."),
    ("gemv", dict(norm=0, x_dtype=0), "x_dtype as dtype, or 0 .float32. with norm"),
    ("gemv", dict(norm=64, columns=2049), "at most 2048 channels"),
    ("gemv", dict(gated=1, bias=64), "no bias where gated"),
    ("gemv", dict(threads=0), "threads >= 1"),
    ("rms_norm", dict(channels=-1), "every size >= 1"),
    ("rms_norm", dict(total=0), "non-null"),
    ("rms_norm", dict(y_dtype=7), "0 .float32."),
    ("rms_norm", dict(scale=64, channels=8193), "at most 8192 channels where scale is given"),
    ("sample_token", dict(steps=0), "every size >= 1"),
    ("sample_token", dict(uniforms=0), "non-null"),
    ("sample_token", dict(dtype=3), "0 .float32."),
    ("silu_mul", dict(scale=64, channels=8193), "at most 8192 channels where scale is given"),
    ("quantize_rows", dict(channels=8193), "at most 8192 channels where scale is given"),
    ("quantize_rows", dict(scale=0), "non-null"),
    ("silu_mul", dict(y=0), "non-null"),
    ("silu_mul", dict(rows=0), "every size >= 1"),
    ("rope_kv_write", dict(half=0), "every size >= 1"),
    ("rope_kv_write", dict(slots=0), "non-null"),
    ("decode_attention", dict(heads=3, kv_heads=2), "heads a multiple of kv_heads"),
    ("decode_attention", dict(head=257), "at most 256 channels"),
    ("attention", dict(head=257), "at most 256 channels"),
    ("decode_attention", dict(kv_end=0), "non-null"),
    ("layer_norm", dict(rows=0), "every size >= 1"),
    ("layer_norm", dict(total=0), "non-null"),
    ("layer_norm", dict(x_dtype=-1), "0 .float32."),
    ("depthwise_norm", dict(width=0), "every size >= 1"),
    ("depthwise_norm", dict(channels=2049), "at most 2048 channels"),
    ("depthwise_norm", dict(norm=0), "non-null"),
    ("depthwise_norm", dict(weight_dtype=2), "0 .float32."),
    ("gelu_grn_stats", dict(positions=0), "every size >= 1"),
    ("gelu_grn_stats", dict(sumsq=0), "non-null"),
    ("grn_apply", dict(channels=0), "every size >= 1"),
    ("grn_apply", dict(bias=0), "non-null"),
    ("residual_modulate", dict(steps=0), "every size >= 1"),
    ("residual_modulate", dict(batch=5), "images <= batch <= 2 . images"),
    ("residual_modulate", dict(images=5), "images <= batch <= 2 . images"),
    ("residual_modulate", dict(step=0), "non-null"),
    ("step_cache", dict(evaluations=0), "every size >= 1"),
    ("step_cache", dict(batch=3), "images <= batch <= 2 . images"),
    ("step_cache", dict(slot_dtype=2), "0 .float32."),
    ("step_cache", dict(slot_1=0), "non-null"),
    ("tiled_linear", dict(rows=0), "every size >= 1"),
    ("tiled_linear", dict(out=24), "out a multiple of 16, columns of 32"),
    ("tiled_linear", dict(columns=96, scale=64), "of 64 where scale is given"),
    ("tiled_linear", dict(columns=8256, scale=64), "at most 8192 channels where scale is given"),
    ("tiled_linear", dict(act=3), "act 0 .none., 1 .gated SiLU. or 2 .GELU."),
    ("tiled_linear", dict(y_dtype=2), "0 .float32. or 1 .bfloat16."),
    ("tiled_linear", dict(w=0), "non-null"),
    ("gemm", dict(rows=0), "every size >= 1"),
    ("gemm", dict(y_dtype=2), "0 .float32. or 1 .bfloat16."),
    ("gemm", dict(w=0), "non-null"),
    ("int4_linear", dict(columns=0), "every size >= 1"),
    ("int4_linear", dict(rows=5), "at most 4 rows"),
    ("int4_linear", dict(out=24), "out a multiple of 16, columns of 32"),
    ("int4_linear", dict(columns=48), "out a multiple of 16, columns of 32"),
    ("int4_linear", dict(columns=8224), "at most 8192 channels where scale is given"),
    ("int4_linear", dict(residual_dtype=2), "0 .float32. or 1 .bfloat16."),
    ("int4_linear", dict(scale=0), "non-null"),
    ("tiled_attention", dict(head=257), "at most 256 channels"),
    ("tiled_attention", dict(slots=64), "non-null"),
    ("group_norm_silu", dict(channels=2050), "at most 2048 channels"),
    ("group_norm_silu", dict(groups=3), "at most 128 groups, and channels a multiple"),
    ("group_norm_silu", dict(groups=129, channels=258), "at most 128 groups"),
    ("group_norm_silu", dict(weight=0), "non-null"),
]


@pytest.mark.parametrize(("kernel", "change", "message"), BAD)
def test_a_kernel_checks_raw_arguments(kernel: str, change: dict[str, float], message: str) -> None:
    import flashjanus._C as module

    with pytest.raises(ValueError, match=f"{kernel}: expected .*{message}"):
        getattr(module, kernel)(**(GOOD[kernel] | change))


def test_an_op_asks_for_every_kernel() -> None:
    import flashjanus._C as module

    assert GOOD.keys() == {name.removesuffix("_bound") for name in vars(module) if name.endswith("_bound")}


@pytest.mark.parametrize("kernel", GOOD)
def test_a_kernel_names_the_argument_that_is_missing_unknown_or_of_another_type(kernel: str) -> None:
    import flashjanus._C as module

    run, good = getattr(module, kernel), GOOD[kernel]
    short = {name: value for name, value in good.items() if name != "threads"}
    with pytest.raises(TypeError, match=f"{kernel}: missing argument 'threads'"):
        run(**short)
    with pytest.raises(TypeError, match=f"{kernel}: unexpected argument 'color'"):
        run(**good, color=1)
    with pytest.raises(TypeError, match=f"{kernel}: argument 'threads' does not fit its type, got 'many'"):
        run(**(good | {"threads": "many"}))
    with pytest.raises(TypeError, match=f"{kernel}: argument 'isa' does not fit its type, got 3"):
        run(**good, isa=3)


def test_run_takes_cpu_tensors_only() -> None:
    with pytest.raises(NativeError, match="silu_mul: expected x on cpu, got meta"):
        native.run("silu_mul", x=torch.zeros(2, 4, device="meta"), y=torch.zeros(2, 2))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_work_without_changing_it(threads: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x, w = torch.randn(2, 70, generator=generator), torch.randn(37, 70, generator=generator)
    outputs = []
    for count in (1, threads):
        y = torch.full((2, 37), torch.nan)
        call = Given(get_op("linear"), [x, w, *5 * [None], y], {})
        native.run("gemv", **filled("gemv", call, members(call) | {"threads": count}))
        outputs.append(y)
    assert torch.equal(*outputs)
    torch.testing.assert_close(outputs[0], x @ w.T)


def specs(*shapes: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> list[TensorSpec | None]:
    return [TensorSpec(shape, dtype) for shape in shapes]


def test_an_implementation_that_yields_serves_when_it_is_asked_for() -> None:
    silu = get_op("silu")
    op = replace(silu, implementations={})
    op.implementation("mine", should_not=lambda call: "no faster")(print)
    op.implementations |= silu.implementations
    one = specs((1, 8))
    chosen, reasons = op.choose(CPU, one, {})
    assert (chosen.name, reasons) == ("torch", {"mine": "no faster"})
    assert op.choose(CPU, one, {}, forced=["mine"])[0].name == "mine"


def test_an_implementation_that_refuses_does_not_serve_when_it_is_asked_for() -> None:
    with pytest.raises(PlanError, match="native: adds the bias before it rounds"):
        get_op("linear").choose(
            CPU, [*specs((1, 5, 64), (32, 64)), *5 * [None]], {"split_bias": True}, forced=["native"]
        )
    q, k = (2, 3, 4, 257), (2, 9, 4, 257)
    indices = [TensorSpec(shape, torch.int32) for shape in ((2,), (2, 3), (2, 3))]
    with pytest.raises(PlanError, match="native: takes heads of at most 256 channels, not 257"):
        get_op("attention").choose(CPU, [*specs(q, k, k), *indices], {"scale": 1.0}, forced=["native"])
