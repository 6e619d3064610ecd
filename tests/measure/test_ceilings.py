"""The ceilings of a roofline: measured on this machine, and how they bound a time."""

from __future__ import annotations

import pytest
import torch
from flashjanus.measure import ceilings

F32 = torch.float32


def test_ceilings_are_plausible_and_divide_work_into_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "SECONDS", 0.02)
    found = ceilings.measure("cpu", [torch.float32, torch.bfloat16, torch.float32])
    assert found.rates.keys() == {torch.float32, torch.bfloat16}
    assert 1e8 < found.bandwidth < 1e13
    assert all(1e8 < rate < 1e15 for rate in found.rates.values())
    for dtype in (torch.int8, torch.float8_e4m3fn):
        assert 1e8 < ceilings.gemm_rate("cpu", dtype) < 1e15


def test_the_roofline_takes_the_tighter_of_two_bounds() -> None:
    roof = ceilings.Ceilings(bandwidth=10.0, rates={F32: 100.0})
    assert roof.seconds(flops=200, nbytes=10, dtype=F32) == 2.0
    assert roof.seconds(flops=200, nbytes=50, dtype=F32) == 5.0
