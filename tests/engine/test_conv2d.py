"""conv2d by cuDNN, called as on a GPU, where a stand-in takes the arguments and writes where cuDNN would; and bfloat16
widened to float32 on a CPU, strip by strip."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flashjanus.engine.ops import Call, conv2d, get_op
from op_check import check, make_call, specs_of

CONV = get_op("conv2d")
CUDNN = CONV.implementations["cudnn"]
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What cuDNN was given to write into."""
    found: list[torch.Tensor] = []

    def cudnn(
        x: Any, weight: Any, padding: Any, stride: Any, dilation: Any, groups: int, *flags: bool, out: Any
    ) -> Any:
        assert flags == (False, False, False), "no search, in any order, and no TF32"
        assert x.stride(1) == weight.stride(1) == out.stride(1) == 1, "channels last, as they lie in memory"
        found.append(out)
        return out.copy_(torch.conv2d(x, weight, None, stride, padding, dilation, groups))

    monkeypatch.setattr(torch.ops.aten.cudnn_convolution, "out", cudnn)
    return found


@pytest.mark.parametrize("case", CONV.cases)
def test_cudnn_writes_into_the_output_itself(case: dict[str, Any], written: list[torch.Tensor]) -> None:
    call = make_call(CONV, case, torch.float32, False)
    check(CONV, call, ["cudnn"])
    (spec,) = CONV.schema.infer("conv2d", specs_of(call), call.attrs)
    y = torch.empty(spec.shape)
    CUDNN.run(*call.args, y, **call.attrs)
    assert written[-1].data_ptr() == y.data_ptr()


def test_it_serves_where_there_is_a_gpu_with_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CUDNN.refuses(CPU) == "runs on a CUDA device, not on cpu"
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: False)
    assert CUDNN.refuses(CUDA) == "this torch has no cuDNN"
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    call = make_call(CONV, CONV.cases[0], torch.float32, False)
    assert CONV.choose(CUDA, specs_of(call), call.attrs)[0] is CUDNN


def chosen(dtype: torch.dtype, slower: str | None, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, str]]:
    monkeypatch.setattr(conv2d, "widening_bfloat16_is_slower", lambda: slower)
    call = make_call(CONV, CONV.cases[0], dtype, False)
    implementation, refused = CONV.choose(CPU, specs_of(call), call.attrs)
    return implementation.name, refused


def test_bfloat16_is_widened_where_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(torch.bfloat16, None, monkeypatch)[0] == "widened"
    name, refused = chosen(torch.bfloat16, "not here", monkeypatch)
    assert (name, refused["widened"]) == ("torch", "not here")
    name, refused = chosen(torch.float32, None, monkeypatch)
    assert (name, refused["widened"]) == ("torch", "widens bfloat16, not torch.float32")
    assert CONV.implementations["widened"].refuses(CUDA) == "runs on the CPU, not on cuda"


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (1, 1, 0), (2, 2, 0), (3, 2, 1), (5, 1, 2), (3, 1, 2)]
)
def test_strips_meet_the_reference(
    rows: int, kernel: int, stride: int, padding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strips of `rows` rows of y, of which the first and the last reach into the padding; the last is a shorter one."""
    case = dict(size=12, cin=6, cout=5, kernel=kernel, stride=stride, padding=padding, bias=True)
    call: Call = make_call(CONV, case, torch.bfloat16, False)
    monkeypatch.setattr(conv2d, "STRIP_BYTES", 4 * 13 * 6 * stride * rows)
    check(CONV, call, ["widened"])
