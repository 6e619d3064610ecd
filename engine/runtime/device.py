"""Which device and dtype a model runs on: resolved once, with the reason in words."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from ..errors import DeviceError
from .cuda import unusable


def resolve_device(device: str | torch.device) -> tuple[torch.device, str]:
    """The device for "auto", "cpu", "cuda" or a torch device, and why. Raises DeviceError where it cannot be used."""
    if str(device) == "auto":
        return torch.device("cpu"), "auto: the CPU; a GPU is used where it is asked for, 'cuda'"
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(
            f"device '{device}': expected 'auto', 'cpu' or 'cuda', got something torch does not know"
        ) from error
    if resolved.type == "cpu":
        return torch.device("cpu"), "asked for"
    if resolved.type != "cuda":
        raise DeviceError(f"device '{device}': there is no {resolved.type} runtime; use 'cpu', 'cuda' or 'auto'")
    reason = unusable(resolved)
    if reason is not None:
        raise DeviceError(f"device '{device}': {reason}; 'cpu' runs everywhere")
    return torch.device("cuda", resolved.index or 0), "asked for"


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction-set flags of this machine, empty where the system does not list them."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.partition(":")[2].split())
    return frozenset()


def default_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """bfloat16 where the device multiplies it in hardware, else float32; and why."""
    flags = sorted(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})
    if device.type == "cpu" and not flags:
        return torch.float32, "auto: this CPU has no bfloat16 instructions"
    return torch.bfloat16, f"auto: {device.type} with {', '.join(flags) or 'bfloat16'}"
