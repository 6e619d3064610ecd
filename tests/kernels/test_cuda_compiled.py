"""Every CUDA kernel compiled by nvcc for GPUs that are not here."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fibers import KERNELS, PRODUCTION_SHARED, ROOT
from kernel_resources import SHARED_PER_BLOCK, parse

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


@pytest.mark.parametrize("chip", [80, 90, 100])
@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.stem)
def test_nvcc_compiles_it_without_spills(
    source: Path, chip: int, tmp_path: Path, record_kernel: Callable[..., None]
) -> None:
    listed = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True).stdout
    if f"compute_{chip}" not in listed:
        pytest.skip(f"this nvcc does not know sm_{chip}")
    target = ["-gencode", f"arch=compute_{chip},code=sm_{chip}"]
    flags = ["-std=c++17", "-O3", "-Xptxas", "-v", "-Werror", "all-warnings", "--keep", "--keep-dir", str(tmp_path)]
    done = subprocess.run(
        ["nvcc", *flags, *target, f"-I{ROOT / 'csrc'}", "-c", str(source), "-o", str(tmp_path / "kernel.o")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (ptx,) = (path.read_text() for path in tmp_path.glob("*.ptx"))
    threads = {name: int(most) for name, most in re.findall(r"\.entry (\w+)\([^)]*\)\s*\.maxntid (\d+)", ptx)}
    kernels = parse(done.stderr)
    assert kernels
    for name, resources in kernels.items():
        assert (resources.spills, resources.stack) == (0, 0), name
        shown = demangled(name)
        asked = sum(size for start, size in PRODUCTION_SHARED.items() if shown.startswith(start))
        taken = replace(resources, shared=resources.shared + asked)
        assert taken.shared <= SHARED_PER_BLOCK[chip], name
        record_kernel(f"cuda {shown}", chip, taken, threads[name] // 32)


def demangled(name: str) -> str:
    """A kernel's name and template arguments; the mangled name where c++filt is not installed."""
    if shutil.which("c++filt") is None:
        return name
    full = subprocess.run(["c++filt", name], capture_output=True, text=True).stdout
    full = re.sub(r"\(anonymous namespace\)::|flashjanus::(cuda::)?", "", full)
    full = full.replace("unsigned short", "bf16").replace("signed char", "int8")
    found = re.search(r"(\w+(?:<.*>)?)\(\w+\)$", full.strip())
    return found[1] if found else name
