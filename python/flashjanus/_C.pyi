"""Kernels on raw addresses (csrc/bindings). Call them through flashjanus.engine.runtime.native.

Arguments are the members of a kernel's struct in csrc/params.h: addresses and dtypes as integers.
"""

from collections.abc import Callable
from typing import Protocol, TypedDict

class BuildInfo(TypedDict):
    compiler: str
    cuda: str | None
    cuda_architectures: list[str]
    instruction_sets_built: list[str]
    instruction_sets: list[str]
    amx_built: bool
    amx: bool

class CpuKernel(Protocol):
    def __call__(self, *, isa: str = "", **members: float) -> None: ...

class BoundKernel(Protocol):
    def __call__(self, *, isa: str = "", **members: float) -> Callable[[int], None]: ...

class CudaKernel(Protocol):
    def __call__(self, *, stream: int, **members: float) -> None: ...

def build_info() -> BuildInfo: ...
def pressed(threads: int) -> bool: ...
def team_for(threads: int, count: int, nanoseconds: float) -> tuple[int, int, bool]: ...
def force_teams(press: int = -1, worth: float = -1.0) -> None: ...

flow_update: CpuKernel
gemv: CpuKernel
tiled_linear: CpuKernel
int4_linear: CpuKernel
tiled_attention: CpuKernel
rms_norm: CpuKernel
layer_norm: CpuKernel
silu_mul: CpuKernel
quantise_rows: CpuKernel
rope_kv_write: CpuKernel
decode_attention: CpuKernel
depthwise_norm: CpuKernel
gelu_grn_stats: CpuKernel
grn_apply: CpuKernel
residual_modulate: CpuKernel
step_cache: CpuKernel
group_norm_silu: CpuKernel
sample_token: CpuKernel
flow_update_bound: BoundKernel
tiled_linear_bound: BoundKernel
int4_linear_bound: BoundKernel
tiled_attention_bound: BoundKernel
gemv_bound: BoundKernel
rms_norm_bound: BoundKernel
layer_norm_bound: BoundKernel
silu_mul_bound: BoundKernel
quantise_rows_bound: BoundKernel
rope_kv_write_bound: BoundKernel
decode_attention_bound: BoundKernel
depthwise_norm_bound: BoundKernel
gelu_grn_stats_bound: BoundKernel
grn_apply_bound: BoundKernel
residual_modulate_bound: BoundKernel
step_cache_bound: BoundKernel
group_norm_silu_bound: BoundKernel
sample_token_bound: BoundKernel
flow_update_cuda: CudaKernel
gemv_cuda: CudaKernel
decode_attention_cuda: CudaKernel
depthwise_norm_cuda: CudaKernel
sample_token_cuda: CudaKernel
