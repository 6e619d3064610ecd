"""What setup.py decides, before anything is compiled."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from types import ModuleType

import flashjanus
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name in ("CMAKE_ARGS", "FLASHJANUS_CUDA", "CXX", "CUDACXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("flashjanus_setup", ROOT / "setup.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tools(folder: Path, *names: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch(mode=0o755)
    return str(folder)


def test_the_version_is_the_package_s(setup: ModuleType) -> None:
    assert setup.version() == flashjanus.__version__


def test_every_package_of_the_three_roots_is_found(setup: ModuleType) -> None:
    expected = set()
    for name, path in setup.SOURCE_ROOTS.items():
        for init in (ROOT / path).rglob("__init__.py"):
            expected.add(".".join([name, *init.parent.relative_to(ROOT / path).parts]))
    assert set(setup.packages()) == expected
    assert {"flashjanus", "flashjanus.engine.runtime", "flashjanus.triton_kernels"} <= expected


@pytest.mark.parametrize("absent", ["a C++ compiler", "cmake", "ninja", "pybind11", "Python headers"])
def test_each_missing_tool_is_named(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, absent: str
) -> None:
    names = {"a C++ compiler": "g++", "cmake": "cmake", "ninja": "ninja"}
    monkeypatch.setenv("PATH", tools(tmp_path / "bin", *(tool for name, tool in names.items() if name != absent)))
    monkeypatch.setattr(setup, "find_spec", lambda name: None if absent == "pybind11" else name)
    headers = tmp_path / "include"
    tools(headers, *([] if absent == "Python headers" else ["Python.h"]))
    monkeypatch.setattr(setup.sysconfig, "get_path", lambda name: str(headers))
    (missing,) = setup.missing_tools()
    assert missing.startswith(absent)


def test_a_compiler_may_come_from_cxx_or_cmake_args(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", tools(tmp_path, "g++", "mine"))
    monkeypatch.setenv("CXX", "mine -v")
    assert not any("compiler" in tool for tool in setup.missing_tools())
    monkeypatch.setenv("CXX", "absent")
    assert "a C++ compiler (absent)" in setup.missing_tools()
    monkeypatch.setenv("CMAKE_ARGS", "-DOTHER=1 -DCMAKE_CXX_COMPILER=/opt/c++")
    assert not any("compiler" in tool for tool in setup.missing_tools())


def test_cuda_is_decided_by_the_mode_and_by_nvcc(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    off, nvcc = ["-DFLASHJANUS_CUDA=OFF"], "-DCMAKE_CUDA_COMPILER={}/nvcc"
    monkeypatch.setenv("PATH", tools(tmp_path / "empty"))
    assert setup.cuda_options() == off
    on_path = tools(tmp_path / "bin", "nvcc")
    monkeypatch.setenv("PATH", on_path)
    for mode in ("auto", "on", "ON"):
        monkeypatch.setenv("FLASHJANUS_CUDA", mode)
        assert setup.cuda_options() == ["-DFLASHJANUS_CUDA=ON", nvcc.format(on_path)]
    monkeypatch.setenv("FLASHJANUS_CUDA", "off")
    assert setup.cuda_options() == off

    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setenv("FLASHJANUS_CUDA", "on")
    with pytest.raises(SystemExit, match=r"nvcc was not found .* FLASHJANUS_CUDA=auto"):
        setup.cuda_options()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert setup.cuda_options()[1] == nvcc.format(on_path)
    monkeypatch.setenv("CUDACXX", str(tmp_path / "own"))
    tools(tmp_path, "own")
    assert setup.cuda_options()[1] == f"-DCMAKE_CUDA_COMPILER={tmp_path}/own"
    monkeypatch.setenv("CMAKE_ARGS", "-DCMAKE_CUDA_COMPILER=/opt/nvcc")
    assert setup.cuda_options() == ["-DFLASHJANUS_CUDA=ON"]


def test_an_unknown_cuda_mode_is_refused(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHJANUS_CUDA", "maybe")
    with pytest.raises(SystemExit, match="auto, on or off, got 'maybe'"):
        setup.cuda_options()


def test_ci_runs_what_a_developer_runs() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "make test"
    assert shutil.which("bash")
