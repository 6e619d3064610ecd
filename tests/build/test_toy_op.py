"""The op of docs/adding-an-op.md: a copy of the tree takes its files alone, and its cases pass on all back ends."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/adding-an-op.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```\w+ title=\"(\S+)\"\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
TESTS = {
    "engine": ["test_ops", "test_costs", "test_threads", "test_native_bind"],
    "kernels": ["test_cpu_kernels", "test_cpu_numerics", "test_cuda_on_cpu"],
}
Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("cmake", "g++", "git", "ninja"))), reason="cmake, g++, git or ninja is not installed"
)


def git(folder: Path, *arguments: str) -> str:
    name = ("-c", "user.name=toy", "-c", "user.email=toy")
    return subprocess.run(["git", *name, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.mark.long
def test_an_op_is_its_files(sources: Path, tmp_path: Path, python: Run) -> None:
    shutil.copytree(ROOT / "tests", sources / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".gitignore", sources)
    for kernel in (*(sources / "csrc/cpu").rglob("*.cpp"), *(sources / "csrc/cuda").glob("*.cu")):
        kernel.unlink()  # the others take minutes to compile; no list has to be told of it
    git(sources, "init", "-q")
    git(sources, "add", "-A")
    git(sources, "commit", "-q", "-m", "Before the op")

    assert {Path(name).suffix for name in FILES} == {".py", ".h", ".cpp", ".cu"}
    for name, text in FILES.items():
        (sources / name).write_text(text)
    lib, options = tmp_path / "lib", {"FLASHJANUS_CUDA": "off", "CMAKE_ARGS": "-DCMAKE_CXX_FLAGS_RELEASE=-O0"}
    for command in (["build_py"], ["build_ext", "--build-temp", tmp_path / "temp"]):
        done = python("setup.py", "-q", *command, "--build-lib", lib, cwd=sources, **options)
        assert done.returncode == 0, done.stdout + done.stderr
    files = [f"tests/{area}/{name}.py" for area, names in TESTS.items() for name in names]
    arguments = ["-v", "-p", "no:cacheprovider", "-k", "toy_scale", "-m", "not long", *files]
    done = python("-m", "pytest", *arguments, cwd=sources, PYTHONPATH=str(lib))
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.findall(r"/(\w+)\.py::.*\[.*toy_scale.*\] PASSED", done.stdout)
    assert set(passed) == {name for names in TESTS.values() for name in names}
    assert passed.count("test_cuda_on_cpu") == 3 * 2 * 2, "cases, dtypes, chips"
    assert git(sources, "status", "--porcelain", "-uall").splitlines() == [f"?? {name}" for name in sorted(FILES)]


def test_the_page_s_files_are_laid_out_as_ours(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in ("pyproject.toml", ".clang-format"):
        shutil.copy(ROOT / name, tmp_path)
    native = [name for name in FILES if not name.endswith(".py")]
    tools = Path(sys.executable).parent
    for tool, *arguments in (
        ("ruff", "check", "engine"),
        ("ruff", "format", "--check", "engine"),
        ("clang-format", "--dry-run", "--Werror", *native),
    ):
        done = subprocess.run([tools / tool, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
