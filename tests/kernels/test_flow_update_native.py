"""csrc/cpu/flow_update.cpp beyond the op's cases: every instruction set's bits, long rows, rows that have ended."""

from __future__ import annotations

import random

import pytest
import torch
from flashjanus.engine.device import native
from flashjanus.engine.ops import get_op
from op_check import Call, check, make_call, run

pytestmark = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))
DTYPES = [torch.float32, torch.bfloat16]
VARIANTS = [f"native {isa}" for isa in native.instruction_sets()] if native.available() is None else []
OP = get_op("flow_update")


def call(seed: int = 0, dtype: torch.dtype = torch.float32, **case: int) -> Call:
    return make_call(OP, case, dtype, False, seed)


@pytest.mark.parametrize("seed", range(20))
def test_variants_agree_bit_for_bit_on_random_sizes(seed: int) -> None:
    draw = random.Random(seed)
    images = draw.randint(1, 5)
    sizes = dict(images=images, guided=draw.randint(0, images), h=draw.randint(1, 13), w=draw.randint(1, 40))
    made = call(seed, draw.choice(DTYPES), **sizes, c=draw.randint(1, 4), p=draw.randint(1, 3))
    check(OP, made, VARIANTS)
    first, *others = (run(OP, variant, made) for variant in VARIANTS)
    for other in others:
        assert all(torch.equal(first[name].view(torch.uint8), other[name].view(torch.uint8)) for name in first)


def test_a_token_row_longer_than_the_buffer() -> None:
    check(OP, call(images=3, guided=1, h=2, w=700, c=4, p=2), VARIANTS)


def test_a_row_that_has_ended_keeps_its_bits() -> None:
    made = call(images=4, guided=4, h=3, w=5, c=4, p=2)
    v, z, history, kept, _, step, steps = made.args
    step[1:3], steps[1:3] = 9, 3
    v[[1, 2, 5, 6]] = torch.nan
    written = run(OP, "native", made)
    for name, before in (("z", z), ("history", history), ("kept", kept), ("step", step)):
        assert torch.equal(written[name][1:3], before[1:3])
    assert written["step"][0] == step[0] + 1


def test_guidance_one_is_the_conditional_branch() -> None:
    made = call(images=1, guided=1, h=4, w=4, c=4, p=2)
    v, *_, schedule, _, _ = made.args
    schedule[..., 5] = 1.0
    alone = run(OP, "native", Call((v[:1].contiguous(), *made.args[1:])))
    v[1] = torch.nan
    assert torch.equal(run(OP, "native", made)["z"], alone["z"])


def test_a_step_beyond_the_schedule_reads_its_last_line() -> None:
    made = call(images=1, guided=1, h=2, w=2, c=4, p=2)
    *_, schedule, step, steps = made.args
    step[0], steps[0] = 50, 60
    beyond = run(OP, "native", made)
    step[0] = schedule.shape[1] - 1
    assert torch.equal(beyond["z"], run(OP, "native", made)["z"])
