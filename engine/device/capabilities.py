"""What a device can do, and which device and dtype a model runs on: resolved once, with the reason in words."""

from __future__ import annotations

from functools import cache

import torch

from ..errors import DeviceError
from . import native
from .cpu import cpu_flags, cpu_vendor

MIN_CAPABILITY = (8, 0)
"""The lowest compute capability that the kernels run on: bfloat16 on tensor cores and asynchronous copies."""
E4M3_CAPABILITY = (8, 9)
"""The lowest compute capability whose tensor cores multiply float8_e4m3fn."""


def resolve_device(device: str | torch.device) -> tuple[torch.device, str]:
    """The device for "auto", "cpu", "cuda" or a torch device, and the reason. Raises DeviceError if it is unusable."""
    if str(device) == "auto":
        return torch.device("cpu"), "auto: the CPU; ask for 'cuda' to use a GPU"
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(
            f"device '{device}': expected 'auto', 'cpu' or 'cuda', got a name that torch does not know"
        ) from error
    if resolved.type == "cpu":
        return torch.device("cpu"), "asked for"
    if resolved.type != "cuda":
        raise DeviceError(f"device '{device}': there is no {resolved.type} runtime; use 'cpu', 'cuda' or 'auto'")
    reason = unusable(resolved)
    if reason is not None:
        raise DeviceError(f"device '{device}': {reason}; device='cpu' works everywhere")
    return torch.device("cuda", resolved.index or 0), "asked for"


def default_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The default dtype and the reason: bfloat16 where the device multiplies it as fast as float32, else float32."""
    flags = sorted(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})
    if device.type != "cpu" or flags:
        return torch.bfloat16, f"auto: {device.type} with {', '.join(flags) or 'bfloat16'}"
    if native.available() is None and widening_bfloat16_is_slower() is None:
        return torch.bfloat16, "auto: cpu whose kernels widen bfloat16 to float32"
    return torch.float32, "auto: this CPU has no bfloat16 instructions"


@cache
def widening_bfloat16_is_slower() -> str | None:
    """Why this CPU does not multiply bfloat16 faster if it is widened to float32 first, or None.

    Intel's AVX-512 multiplies pairs of bfloat16 at half the rate of float32 (measured on Emerald Rapids), and with AVX2
    alone torch multiplies bfloat16 at a sixth of that rate (measured there, with libraries kept to AVX2). AMD's AVX-512
    is taken to be faster at pairs, which was not measured.
    """
    flags = cpu_flags()
    if not {"avx2", "fma"} <= flags:
        return "widens bfloat16 to float32, which pays on CPUs with AVX2 and FMA"
    if "amx_bf16" in flags:
        return "widens bfloat16 to float32; torch multiplies it by AMX"
    if "avx512_bf16" in flags and cpu_vendor() != "GenuineIntel":
        return "widens bfloat16 to float32; torch multiplies it by instructions for pairs"
    return None


def unusable(device: torch.device) -> str | None:
    """Why a CUDA device cannot run the engine, or None."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA; install a CUDA build of torch"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except RuntimeError as error:  # no driver, one too old for torch, or no device
        return f"torch cannot use CUDA {torch.version.cuda} here: {error}"
    count, index = torch.cuda.device_count(), device.index or 0
    if index >= count:
        return f"expected one of {count} CUDA devices, cuda:0 to cuda:{count - 1}" if count else "no CUDA device here"
    found = torch.cuda.get_device_capability(index)
    if found < MIN_CAPABILITY:
        need, got = (".".join(map(str, version)) for version in (MIN_CAPABILITY, found))
        name = torch.cuda.get_device_name(index)
        return f"expected compute capability {need} or later (Ampere), got {got}: {name}"
    return None


def no_e4m3(device: torch.device) -> str | None:
    """Why `device` does not multiply float8_e4m3fn, or None. A GPU that torch cannot query is assumed to do so."""
    need = ".".join(map(str, E4M3_CAPABILITY))
    if device.type != "cuda":
        return f"fp8 needs a GPU of compute capability {need} or later (Ada, Hopper), got the {device.type.upper()}"
    found = torch.cuda.get_device_capability(device) if torch.cuda.is_available() else E4M3_CAPABILITY
    if found < E4M3_CAPABILITY:
        got, name = ".".join(map(str, found)), torch.cuda.get_device_name(device)
        return f"fp8 needs a GPU of compute capability {need} or later (Ada, Hopper), got {got}: {name}"
    return None
