"""Low-rank updates as the model's plans call them: of a residual stream in float32, by factors in bfloat16."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from flashjanus.engine.device import native
from flashjanus.engine.ops import Call, get_op
from flashjanus.engine.ops.low_rank import MAX_RANK
from op_check import check, make_call, run, serving

pytestmark = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))
OP = get_op("low_rank")
ISAS = [] if native.available() is not None else [f"native {isa}" for isa in native.instruction_sets()]
STREAM = [
    dict(adapters=[1, 0, 2], n=10, k=96, outputs=[80], rank=16),
    dict(adapters=[2, 2], n=1, k=704, outputs=[256], rank=8, gated=True),
    dict(adapters=[0, 1], n=5, k=40, outputs=[33], rank=5, apart=7),
]


def of_stream(case: dict[str, Any]) -> Call:
    call = make_call(OP, case, torch.bfloat16, False)
    y = call.args[-1]
    assert y is not None
    wide = torch.empty_strided(y.shape, y.stride(), dtype=torch.float32).copy_(y)
    return replace(call, args=(*call.args[:-1], wide))


@pytest.mark.parametrize("case", STREAM)
def test_a_stream_in_float32(case: dict[str, Any]) -> None:
    assert check(OP, of_stream(case), ISAS)


@pytest.mark.parametrize("implementation", ["torch", *ISAS])
@pytest.mark.parametrize("case", [*STREAM, dict(adapters=[0, -3, 4, 2], n=9, k=64, outputs=[48, 16, 16], norm=True)])
def test_rows_without_an_adapter_keep_their_bits(case: dict[str, Any], implementation: str) -> None:
    call = of_stream(case)
    before, adapter = call.args[-1], call.args[2]
    assert before is not None
    assert adapter is not None
    before[0, 0, 0], before[-1, -1, -1] = -0.0, torch.inf
    written = run(OP, implementation, call)["y"]
    for row, number in enumerate(adapter.tolist()):
        same = torch.equal(written[row].view(torch.int32), before[row].contiguous().view(torch.int32))
        assert same == (not 1 <= number <= 3)


@pytest.mark.parametrize("case", STREAM)
def test_a_rows_bits_do_not_depend_on_the_others(case: dict[str, Any]) -> None:
    call = of_stream(case)
    x, norm, adapter, *rest, y = call.args
    assert x is not None
    assert adapter is not None
    assert y is not None
    together = run(OP, "native", call)["y"]
    for row in range(len(adapter)):
        one = slice(row, row + 1)
        own = y[one].contiguous()
        alone = run(OP, "native", replace(call, args=(x[one].contiguous(), norm, adapter[one], *rest, own)))["y"]
        assert torch.equal(alone[0], together[row])


def test_a_rank_beyond_the_kernels_room_is_served_by_torch() -> None:
    call = make_call(OP, dict(adapters=[1], n=2, k=16, outputs=[8], rank=MAX_RANK + 1), torch.float32, False)
    assert serving(OP, call) == ["torch"]
    assert check(OP, call, ["torch"])
