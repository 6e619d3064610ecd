"""The CUDA and Triton kernels on a real GPU, where there is one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from flashjanus import triton_kernels
from flashjanus.engine.runtime import native

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
UNAVAILABLE = {"cuda": native.cuda_available(), "triton": triton_kernels.unavailable()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", UNAVAILABLE)
def test_equals_the_reference(kit: SimpleNamespace, shape: tuple[int, ...], kernel: str, dtype: torch.dtype) -> None:
    if UNAVAILABLE[kernel]:
        pytest.skip(str(UNAVAILABLE[kernel]))
    if kernel == "triton":
        from flashjanus.triton_kernels.cfg_euler import launch as run
    else:
        run = native.cfg_euler_cuda
    case = kit.make_case(*shape, dtype=dtype)
    buffers = [kit.Guarded(tensor, device="cuda") for tensor in case.arguments()]
    run(*(buffer.tensor for buffer in buffers))
    assert all(buffer.intact() for buffer in buffers)
    _, z, _, step, _ = (buffer.tensor.cpu() for buffer in buffers)
    case.verify(z, step)
