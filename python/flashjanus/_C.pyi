"""Kernels on raw addresses (csrc/bindings). Call them through flashjanus.engine.device.native.

kernel(*, isa="", ...) runs a CPU kernel, on the members of its struct in csrc/cpu: addresses and dtypes as integers.
kernel_bound(*, isa="", ...) gives the same with these arguments ready, as a function of the number of threads.
kernel_cuda(*, stream, ...) runs a CUDA kernel.
"""

from collections.abc import Callable
from typing import Any, TypedDict

class BuildInfo(TypedDict):
    compiler: str
    cuda: str | None
    cuda_architectures: list[str]
    instruction_sets_built: list[str]
    instruction_sets: list[str]
    amx_built: bool
    amx: bool

members: dict[str, list[str]]
"""The members of each kernel's struct, by the kernel's name."""

def build_info() -> BuildInfo: ...
def pressed(threads: int) -> bool: ...
def team_for(threads: int, count: int, nanoseconds: float) -> tuple[int, int, bool]: ...
def force_teams(press: int = -1, worth: float = -1.0) -> None: ...
def __getattr__(kernel: str) -> Callable[..., Any]: ...
