"""A copy of the sources and a way to build it: the checkout itself is never written to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ["csrc", "engine", "python", "triton_kernels"]
FILES = ["CMakeLists.txt", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"]
OURS = ("CMAKE_ARGS", "FLASHJANUS_CUDA", "CXX", "CUDACXX", "CUDA_HOME", "CUDA_PATH", "PYTHONPATH")
Run = Callable[..., subprocess.CompletedProcess[str]]


def copy_sources(folder: Path) -> Path:
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in FILES:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    (tmp_path / "sources").mkdir()
    return copy_sources(tmp_path / "sources")


def run_python(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """This Python, with our own settings unset, and cmake and ninja of its environment on PATH."""
    env = {name: value for name, value in os.environ.items() if name not in OURS}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=env | environment, capture_output=True, text=True)


@pytest.fixture(scope="session")
def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def python() -> Run:
    return run_python


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CPU-only wheel, built where importing torch is an error and build/lib holds a module that is gone."""
    folder = tmp_path_factory.mktemp("wheel")
    poison = folder / "poison"
    poison.mkdir()
    (poison / "torch.py").write_text("raise SystemExit('the build imported torch')")
    sources = folder / "sources"
    sources.mkdir()
    copy_sources(sources)
    stale = sources / f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}/flashjanus/stale.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    pip = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, sources]
    quick = "-DCMAKE_CXX_FLAGS_RELEASE=-O0"  # of the bindings; the kernels set their own
    done = run_python(*pip, cwd=folder, FLASHJANUS_CUDA="off", CMAKE_ARGS=quick, PYTHONPATH=str(poison))
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))
