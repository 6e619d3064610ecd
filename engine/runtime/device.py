"""Which device and dtype a model runs on: resolved once, with the reason in words."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from ..errors import DeviceError


def resolve_device(device: str | torch.device) -> tuple[torch.device, str]:
    """The device for "auto", "cpu" or a torch device, and why. Raises DeviceError where it cannot be used."""
    if str(device) == "auto":
        return torch.device("cpu"), "auto: the CPU, the only device that this version has a runtime for"
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(f"device '{device}': expected 'auto' or 'cpu', got something torch does not know") from error
    if resolved.type != "cpu":
        raise DeviceError(f"device '{device}': this version has no {resolved.type} runtime yet; use 'cpu' or 'auto'")
    return torch.device("cpu"), "asked for"


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
