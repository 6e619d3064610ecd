"""Every op x implementation that runs on this CPU x case x dtype against the op's one reference (see op_check)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from flashjanus.engine.device import native
from flashjanus.engine.ops import Call, Op, all_ops, get_op
from flashjanus.engine.ops.flow_update import Evaluation
from flashjanus.engine.ops.schema import Arg
from op_check import GUARD, Guarded, check, error, largest, make_call, reference, run, serving, specs_of
from torch.overrides import TorchFunctionMode


def calls() -> Iterator[Any]:
    """(op, call maker) for every op, case and dtype; "official" besides."""
    for op in all_ops().values():
        for i, case in enumerate(op.cases):
            for dtype in op.dtypes:
                name = str(dtype).removeprefix("torch.")
                yield pytest.param(op, case, dtype, False, id=f"{op.name}-{i}-{name}")
            if torch.bfloat16 in op.dtypes:
                yield pytest.param(op, case, torch.bfloat16, True, id=f"{op.name}-{i}-official")


@pytest.mark.parametrize(("op", "case", "dtype", "bf16_everywhere"), list(calls()))
def test_implementations_meet_the_reference(
    op: Op, case: Mapping[str, Any], dtype: torch.dtype, bf16_everywhere: bool
) -> None:
    check_all(op, make_call(op, case, dtype, bf16_everywhere))


def check_all(op: Op, call: Call) -> None:
    names = serving(op, call)
    assert "torch" in names
    if "native" in names:
        names += [f"native {isa}" for isa in native.instruction_sets()]
    check(op, call, names)


@pytest.mark.parametrize(("op", "case", "dtype", "bf16_everywhere"), list(calls()))
def test_schema_infers_what_the_reference_gives(
    op: Op, case: Mapping[str, Any], dtype: torch.dtype, bf16_everywhere: bool
) -> None:
    call = make_call(op, case, dtype, bf16_everywhere)
    specs = op.schema.infer(op.name, specs_of(call), call.attrs)
    outputs = reference(op, call, exact=False)
    assert [(arg.name, spec.shape) for arg, spec in zip(op.schema.outputs, specs, strict=True)] == [
        (arg.name, tuple(outputs[arg.name].shape)) for arg in op.schema.outputs
    ]
    bound = op.schema.bind(op.name, specs_of(call), call.attrs)
    assert op.flops(bound, call.attrs) >= 0
    assert op.bytes_moved(bound, call.attrs, [*specs_of(call), *specs]) > 0


class WhereArgumentsAre(TorchFunctionMode):
    """Refuses tensors that are made on the default device."""

    FACTORIES = (torch.arange, torch.empty, torch.full, torch.linspace, torch.ones, torch.tensor, torch.zeros)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function not in self.FACTORIES or (kwargs or {}).get("device") is not None, function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("op", all_ops().values(), ids=lambda op: op.name)
def test_a_reference_makes_what_it_needs_where_its_arguments_are(op: Op) -> None:
    for case in op.cases:
        call = make_call(op, case, op.dtypes[0], False)
        args = [None if t is None else t.clone() for t in call.args]
        with WhereArgumentsAre():
            op.reference(*args, **call.attrs)


def strided(t: torch.Tensor) -> torch.Tensor:
    """The same values as a window on a larger buffer, NaN around it: no two axes can be merged into one."""
    larger = torch.full([s + 3 for s in t.shape], -1, dtype=t.dtype)
    if t.is_floating_point():
        larger.fill_(torch.nan)
    window = larger[tuple(slice(1, s + 1) for s in t.shape)]
    return window.copy_(t)


@pytest.mark.parametrize(
    ("op", "index", "dtype"),
    [(op, i, dtype) for op in all_ops().values() for i in range(len(op.schema.inputs)) for dtype in op.dtypes],
)
def test_torch_serves_any_strides(op: Op, index: int, dtype: torch.dtype) -> None:
    """Graphs pass views without copies; a kernel that cannot read them must leave them to torch."""
    arg = op.schema.inputs[index]
    for case in op.cases:
        call = make_call(op, case, dtype, False)
        if call.args[index] is None:
            continue
        args = list(call.args)
        args[index] = strided(call.args[index])
        expected, got = run(op, "torch", call), run(op, "torch", Call(tuple(args), call.attrs))
        for name, t in got.items():
            # a GEMM may take another path for other strides: equal up to rounding, the same bits where nothing rounds
            eps = torch.finfo(t.dtype).eps if t.is_floating_point() else 0.0
            due = op.rounding_steps * eps * largest(expected[name])
            assert error(t, expected[name], f"{op.name}.{name} with {arg.name} strided") <= due


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("split_bias", [False, True])
@pytest.mark.parametrize("lead", [(1,), (1, 1), (3,), (2, 3)])
def test_linear_takes_any_rows_and_may_add_the_bias_last(
    lead: tuple[int, ...], split_bias: bool, dtype: torch.dtype
) -> None:
    """One row may take another path than many, and 2048 columns show in which dtype it accumulates."""
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(*lead, 2048, generator=generator).to(dtype)
    weight = (torch.randn(24, 2048, generator=generator) / 45).to(dtype)
    for bias in (None, torch.randn(24, generator=generator).to(dtype)):
        call = Call((x, weight, bias, *4 * [None]), {"split_bias": split_bias})
        check_all(all_ops()["linear"], call)


def test_three_windows_of_one_qkv_buffer_are_queries_keys_and_values() -> None:
    op, generator = all_ops()["attention"], torch.Generator().manual_seed(1)
    qkv = torch.randn(2, 7, 3, 4, 16, generator=generator)
    windows = [Guarded(qkv).tensor[:, :, part] for part in range(3)]
    out = [torch.full((2, 7, 4, 16), torch.nan) for _ in range(2)]
    for q, k, v, o in ((*windows, out[0]), (*(w.contiguous() for w in windows), out[1])):
        op.implementations["torch"].run(q, k, v, None, None, None, o, scale=0.25)
    torch.testing.assert_close(out[0], out[1])


def test_residual_modulate_reads_its_own_slice_of_the_table() -> None:
    op, generator = all_ops()["residual_modulate"], torch.Generator().manual_seed(2)
    call = op.example(generator, torch.float32, images=2, guided=1, p=3, c=8, steps=4)
    y, x, table, step = call.args
    whole = torch.full((2, 4, 40), torch.nan)
    whole[:, :, 16:32] = table
    out = [torch.full_like(x, torch.nan) for _ in range(2)]
    for entry, o in ((table, out[0]), (whole[:, :, 16:32], out[1])):
        op.implementations["torch"].run(y, x, entry, step, o, dtype=torch.float32)
    assert torch.equal(out[0], out[1])


def test_rms_norm_with_bf16_weights_rounds_before_the_product() -> None:
    generator = torch.Generator().manual_seed(3)
    x = 5 * torch.randn(9, 256, generator=generator)
    weight = (1 + 0.3 * torch.randn(256, generator=generator)).bfloat16()
    out = torch.full((9, 256), torch.nan, dtype=torch.bfloat16)
    all_ops()["rms_norm"].implementations["torch"].run(x, weight, out, eps=1e-6, dtype=torch.bfloat16)
    normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    twice, once = weight * normed.bfloat16(), (weight.float() * normed).bfloat16()
    assert not torch.equal(twice, once), "the two orders of rounding must be told apart by this data"
    # the mean may differ in its last float32 bit, which may turn a rounding: a handful of 2304
    assert int((out != twice).sum()) <= 4 < int((out != once).sum())


def test_flow_update_with_bf16_latents_rounds_as_the_plain_expression() -> None:
    generator = torch.Generator().manual_seed(4)
    op, g, steps = all_ops()["flow_update"], 5.0, 30
    v = torch.randn(4, 3, 3, 16, generator=generator).bfloat16()
    z = torch.randn(2, 4, 6, 6, generator=generator).bfloat16()
    schedule = torch.tensor(Evaluation(z_w=1 / steps, guidance=g)).expand(2, steps, -1)
    step, out, unread = torch.zeros(2, dtype=torch.int32), z.clone(), torch.full_like(z, torch.nan)
    count = torch.full((2,), steps, dtype=torch.int32)
    op.implementations["torch"].run(v, out, unread, torch.full_like(v[:2], torch.nan), schedule, step, count)
    velocity = torch.nn.functional.pixel_shuffle(v.permute(0, 3, 1, 2), 2)
    vc, vu = velocity[:2], velocity[2:]
    dt = torch.tensor(1 / steps, dtype=torch.bfloat16)
    assert torch.equal(out, z + dt * (g * vc - (g - 1) * vu))
    assert step.tolist() == [1, 1]
    assert unread.isnan().all()


def test_flow_update_leaves_finished_rows_alone_whatever_their_velocity() -> None:
    op = all_ops()["flow_update"]
    call = op.example(torch.Generator().manual_seed(5), torch.float32, images=2, guided=2, h=2, w=2, c=4, p=2)
    v, z, *_, step, steps = call.args
    step[:] = torch.tensor([3, 0])
    steps[:] = torch.tensor([3, 3])
    v[0], v[2] = torch.nan, torch.inf
    for implementation in serving(op, call):
        written = run(op, implementation, call)
        assert torch.equal(written["z"][0], z[0])
        assert written["step"].tolist() == [3, 1]
        assert not torch.equal(written["z"][1], z[1])
        assert written["z"].isfinite().all()


@pytest.mark.parametrize("op", [op for op in all_ops().values() if any(a.mutated for a in op.schema.inputs)])
def test_cases_change_what_they_mutate(op: Op) -> None:
    """A case whose rows have all finished would agree with anything."""
    changed: set[str] = set()
    for case in op.cases:
        call = make_call(op, case, torch.float32, False)
        after = reference(op, call, exact=False)
        for arg, t in zip(op.schema.inputs, call.args, strict=True):
            if arg.mutated and t is not None and not torch.equal(after[arg.name], t):
                changed.add(arg.name)
    assert changed == {arg.name for arg in op.schema.inputs if arg.mutated}


@pytest.mark.parametrize("name", all_ops())
def test_schemas_keep_dtype_and_size_names_apart(name: str) -> None:
    """Both live in one namespace: a size called like a dtype variable would bind to it."""
    schema = all_ops()[name].schema
    args: tuple[Arg, ...] = (*schema.inputs, *schema.outputs)
    sizes = {part for arg in args for s in arg.shape for part in s.replace("+", "*").split("*")}
    assert not sizes & {arg.dtype for arg in args}
    assert len({arg.name for arg in args}) == len(args)
    assert not any(arg.optional or arg.mutated for arg in schema.outputs)


def test_the_checks_above_can_fail() -> None:
    """A buffer with one byte written past it, one changed argument and one wrong value are each noticed."""
    guarded = Guarded(torch.arange(6.0).view(2, 3))
    assert guarded.untouched()
    assert guarded.untouched_around()
    guarded.tensor[1, 2] = 0
    assert not guarded.untouched()
    assert guarded.untouched_around()
    guarded.buffer[-GUARD] = 0
    assert not guarded.untouched_around()
    with pytest.raises(AssertionError, match="non-finite"):
        error(torch.tensor([torch.nan, 1.0]), torch.tensor([torch.inf, 1.0]), "here")
    assert error(torch.tensor([torch.nan, 1.0]), torch.tensor([torch.nan, 3.0]), "here") == 2.0


def sampled(rows: int, vocab: int, greedy: bool = False) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Arguments of sample_token at the released model's precision, and what torch writes."""
    generator = torch.Generator().manual_seed(1)
    logits = (3 * torch.randn(rows, vocab, generator=generator)).bfloat16()
    settings = [torch.full((rows,), value) for value in (0.0 if greedy else 1.0, 0.95, 1.1)]
    before = [logits, settings[0], torch.zeros(rows, dtype=torch.int32), *settings[1:]]
    before += [torch.rand(rows, 4, generator=generator), torch.zeros(rows, vocab, dtype=torch.uint8)]
    before += [torch.zeros(rows, dtype=torch.int32) for _ in range(2)]
    args = [t.clone() for t in before]
    get_op("sample_token").implementations["torch"].run(*args)
    return before, dict(zip(("seen", "token", "step"), args[-3:], strict=True))


@pytest.mark.parametrize("greedy", [False, True])
def test_a_token_is_as_good_as_the_reference_s_where_float32_cannot_tell(greedy: bool) -> None:
    as_good = get_op("sample_token").as_good
    assert as_good is not None
    before, got = sampled(16, 20_000, greedy)
    assert as_good(before, got) is None
    for change in ("token", "seen", "step"):
        wrong = {name: t.clone() for name, t in got.items()}
        wrong[change].view(-1)[0] += 1 if change != "seen" else 1 - 2 * int(wrong["seen"].view(-1)[0])
        assert as_good(before, wrong) is not None, change
    other = int(before[0][0].argmin())  # a token that nobody draws, marked as it should be
    wrong = {name: t.clone() for name, t in got.items()}
    wrong["seen"][0] = 0
    wrong["token"][0], wrong["seen"][0, other] = other, 1
    assert as_good(before, wrong) == "1 of 16 tokens are not those of their numbers"
