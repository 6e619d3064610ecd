"""Every CUDA kernel's own source over its op's cases, run on the CPU with fibers for threads.

What this cannot see: races between blocks, alignment faults, the device's own rounding of exp and rsqrt, speed.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch
from flashjanus.engine.ops import Op, all_ops
from flashjanus.engine.runtime import native
from op_check import check, make_call, specs_of

ROOT = Path(__file__).resolve().parents[2]
FIBERS = Path(__file__).with_name("cuda_on_cpu")
CUDA = torch.device("cuda")
pybind11 = pytest.importorskip("pybind11")
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


@pytest.fixture(scope="module")
def fibers(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """flashjanus._C's CUDA half, compiled by g++."""
    library = tmp_path_factory.mktemp("fibers") / f"cuda_on_cpu{sysconfig.get_config_var('EXT_SUFFIX')}"
    sources = [FIBERS / "module.cpp", *(ROOT / "csrc/bindings" / name for name in ("cuda.cpp", "fields.cpp"))]
    sources += [*sorted((ROOT / "csrc/cuda").glob("*.cu")), ROOT / "csrc/cuda/errors.cpp"]
    includes = [FIBERS, ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include")]
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra"]
    flags += ["-Werror", "-Wno-unknown-pragmas"]
    command = ["g++", *flags, *(f"-I{path}" for path in includes), "-x", "c++", *map(str, sources), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location("cuda_on_cpu", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def on_fibers(fibers: ModuleType) -> Iterator[None]:
    """`cuda` implementations take CPU tensors and run on fibers."""

    def run_cuda(kernel: str, device: torch.device, **arguments: Any) -> None:
        members = {"threads": 1} | native.plain(kernel, torch.device("cpu"), arguments)
        getattr(fibers, f"{kernel}_cuda")(**members, stream=0)

    def cfg_euler_cuda(*tensors: torch.Tensor) -> None:
        fibers.cfg_euler_cuda(**native._cfg_euler_arguments("cfg_euler", *tensors), stream=0)

    with patch.object(native, "run_cuda", run_cuda), patch.object(native, "cfg_euler_cuda", cfg_euler_cuda):
        yield


CASES = [
    pytest.param(op, case, dtype, id=f"{op.name}-{i}-{str(dtype).removeprefix('torch.')}")
    for op in all_ops().values()
    if "cuda" in op.implementations
    for i, case in enumerate(op.cases)
    for dtype in (torch.float32, torch.bfloat16)
]


@pytest.mark.usefixtures("on_fibers")
@pytest.mark.parametrize(("op", "case", "dtype"), CASES)
def test_the_source_meets_the_reference(op: Op, case: Mapping[str, Any], dtype: torch.dtype) -> None:
    call = make_call(op, case, dtype, False)
    with patch.object(native, "cuda_available", lambda: None):
        reason = op.implementations["cuda"].refuses(CUDA, specs_of(call), call.attrs)
    if reason:
        pytest.skip(reason)
    check(op, call, ["cuda"])


def address(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def test_arguments_are_checked_before_the_launch(fibers: ModuleType) -> None:
    with pytest.raises(ValueError, match="cfg_euler_cuda: expected rows >= 1"):
        fibers.cfg_euler_cuda(
            **dict(v=64, z=64, guidance=64, step=64, steps=64, v_dtype=0, rows=0, unconditional=0),
            **dict(height=1, width=1, channels=4, patch=2, stream=0),
        )


def test_the_fibers_tell_right_kernels_from_wrong_ones(tmp_path: Path) -> None:
    library = tmp_path / "selftest.so"
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", f"-I{FIBERS}", f"-I{ROOT / 'csrc'}"]
    subprocess.run(["g++", *flags, str(FIBERS / "selftest.cpp"), "-o", str(library)], check=True)
    block_sum = ctypes.CDLL(str(library)).block_sum_of
    x, total = torch.arange(1.0, 129.0), torch.zeros(1)
    assert block_sum(address(x), address(total), 128, 0, 0) == 0
    assert total.item() != x.sum().item(), "a missing barrier must show"
    assert block_sum(address(x), address(total), 128, 0, 1) == 0
    assert total.item() == x.sum().item()
    assert block_sum(address(x), address(total), 128, 1, 1) != 0, "a barrier that one thread skips must show"
    assert block_sum(address(x), address(total), 2048, 0, 1) != 0, "more threads than a block may have"
