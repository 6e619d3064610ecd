"""Every CUDA kernel compiled by nvcc for GPUs that are not here."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from fibers import KERNELS, PRODUCTION_SHARED, ROOT
from kernel_resources import SHARED_PER_BLOCK, Resources, parse

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
CHIPS = (80, 90, 100)
Compiled = dict[str, tuple[Resources, int]]
"""What a kernel takes, and its threads a block, by mangled name."""
Compiler = Callable[[Path], dict[int, Compiled]]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    """compiled(source): by chip that nvcc knows. One run of nvcc for all chips: they share what the host compiles."""
    listed = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    chips = [chip for chip in CHIPS if f"compute_{chip}" in listed]
    targets = [part for chip in chips for part in ("-gencode", f"arch=compute_{chip},code=sm_{chip}")]

    @cache
    def run(source: Path) -> dict[int, Compiled]:
        folder = tmp_path_factory.mktemp(source.stem)
        flags = ["-std=c++17", "-O3", "-Xptxas", "-v", "-Werror", "all-warnings", "--keep", "--keep-dir", str(folder)]
        done = subprocess.run(
            ["nvcc", *flags, *targets, f"-I{ROOT / 'csrc'}", "-c", str(source), "-o", str(folder / "kernel.o")],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        threads = {}
        for ptx in (path.read_text() for path in folder.glob("*.ptx")):
            target = re.search(r"\.target (sm_\w+)", ptx)
            assert target is not None
            for name, most in re.findall(r"\.entry (\w+)\([^)]*\)\s*\.maxntid (\d+)", ptx):
                threads[name, target[1]] = int(most)
        found: dict[int, Compiled] = {chip: {} for chip in chips}
        for (name, target), resources in parse(done.stderr).items():
            found[int(target.removeprefix("sm_"))][name] = resources, threads[name, target]
        return found

    return run


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.stem)
def test_nvcc_compiles_it_without_spills(
    source: Path, chip: int, compiled: Compiler, record_kernel: Callable[..., None]
) -> None:
    by_chip = compiled(source)
    if chip not in by_chip:
        pytest.skip(f"this nvcc does not know sm_{chip}")
    assert by_chip[chip]
    for name, (resources, threads) in by_chip[chip].items():
        assert (resources.spills, resources.stack) == (0, 0), name
        shown = demangled(name)
        asked = sum(size for start, size in PRODUCTION_SHARED.items() if shown.startswith(start))
        taken = replace(resources, shared=resources.shared + asked)
        assert taken.shared <= SHARED_PER_BLOCK[chip], name
        record_kernel(f"cuda {shown}", chip, taken, threads // 32)


def demangled(name: str) -> str:
    """A kernel's name and template arguments; the mangled name where c++filt is not installed."""
    if shutil.which("c++filt") is None:
        return name
    full = subprocess.run(["c++filt", name], capture_output=True, text=True).stdout
    full = re.sub(r"\(anonymous namespace\)::|flashjanus::(cuda::)?", "", full)
    full = full.replace("unsigned short", "bf16").replace("signed char", "int8")
    found = re.search(r"(\w+(?:<.*>)?)\(\w+\)$", full.strip())
    return found[1] if found else name
