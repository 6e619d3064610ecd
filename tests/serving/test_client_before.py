"""OpenAI's client of the major version before the installed one passes the same tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import openai
import pytest

HERE = Path(__file__).parent
BEFORE = int(openai.__version__.partition(".")[0]) - 1
FILES = ("test_client.py", "test_responses_client.py")


@pytest.mark.long
def test_the_version_before_is_served_as_well(tmp_path: Path) -> None:
    wanted = f"openai>={BEFORE},<{BEFORE + 1}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tmp_path), wanted]
    subprocess.run(pip, check=True, timeout=300)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    version = [sys.executable, "-c", "import openai; print(openai.__version__)"]
    found = subprocess.run(version, env=environment, check=True, capture_output=True, text=True).stdout
    assert found.startswith(f"{BEFORE}.")
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(HERE / file) for file in FILES)]
    done = subprocess.run(tests, env=environment, capture_output=True, text=True, cwd=HERE.parents[1], timeout=500)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
