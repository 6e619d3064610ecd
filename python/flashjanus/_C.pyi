"""Kernels on raw addresses (csrc/bindings). Call them through flashjanus.engine.runtime.native."""

from typing import TypedDict

class BuildInfo(TypedDict):
    compiler: str
    cuda: str | None
    cuda_architectures: list[str]
    instruction_sets_built: list[str]
    instruction_sets: list[str]

def build_info() -> BuildInfo: ...
def cfg_euler(
    *,
    v: int,
    z: int,
    guidance: int,
    step: int,
    steps: int,
    v_dtype: int,
    rows: int,
    unconditional: int,
    height: int,
    width: int,
    channels: int,
    patch: int,
    isa: str = "",
) -> None: ...
def cfg_euler_cuda(
    *,
    v: int,
    z: int,
    guidance: int,
    step: int,
    steps: int,
    v_dtype: int,
    rows: int,
    unconditional: int,
    height: int,
    width: int,
    channels: int,
    patch: int,
    stream: int,
) -> None: ...
