"""What is made of the headers of csrc: lists and members of kernels, and the numbers that Python has twice."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOY = "struct ToyScaleParams {\n    const float* x;  // [n]\n    int32_t n;\n};\n"
MIRRORS = [
    pytest.param(path, *found, id=f"{path.stem}-{found[1]}")
    for path in sorted((ROOT / "engine/ops").glob("*.py"))
    for found in re.findall(
        r'^(?:class )?(\w+)(?: = .*|\(NamedTuple\):)\n *""".*?(\w+) (?:of|in) (csrc/\S+\.h)\."""$',
        path.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
]
"""Python's name, C++'s and the header, wherever a docstring names the two."""


@pytest.mark.parametrize(("path", "ours", "theirs", "header"), MIRRORS)
def test_python_s_copy_is_the_header_s(path: Path, ours: str, theirs: str, header: str) -> None:
    copy = getattr(import_module(f"flashjanus.engine.ops.{path.stem}"), ours)
    text = (ROOT / header).read_text(encoding="utf-8")
    if isinstance(copy, int):
        assert re.findall(rf"\b{theirs} = (\d+);", text) == [str(copy)]
        return
    found = re.search(rf"(?:struct|enum class) {theirs}\b[^{{]*\{{(.*?)\}};", text, re.DOTALL)
    assert found is not None
    names = tuple(re.findall(r"^ *float (\w+);", found[1], re.MULTILINE) or re.findall(r"(\w+) = \d", found[1]))
    assert names == (copy if isinstance(copy, tuple) else copy._fields)


def test_the_copies_are_found() -> None:
    assert len(MIRRORS) >= 10


def generate(folder: Path, files: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What generate.py says of a csrc of these files; it writes into folder/made."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    shutil.copy(ROOT / "csrc/generate.py", folder)
    return subprocess.run([sys.executable, folder / "generate.py", folder / "made"], capture_output=True, text=True)


def test_lists_and_members_are_those_of_the_files(tmp_path: Path) -> None:
    alike = "using ToyTilesParams = ToyScaleParams;\n"
    files = {"cpu/toy_scale.cpp": "", "cpu/toy_scale.h": TOY, "cuda/toy_scale.cu": "", "cpu/shared.h": "int i, j;\n"}
    done = generate(tmp_path, {**files, "cpu/amx/toy_tiles.cpp": "", "cpu/amx/toy_tiles.h": alike})
    assert done.returncode == 0, done.stderr
    lists = (tmp_path / "made/kernels.h").read_text()
    assert re.findall(r"_(\w+)_KERNELS\(KERNEL\) \\\n    KERNEL\((\w+), (\w+)\)\n", lists) == [
        ("CPU", "toy_scale", "ToyScaleParams"),
        ("AMX", "toy_tiles", "ToyTilesParams"),
        ("CUDA", "toy_scale", "ToyScaleParams"),
    ]
    assert re.findall(r'include "(.*)"', lists) == ["cpu/amx/toy_tiles.h", "cpu/toy_scale.h"]
    assert re.findall(r'{"(\w+)", &P::\1}', (tmp_path / "made/fields.cpp").read_text()) == ["x", "n"]


@pytest.mark.parametrize(
    "line", ["int32_t n, m;", "int32_t n = 3;", "float x[4];", "int32_t n; int32_t m;", "struct { int32_t n; } s;", "}"]
)
def test_a_line_that_is_not_one_member_is_an_error(tmp_path: Path, line: str) -> None:
    done = generate(tmp_path, {"cpu/toy_scale.cpp": "", "cpu/toy_scale.h": TOY.replace("int32_t n;", line)})
    assert done.returncode == 1
    assert (
        f"cpu/toy_scale.h:3: expected one member of ToyScaleParams, as `const float* x;`, got `{line}`" in done.stderr
    )
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("files", [{}, {"cpu/toy_scale.h": TOY.replace("ToyScale", "Toy")}])
def test_a_kernel_without_its_struct_is_an_error(tmp_path: Path, files: dict[str, str]) -> None:
    done = generate(tmp_path, {"cpu/toy_scale.cpp": "", **files})
    assert done.returncode == 1
    assert "cpu/toy_scale.cpp: expected a line `struct ToyScaleParams {`, its arguments, in" in done.stderr
