"""Builds the package from its three source roots, and flashjanus._C with CMake and ninja where a C++ compiler is found.

Environment: CMAKE_ARGS (passed on), CXX, CUDACXX, CMAKE_BUILD_PARALLEL_LEVEL and
FLASHJANUS_CUDA=auto|on|off (auto builds the CUDA kernels where nvcc is found; on fails where it is not).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SOURCE_ROOTS = {
    "flashjanus": "python/flashjanus",
    "flashjanus.engine": "engine",
    "flashjanus.triton_kernels": "triton_kernels",
}


def version() -> str:
    """The version, read and not imported: importing the package needs torch, and building it does not."""
    text = (ROOT / "python/flashjanus/__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise SystemExit('flashjanus: expected a line `__version__ = "..."` in python/flashjanus/__init__.py')
    return found[1]


def packages() -> list[str]:
    return [
        name
        for root, path in SOURCE_ROOTS.items()
        for name in [root, *(f"{root}.{package}" for package in find_packages(str(ROOT / path)))]
    ]


def cmake_args() -> list[str]:
    return shlex.split(os.environ.get("CMAKE_ARGS", ""))


def _defined(variable: str) -> bool:
    return any(re.match(rf"-D\s*{variable}[:=]", argument) for argument in cmake_args())


def missing_tools() -> list[str]:
    """What the native module needs and this machine lacks, in words."""
    compilers = [shlex.split(os.environ["CXX"])[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    checks = {
        f"a C++ compiler ({', '.join(compilers)})": _defined("CMAKE_CXX_COMPILER") or any(map(shutil.which, compilers)),
        "cmake": shutil.which("cmake"),
        "ninja": shutil.which("ninja"),
        "pybind11": find_spec("pybind11"),
        "Python headers (python3-dev)": Path(sysconfig.get_path("include"), "Python.h").is_file(),
    }
    return [name for name, found in checks.items() if not found]


def cuda_options() -> list[str]:
    """The CMake options for CUDA. FLASHJANUS_CUDA=on without nvcc ends the build."""
    mode = os.environ.get("FLASHJANUS_CUDA", "auto").lower()
    if mode not in ("auto", "on", "off"):
        raise SystemExit(f"flashjanus: expected FLASHJANUS_CUDA to be auto, on or off, got {mode!r}")
    if mode == "off":
        return ["-DFLASHJANUS_CUDA=OFF"]
    if _defined("CMAKE_CUDA_COMPILER"):
        return ["-DFLASHJANUS_CUDA=ON"]
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates = [os.environ.get("CUDACXX") or "nvcc", *(str(Path(home, "bin", "nvcc")) for home in homes)]
    nvcc = next(filter(None, map(shutil.which, candidates)), None)
    if nvcc:
        return ["-DFLASHJANUS_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    if mode == "on":
        raise SystemExit(
            f"flashjanus: FLASHJANUS_CUDA=on, but nvcc was not found (looked for {', '.join(candidates)}). "
            "Put the CUDA toolkit's bin folder on PATH, or build without CUDA kernels: FLASHJANUS_CUDA=auto"
        )
    return ["-DFLASHJANUS_CUDA=OFF"]


class CMakeBuild(build_ext):
    """flashjanus._C through CMake; left out, with one warning, where a tool is missing."""

    def run(self) -> None:
        cuda = cuda_options()
        missing = missing_tools()
        if not missing:
            self.cuda = cuda
            super().run()
            return
        if os.environ.get("FLASHJANUS_CUDA", "").lower() == "on":
            raise SystemExit(f"flashjanus: FLASHJANUS_CUDA=on, but the build lacks {', '.join(missing)}")
        self.extensions = []
        # A module left by an earlier editable install would be older than these sources.
        for stale in (ROOT / SOURCE_ROOTS["flashjanus"]).glob("_C.*.so"):
            stale.unlink()
        self.warn(
            f"flashjanus: the native kernels (flashjanus._C) are NOT built: missing {', '.join(missing)}. "
            "The package works without them, on torch implementations."
        )

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(cores)
        configure = [
            *("cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            *self.cuda,
            *cmake_args(),
        ]
        for command in (configure, ["cmake", "--build", str(build), "--parallel", jobs]):
            if subprocess.run(command).returncode:
                raise SystemExit(f"flashjanus: the native build failed at: {shlex.join(command)}")


class FreshBuildPy(build_py):
    """A wheel holds what the sources hold now: build/lib keeps the modules that have since been deleted."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


if __name__ == "__main__":
    setup(
        version=version(),
        package_dir=SOURCE_ROOTS,
        packages=packages(),
        package_data={
            "flashjanus": ["py.typed", "*.pyi"],
            "flashjanus.builtin": ["**/*.json", "**/*.safetensors", "**/*.md"],
        },
        ext_modules=[Extension("flashjanus._C", sources=[])],
        cmdclass={"build_ext": CMakeBuild, "build_py": FreshBuildPy},
        zip_safe=False,
    )
