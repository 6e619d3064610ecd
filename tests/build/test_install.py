"""Wheels and installs, with and without a compiler, used away from the sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from flashjanus.builtin import FILES

Run = Callable[..., subprocess.CompletedProcess[str]]
FLOW_UPDATE = """
import sys, torch, flashjanus
from flashjanus.engine.ops import get_op
from flashjanus.engine.device import native
assert native.available() is None, native.available()
v, z = torch.ones(2, 1, 1, 16), torch.zeros(1, 4, 2, 2)
step = torch.zeros(1, dtype=torch.int32)
schedule = torch.tensor([[[1.0, 0.25, 0, 0, 0, 2.0, 0, 0, 0]]])  # one Euler step of 4, guidance 2
rows = (schedule, step, torch.full((1,), 4, dtype=torch.int32))
get_op("flow_update").implementations["native"].run(v, z, torch.zeros_like(z), torch.zeros(1, 1, 1, 16), *rows)
assert z.eq(0.25).all() and step.item() == 1
assert native.build_info()["cuda"] is None and "FLASHJANUS_CUDA=on" in native.cuda_available()
import flashjanus._C
try:
    flashjanus._C.flow_update_cuda(v=0)
except RuntimeError as error:
    print(error)
print(flashjanus.__file__)
from flashjanus.builtin import builtin_folder
print(builtin_folder())
"""


def away(target: Path) -> dict[str, str]:
    """A PYTHONPATH for `python -S`: the target, then this environment's libraries without its editable installs."""
    return {"PYTHONPATH": os.pathsep.join([str(target), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])}


def install(wheel: Path, target: Path, python: Run) -> None:
    done = python("-m", "pip", "install", "--no-deps", "--target", target, wheel, cwd=target.parent)
    assert done.returncode == 0, done.stderr


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"flashjanus"}
    inside = {name.removeprefix("flashjanus/") for name in names}
    assert {"py.typed", "_C.pyi", "engine/device/native.py", "triton_kernels/flow_update.py"} <= inside
    assert sum(name.startswith("_C.") and name.endswith(".so") for name in inside) == 1
    assert {f"builtin/shapes/{file}" for file in FILES} <= inside
    assert "stale.py" not in inside


def test_what_is_compiled_per_instruction_set_defines_its_kernel_alone(wheel: Path) -> None:
    """The linker keeps one copy of a function that several files define, and it may be one for another machine."""
    if not shutil.which("nm"):
        pytest.skip("nm is not installed")
    objects = sorted((wheel.parent / "sources/build").glob("temp*/**/cpu_*.dir/**/*.o"))
    assert objects
    for path in objects:
        (isa,) = (part.removeprefix("cpu_").removesuffix(".dir") for part in path.parts if part.startswith("cpu_"))
        listed = subprocess.run(
            ["nm", "-C", "-P", "--defined-only", "--extern-only", path], capture_output=True, text=True
        )
        names = [line.partition("(")[0] for line in listed.stdout.splitlines() if not line.startswith("DW.ref.")]
        assert names == [f"flashjanus::cpu::{isa}::{path.name.partition('.')[0]}"], path


def test_the_wheel_runs_away_from_the_sources(wheel: Path, tmp_path: Path, python: Run) -> None:
    target = tmp_path / "site"
    install(wheel, target, python)
    done = python("-S", "-c", FLOW_UPDATE, cwd=tmp_path, **away(target))
    assert done.returncode == 0, done.stderr
    error, where, model = done.stdout.splitlines()
    assert "flow_update_cuda: this build has no CUDA kernels" in error
    assert where == str(target / "flashjanus/__init__.py")
    assert model == str(target / "flashjanus/builtin/shapes")


def test_without_a_compiler_it_installs_and_says_so_once(sources: Path, tmp_path: Path, python: Run) -> None:
    target = tmp_path / "site"
    stale = sources / "python/flashjanus/_C.old.so"
    stale.touch()
    options = ["--no-deps", "--no-build-isolation", "--target", target]
    done = python("-m", "pip", "install", "-v", *options, sources, cwd=tmp_path, PATH=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count("(flashjanus._C) are NOT built: missing a C++ compiler") == 1
    assert not stale.exists()
    assert not list((target / "flashjanus").glob("_C.*.so"))
    check = "from flashjanus.engine.device import native; print(native.available())"
    done = python("-S", "-c", check, cwd=tmp_path, **away(target))
    assert "flashjanus._C is not built: the installation found no C++ compiler" in done.stdout, done.stderr


def test_an_editable_install_finds_the_three_source_roots(sources: Path, tmp_path: Path, python: Run) -> None:
    build = f"from setuptools import build_meta; print(build_meta.build_editable({str(tmp_path)!r}))"
    done = python("-c", build, cwd=sources, PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    zipfile.ZipFile(tmp_path / done.stdout.split()[-1]).extractall(site)
    names = ["flashjanus", "flashjanus.errors", "flashjanus.engine.errors", "flashjanus.triton_kernels"]
    check = f"import site; site.addsitedir({str(site)!r}); from importlib.util import find_spec\n"
    check += f"print(*(find_spec(name).origin for name in {names}), sep='\\n')"
    # -I -S: nothing of the environment's own site-packages, where flashjanus may be installed
    done = python("-I", "-S", "-c", check, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = ["python/flashjanus/__init__.py", "python/flashjanus/errors.py", "engine/errors.py"]
    assert done.stdout.split() == [str(sources / file) for file in [*files, "triton_kernels/__init__.py"]]


def test_cuda_on_without_nvcc_fails_and_says_what_to_do(sources: Path, tmp_path: Path, python: Run) -> None:
    options = ["--no-deps", "--no-build-isolation", "-w", tmp_path]
    path = {"PATH": str(tmp_path), "FLASHJANUS_CUDA": "on"}
    done = python("-m", "pip", "wheel", *options, sources, cwd=tmp_path, **path)
    assert done.returncode != 0
    assert "FLASHJANUS_CUDA=on, but nvcc was not found (looked for nvcc)" in done.stdout + done.stderr
    assert not list(tmp_path.glob("*.whl"))


def test_a_compiler_that_fails_is_an_error(sources: Path, tmp_path: Path, python: Run) -> None:
    if not shutil.which("cmake") or not shutil.which("ninja"):
        pytest.skip("cmake or ninja is not installed")
    options = {"FLASHJANUS_CUDA": "off", "CMAKE_ARGS": "-DCMAKE_CXX_COMPILER=/no/such/compiler"}
    done = python("setup.py", "build_ext", "--build-temp", tmp_path, cwd=sources, **options)
    assert done.returncode != 0
    assert "the native build failed at: cmake" in done.stderr
    assert "/no/such/compiler" in done.stderr


def test_a_source_archive_can_build_the_native_module(sources: Path, tmp_path: Path, python: Run) -> None:
    build = f"from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    done = python("-c", build, cwd=sources)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / done.stdout.split()[-1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("csrc", "engine", "triton_kernels"):
        files = [path for path in (sources / folder).rglob("*") if path.is_file()]
        assert {str(path.relative_to(sources)) for path in files} <= names
    assert {"CMakeLists.txt", "setup.py", "python/flashjanus/py.typed"} <= names
    assert {f"python/flashjanus/builtin/shapes/{file}" for file in FILES} <= names


def test_the_installed_module_needs_no_cuda_library() -> None:
    module = pytest.importorskip("flashjanus._C")
    if not shutil.which("ldd"):
        pytest.skip("ldd is not installed")
    needed = subprocess.run(["ldd", module.__file__], capture_output=True, text=True).stdout
    assert "libc.so" in needed
    assert "cuda" not in needed
