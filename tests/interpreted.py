"""Programs of the tests that run Triton in its interpreter: in a process of their own, which sets it up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_interpreted(program: Path, folder: Path) -> Any:
    """The JSON that `program` writes to the path that it is given; asserts that it succeeds."""
    output = folder / "results.json"
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(program), str(output)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text())
