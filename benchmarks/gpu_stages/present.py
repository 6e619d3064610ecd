"""The first GPU of this machine, asked of NVIDIA's driver itself, because a build for it comes before torch can be
imported."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

CAPABILITY = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h
OLDEST = (8, 0)


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: tuple[int, int]

    @property
    def architecture(self) -> str:
        """For CMAKE_CUDA_ARCHITECTURES: this chip's machine code and nothing else."""
        return f"{self.capability[0]}{self.capability[1]}-real"


def gpu(library: str = "libcuda.so.1") -> Gpu | str:
    """The GPU, or why there is none to use. CUDA_VISIBLE_DEVICES determines which is the first."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return f"no NVIDIA driver is installed ({library} is not found)"
    code = cuda.cuInit(0)
    if code:
        return f"the NVIDIA driver has no device to offer (cuInit gave {code})"
    device, name, found = ctypes.c_int(), ctypes.create_string_buffer(256), (ctypes.c_int(), ctypes.c_int())
    code = cuda.cuDeviceGet(ctypes.byref(device), 0) or cuda.cuDeviceGetName(name, len(name), device)
    for attribute, value in zip(CAPABILITY, found, strict=True):
        code = code or cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    if code:
        return f"the NVIDIA driver could not describe device 0 (error {code})"
    capability = (found[0].value, found[1].value)
    if capability < OLDEST:
        return f"{name.value.decode()} is of compute capability {capability[0]}.{capability[1]}; needs 8.0 or later"
    return Gpu(name.value.decode(), capability)
