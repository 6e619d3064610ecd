"""Every implementation that serves on a GPU, torch's too, over its op's cases on a real one, where there is one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from flashjanus.engine.ops import Op, all_ops
from flashjanus.engine.runtime.isolation import EXACT_GPU_CONVOLUTIONS
from op_check import check, make_call, specs_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CUDA = torch.device("cuda")
CASES = [
    pytest.param(op, name, case, dtype, id=f"{op.name}-{name}-{i}-{str(dtype).removeprefix('torch.')}")
    for op in all_ops().values()
    for name in op.implementations
    if name not in ("native", "amx")
    for i, case in enumerate(op.cases)
    for dtype in op.dtypes
]


@pytest.fixture(autouse=True)
def float32_is_float32() -> Iterator[None]:
    """As the runtime has it: cuDNN's own default leaves ten bits of a float32 product."""
    with EXACT_GPU_CONVOLUTIONS:
        yield


@pytest.mark.parametrize(("op", "implementation", "case", "dtype"), CASES)
def test_meets_the_reference(op: Op, implementation: str, case: Mapping[str, Any], dtype: torch.dtype) -> None:
    call = make_call(op, case, dtype, False)
    reason = op.implementations[implementation].refuses(CUDA, specs_of(call), call.attrs)
    if reason:
        pytest.skip(reason)
    check(op, call, [implementation], CUDA)
