"""Device and dtype are chosen once, with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flashjanus.engine.device import capabilities as module
from flashjanus.engine.device import native
from flashjanus.engine.device.capabilities import (
    cpu_flags,
    default_dtype,
    resolve_device,
    widening_bfloat16_is_slower,
)
from flashjanus.engine.errors import DeviceError

CPU = torch.device("cpu")


def test_auto_says_what_it_chose() -> None:
    resolved, why = resolve_device("auto")
    assert resolved == CPU
    assert why.startswith("auto: the CPU")


@pytest.mark.parametrize("asked", ["cpu", CPU])
def test_the_cpu_can_be_asked_for(asked: str | torch.device) -> None:
    assert resolve_device(asked) == (CPU, "asked for")


@pytest.mark.parametrize("asked", ["meta", torch.device("mps")])
def test_a_device_without_a_runtime_is_refused(asked: str | torch.device) -> None:
    kind = torch.device(asked).type
    with pytest.raises(DeviceError, match=f"device '{asked}': there is no {kind} runtime; use 'cpu', 'cuda' or"):
        resolve_device(asked)


@pytest.mark.parametrize("asked", ["gpu", "", "cpu cpu"])
def test_what_is_no_device_is_refused(asked: str) -> None:
    with pytest.raises(DeviceError, match="expected 'auto', 'cpu' or 'cuda'"):
        resolve_device(asked)


@pytest.mark.parametrize(
    ("flags", "absent", "dtype", "why"),
    [
        ({"avx2", "fma"}, None, torch.bfloat16, "auto: cpu whose kernels widen bfloat16 to float32"),
        ({"avx2", "fma"}, "no compiler", torch.float32, "auto: this CPU has no bfloat16 instructions"),
        ({"sse4_2"}, None, torch.float32, "auto: this CPU has no bfloat16 instructions"),
        ({"amx_bf16", "avx512_bf16"}, None, torch.bfloat16, "auto: cpu with amx_bf16, avx512_bf16"),
        ({"bf16"}, "no compiler", torch.bfloat16, "auto: cpu with bf16"),
    ],
)
def test_bfloat16_where_the_cpu_multiplies_it_as_fast_as_float32(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], absent: str | None, dtype: torch.dtype, why: str
) -> None:
    monkeypatch.setattr(module, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(module, "widening_bfloat16_is_slower", widening_bfloat16_is_slower.__wrapped__)
    monkeypatch.setattr(native, "available", lambda: absent)
    assert default_dtype(CPU) == (dtype, why)


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 amx_bf16\nbugs : none\n", {"fpu", "avx2", "amx_bf16"}),
        ("Features\t: fp asimd bf16\n", {"fp", "asimd", "bf16"}),
        ("model name : nothing else\n", set()),
        (None, set()),
    ],
)
def test_flags_are_read_where_the_system_lists_them(tmp_path: Path, text: str | None, flags: set[str]) -> None:
    file = tmp_path / "cpuinfo"
    if text is not None:
        file.write_text(text)
    assert cpu_flags(file) == flags
