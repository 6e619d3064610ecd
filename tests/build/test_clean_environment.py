"""The wheel as it is published: repaired, installed where nothing was, used without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="auditwheel is for Linux")
def test_a_repaired_wheel_draws_where_nothing_was_installed_and_no_compiler_is(
    wheel: Path, tmp_path: Path, python: Run, project: dict[str, Any]
) -> None:
    repair = project["tool"]["cibuildwheel"]["repair-wheel-command"].format(dest_dir=tmp_path, wheel=wheel).split()
    done = python("-m", *repair, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [repaired] = tmp_path.glob("*.whl")
    assert "manylinux" in repaired.name
    assert not [name for name in zipfile.ZipFile(repaired).namelist() if "libgomp" in name]

    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    version = torch.__version__.partition("+")[0]
    subprocess.run([venv / "bin/pip", "install", "-q", f"torch=={version}", repaired], check=True)
    environment = {name: value for name, value in os.environ.items() if name in ("HOME", "LANG", "LC_ALL")}
    environment["PATH"] = str(venv / "bin")
    assert not shutil.which("c++", path=environment["PATH"])
    flashjanus = venv / "bin/flashjanus"
    command = [flashjanus, "generate", "a red circle", "--steps", "4", "--seed", "1", "--out", tmp_path / "pictures"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 1
    done = subprocess.run([flashjanus, "doctor"], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "avx2" in done.stdout + done.stderr
