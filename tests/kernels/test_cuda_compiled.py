"""Every CUDA kernel compiled by nvcc for GPUs that are not here."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from kernel_resources import SHARED_PER_BLOCK, parse

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))
pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


@pytest.mark.parametrize("chip", [80, 90, 100])
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_nvcc_compiles_it_without_spills(
    source: Path, chip: int, tmp_path: Path, record_kernel: Callable[..., None]
) -> None:
    listed = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True).stdout
    if f"compute_{chip}" not in listed:
        pytest.skip(f"this nvcc does not know sm_{chip}")
    target = ["-gencode", f"arch=compute_{chip},code=sm_{chip}"]
    flags = ["-std=c++17", "-O3", "-Xptxas", "-v", "-Werror", "all-warnings"]
    done = subprocess.run(
        ["nvcc", *flags, *target, f"-I{ROOT / 'csrc'}", "-c", str(source), "-o", str(tmp_path / "kernel.o")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    kernels = parse(done.stderr)
    assert kernels
    for name, resources in kernels.items():
        assert (resources.spills, resources.stack) == (0, 0), name
        assert resources.shared <= SHARED_PER_BLOCK[chip], name
        record_kernel(f"cuda {demangled(name)}", chip, resources)


def demangled(name: str) -> str:
    """A kernel's name and template arguments; the mangled name where c++filt is not installed."""
    if shutil.which("c++filt") is None:
        return name
    full = subprocess.run(["c++filt", name], capture_output=True, text=True).stdout
    found = re.search(r"(\w+(?:<.*?>)?)\(", full.replace("(anonymous namespace)::", ""))
    return found[1] if found else name
