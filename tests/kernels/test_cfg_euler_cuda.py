"""csrc/cuda/cfg_euler.cu: its own source run on the CPU with fibers for threads, and compiled for GPUs not here."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
FIBERS = Path(__file__).with_name("cuda_on_cpu")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


def build(source: Path, folder: Path) -> ctypes.CDLL:
    library = folder / f"{source.stem}.so"
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"]
    includes = [f"-I{FIBERS}", f"-I{ROOT / 'csrc'}"]
    done = subprocess.run(["g++", *flags, *includes, str(source), "-o", str(library)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


def address(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(FIBERS / "cfg_euler.cpp", tmp_path_factory.mktemp("fibers"))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_the_reference(
    kit: SimpleNamespace, kernel: ctypes.CDLL, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    case = kit.make_case(*shape, dtype=dtype)
    buffers = [kit.Guarded(tensor) for tensor in case.arguments()]
    assert kernel.cfg_euler(*(address(buffer.tensor) for buffer in buffers), *case.sizes()) == 0
    assert all(buffer.intact() for buffer in buffers)
    _, z, _, step, _ = (buffer.tensor for buffer in buffers)
    case.verify(z, step)


@needs_compiler
def test_arguments_are_checked_before_the_launch(kit: SimpleNamespace, kernel: ctypes.CDLL) -> None:
    case = kit.make_case(2, 1, 3, 3, 4, 2)
    before = case.z.clone()
    sizes = case.sizes()
    sizes[1] = 0
    assert kernel.cfg_euler(*map(address, case.arguments()), *sizes) != 0
    assert torch.equal(case.z, before)


@needs_compiler
def test_the_fibers_tell_right_kernels_from_wrong_ones(tmp_path: Path) -> None:
    block_sum = build(FIBERS / "selftest.cpp", tmp_path).block_sum_of
    x, total = torch.arange(1.0, 129.0), torch.zeros(1)
    assert block_sum(address(x), address(total), 128, 0, 0) == 0
    assert total.item() != x.sum().item(), "a missing barrier must show"
    assert block_sum(address(x), address(total), 128, 0, 1) == 0
    assert total.item() == x.sum().item()
    assert block_sum(address(x), address(total), 128, 1, 1) != 0, "a barrier that one thread skips must show"
    assert block_sum(address(x), address(total), 2048, 0, 1) != 0, "more threads than a block may have"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_nvcc_compiles_it_without_spills(tmp_path: Path) -> None:
    listed = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True).stdout
    targets = [arch for arch in (80, 90, 100) if f"compute_{arch}" in listed]
    assert targets[:2] == [80, 90]
    codes = [flag for arch in targets for flag in ("-gencode", f"arch=compute_{arch},code=sm_{arch}")]
    flags = ["-std=c++17", "-O3", "-Xptxas", "-v", "-Werror", "all-warnings"]
    source = ROOT / "csrc/cuda/cfg_euler.cu"
    done = subprocess.run(
        ["nvcc", *flags, *codes, f"-I{ROOT / 'csrc'}", "-c", str(source), "-o", str(tmp_path / "cfg_euler.o")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert len(spills) == 4 * len(targets)  # float32 and bfloat16, 2x2 and any patch
    assert set(spills) == {("0", "0")}
