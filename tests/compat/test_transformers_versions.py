"""Other versions of transformers pass the same tests as the installed one, each with the dependencies that it asks for:
the oldest that installs beside this package, the official code's, the last of the fourth generation, and the first of
the fifth."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
from flashjanus.compat.registration import OLDEST

HERE = Path(__file__).parent
FILES = ("test_auto.py", "test_wild_caches.py", "test_wild_calls.py")
OWN = ("huggingface-hub", "tokenizers", "safetensors", "regex")
"""Dependencies whose versions go with transformers' own; none of them brings torch."""


def install(folder: Path, *wanted: str) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *wanted]
    subprocess.run(pip, check=True, timeout=300)


@pytest.mark.long
@pytest.mark.parametrize("version", [".".join(map(str, OLDEST)) + ".*", "4.46.*", "4.*", "5.0.*"])
def test_another_version_serves_as_well(tmp_path: Path, version: str) -> None:
    install(tmp_path, f"transformers=={version}")
    [found] = [one for one in distributions(path=[str(tmp_path)]) if one.name == "transformers"]
    asked = [need for need in found.requires or () if ";" not in need and need.startswith(OWN)]
    assert len(asked) == len(OWN)
    install(tmp_path, *asked)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    shown = [sys.executable, "-c", "import transformers; print(transformers.__version__)"]
    used = subprocess.run(shown, env=environment, check=True, capture_output=True, text=True).stdout.strip()
    assert used == found.version
    assert used.startswith(version.rstrip("*"))
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(HERE / file) for file in FILES)]
    done = subprocess.run(tests, env=environment, capture_output=True, text=True, cwd=HERE.parents[1], timeout=500)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
